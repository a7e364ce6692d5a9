package envoy

import (
	"cmp"
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	overridev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const httpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// clusters are the service, the pool of all engines, and where the route wants
// it each engine alone.
func (c Config) clusters() []*clusterv3.Cluster {
	pool := c.engineCluster(clusterPool, c.Endpoints)
	if c.Shadow != nil && c.Shadow.Router != "" {
		pool = c.engineCluster(clusterPool, []Endpoint{{Address: c.Shadow.Router}})
	}
	pool.LoadBalancingPolicy = c.poolPolicies()
	clusters := append(c.serviceClusters(), pool)
	if c.Canary != nil {
		clusters = append(clusters, plain(c.withoutRescue().engineCluster(clusterPlain, c.Endpoints)))
	}
	if c.Route == RouteClusterHeader {
		for _, e := range c.Endpoints {
			clusters = append(clusters, c.engineCluster(e.cluster(), []Endpoint{e}))
		}
	}
	return clusters
}

// serviceClusters are the ways to the service and its standbys.
func (c Config) serviceClusters() []*clusterv3.Cluster {
	clusters := append([]*clusterv3.Cluster{c.serviceCluster()}, c.recordClusters()...)
	if c.Shadow != nil {
		clusters = append(clusters, c.shadowCluster())
	}
	return clusters
}

// serviceCluster is where ext_proc and, without standby, the access log go. The
// health check is what lets Envoy fail open at once, and leave a service that
// drains in time. A dead process refuses the next check, within the interval; the
// timeout is longer, so that a machine that is busy for a moment does not lose its
// choices.
func (c Config) serviceCluster() *clusterv3.Cluster {
	cluster := &clusterv3.Cluster{
		Name:                          clusterService,
		DnsLookupFamily:               clusterv3.Cluster_V4_PREFERRED,
		ConnectTimeout:                durationpb.New(250 * time.Millisecond),
		CircuitBreakers:               withoutLimits(),
		CommonLbConfig:                &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: never()},
		HealthChecks:                  health(healthReady, 300*time.Millisecond),
		TypedExtensionProtocolOptions: http2Options(&corev3.Http2ProtocolOptions{}),
	}
	serviceMembers(cluster, c.ServiceTLS, c.services())
	c.standIn(cluster)
	return cluster
}

// engineCluster is a cluster of engines. Names are resolved as the service does,
// IPv6 only where there is nothing else: of a choice that it does not hold the
// balancer takes no notice.
func (c Config) engineCluster(name string, endpoints []Endpoint) *clusterv3.Cluster {
	var addresses []string
	var members []*endpointv3.LbEndpoint
	var sockets []*clusterv3.Cluster_TransportSocketMatch
	for _, e := range endpoints {
		member := lbEndpoint(e.Address)
		if e.TLS {
			member.Metadata = tlsMark(e.Address)
			sockets = append(sockets, c.tlsSocket(e.Address))
		}
		addresses, members = append(addresses, e.Address), append(members, member)
	}
	cluster := c.cluster(name)
	cluster.ClusterDiscoveryType = discoveryType(addresses...)
	cluster.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	cluster.TransportSocketMatches = sockets
	cluster.LoadAssignment = assignment(name, members...)
	return cluster
}

// cluster is a cluster of engines without its members.
func (c Config) cluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:            name,
		ConnectTimeout:  durationpb.New(time.Second),
		CircuitBreakers: withoutLimits(),
		CommonLbConfig:  &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: never()},
		TypedExtensionProtocolOptions: protocolOptions(&upstreamv3.HttpProtocolOptions{
			// Below the 5 seconds after which uvicorn closes idle connections,
			// which resets the request that comes just then.
			CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(4 * time.Second)},
			UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{
				ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
						HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
					},
				},
			},
			HttpFilters: c.holdFilters(),
		}),
	}
}

// poolPolicies are how the pool is balanced.
func (c Config) poolPolicies() *clusterv3.LoadBalancingPolicy {
	of := poolPolicy()
	if c.Shadow != nil {
		of = c.Shadow.balancer()
	}
	return &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{of}}
}

// poolPolicy obeys the choice; without one the engine with the fewest requests
// of this Envoy is taken.
func poolPolicy() *clusterv3.LoadBalancingPolicy_Policy {
	least := policy("envoy.load_balancing_policies.least_request", &leastv3.LeastRequest{})
	return policy("envoy.load_balancing_policies.override_host", &overridev3.OverrideHost{
		OverrideHostSources: []*overridev3.OverrideHost_OverrideHostSource{
			{Header: HeaderEndpoint},
			// Where the service is set to tell it by metadata alone.
			{Metadata: &metadatav3.MetadataKey{
				Key:  MetadataBalancer,
				Path: []*metadatav3.MetadataKey_PathSegment{{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: HeaderEndpoint}}},
			}},
		},
		FallbackPolicy: &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{least}},
	})
}

func policy(name string, config proto.Message) *clusterv3.LoadBalancingPolicy_Policy {
	return &clusterv3.LoadBalancingPolicy_Policy{TypedExtensionConfig: extension(name, config)}
}

// withoutLimits raises the circuit breakers: the defaults, 1024 requests and 3
// retries at a time, answer 503 long before engines are full.
func withoutLimits() *clusterv3.CircuitBreakers {
	const unlimited = 1_000_000
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     wrapperspb.UInt32(unlimited),
		MaxPendingRequests: wrapperspb.UInt32(unlimited),
		MaxRequests:        wrapperspb.UInt32(unlimited),
		MaxRetries:         wrapperspb.UInt32(unlimited),
	}}}
}

// tlsMark joins an endpoint with its transport socket.
func tlsMark(address string) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"envoy.transport_socket_match": tlsMatch(address),
	}}
}

func tlsMatch(address string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"https": structpb.NewStringValue(address)}}
}

// tlsSocket speaks https with one endpoint under its own name. An address is no
// server name: none is sent, and the certificate must hold the address itself.
func (c Config) tlsSocket(address string) *clusterv3.Cluster_TransportSocketMatch {
	host, _, _ := splitAddress(address) // validated
	ip, err := netip.ParseAddr(host)
	named := err != nil
	socket := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{}}
	if named {
		socket.Sni = host
	}
	if !c.SkipVerify {
		validation := &tlsv3.CertificateValidationContext{TrustedCa: c.authorities()}
		if named {
			socket.AutoSniSanValidation = true
		} else {
			validation.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{addressMatcher(ip)}
		}
		socket.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	}
	return tlsSocketMatch(address, socket)
}

// tlsSocketMatch is the transport socket of the endpoints that bear mark.
func tlsSocketMatch(mark string, socket *tlsv3.UpstreamTlsContext) *clusterv3.Cluster_TransportSocketMatch {
	return &clusterv3.Cluster_TransportSocketMatch{
		Name:            mark,
		Match:           tlsMatch(mark),
		TransportSocket: transportSocket(socket),
	}
}

func transportSocket(socket *tlsv3.UpstreamTlsContext) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(socket)},
	}
}

// socket speaks TLS with a port of the service at address; nil where it speaks
// none. An address is no server name: none is sent, and the certificate must
// hold the address itself.
func (t *PortTLS) socket(address string) *corev3.TransportSocket {
	if t == nil {
		return nil
	}
	context := &tlsv3.CommonTlsContext{AlpnProtocols: []string{"h2"}}
	socket := &tlsv3.UpstreamTlsContext{CommonTlsContext: context}
	host, _, _ := splitAddress(address) // validated
	ip, err := netip.ParseAddr(host)
	named := err != nil
	if named {
		socket.Sni = host
	}
	if t.CertFile != "" {
		context.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(t.CertFile), PrivateKey: file(t.KeyFile)}}
	}
	if t.CAFile != "" {
		validation := &tlsv3.CertificateValidationContext{TrustedCa: file(t.CAFile)}
		if named {
			socket.AutoSniSanValidation = true
		} else {
			validation.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{addressMatcher(ip)}
		}
		context.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	}
	return transportSocket(socket)
}

// addressMatcher takes a certificate that is made out to an address.
func addressMatcher(ip netip.Addr) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{
		SanType: tlsv3.SubjectAltNameMatcher_IP_ADDRESS,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: ip.String()}},
	}
}

func file(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

// authorities are those that https endpoints are verified with.
func (c Config) authorities() *corev3.DataSource {
	return file(cmp.Or(c.CAFile, systemAuthorities))
}

func assignment(cluster string, members ...*endpointv3.LbEndpoint) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: members}},
	}
}

func protocolOptions(o *upstreamv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{httpProtocolOptions: pack(o)}
}

// http2Options speak HTTP/2 without TLS being asked which, as gRPC does.
func http2Options(o *corev3.Http2ProtocolOptions) map[string]*anypb.Any {
	return protocolOptions(&upstreamv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: o},
			},
		},
	})
}

func previousHosts() *previousv3.PreviousHostsPredicate { return &previousv3.PreviousHostsPredicate{} }
