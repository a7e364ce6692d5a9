package envoy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Member is one engine as it is told to a running Envoy. Its address is
// resolved: of a choice that a cluster does not hold the balancer takes no
// notice, so both sides must mean the same ip:port.
type Member struct {
	// Address is ip:port, as the service tells its choice.
	Address string
	// Cluster names the cluster of this engine alone, for RouteClusterHeader;
	// empty: it has none.
	Cluster string
	// TLS: the engine speaks https. Host is then what its certificate is made
	// out to, a name or an ip.
	TLS  bool
	Host string
	// Health is what Envoy is told of it.
	Health Health
}

// Health is what Envoy makes of an engine where it chooses by itself.
type Health string

// The states.
const (
	// Healthy: any request may go there.
	Healthy Health = "healthy"
	// Unhealthy: none does, not even by the service's word.
	Unhealthy Health = "unhealthy"
	// Draining: Envoy sends none of its own accord. An override_host balancer
	// would still obey the service, which must not name it.
	Draining Health = "draining"
)

// routesName is the resource that the listener asks for.
const routesName = "engines"

// edsTimeout is how long a cluster that was changed waits for its endpoints. A
// server that has told them already does not tell them again, and until then
// no other change of clusters is taken. Envoy goes on with what it knew.
const edsTimeout = time.Second

// ads asks for a resource on the stream that carries them all.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

// Listeners take the clients' requests. They depend on no engine: a listener
// that changes cuts the streams that outlast Envoy's drain time.
func (c Config) Listeners() []*listenerv3.Listener {
	manager := c.connectionManager()
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: routesName}}
	return []*listenerv3.Listener{c.listenerOf(manager)}
}

// Routes send every request to the pool; in the cluster_header variant those
// whose choice has a cluster of its own there. Each such cluster is named: one
// that Envoy does not know yet, or no longer, must not be an error but the
// pool's affair, and routes can be switched apart from clusters.
func (c Config) Routes(members []Member) *routev3.RouteConfiguration {
	var routes []*routev3.Route
	for _, m := range c.Alone(members) {
		chosen := c.route("chosen", []*routev3.HeaderMatcher{{
			Name: HeaderCluster,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Exact{Exact: m.Cluster},
			}},
		}})
		chosen.GetRoute().ClusterSpecifier = &routev3.RouteAction_ClusterHeader{ClusterHeader: HeaderCluster}
		routes = append(routes, chosen)
	}
	return &routev3.RouteConfiguration{
		Name:         routesName,
		VirtualHosts: []*routev3.VirtualHost{{Name: routesName, Domains: []string{"*"}, Routes: append(routes, c.lastRoutes()...)}},
	}
}

// Alone are the members that have a cluster of their own.
func (c Config) Alone(members []Member) []Member {
	if c.Route != RouteClusterHeader {
		return nil
	}
	var list []Member
	for _, m := range members {
		if m.Cluster != "" {
			list = append(list, m)
		}
	}
	return list
}

// Clusters are the pool of all engines and, where the route wants it, each
// engine alone. The pool is the same whichever engines there are, except that
// https needs to know how they are verified.
func (c Config) Clusters(members []Member) []*clusterv3.Cluster {
	pool := c.dynamicCluster(clusterPool, members)
	pool.LoadBalancingPolicy = c.poolPolicies()
	clusters := []*clusterv3.Cluster{pool}
	if c.Canary != nil {
		clusters = append(clusters, plain(c.withoutRescue().dynamicCluster(clusterPlain, members)))
	}
	for _, m := range c.Alone(members) {
		// With its address in it there is nothing to wait for when it is added.
		own := c.cluster(m.Cluster)
		own.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		own.TransportSocketMatches = c.tlsSockets([]Member{m})
		m.Health = Healthy // There is no other choice in it.
		own.LoadAssignment = assignment(m.Cluster, m.lbEndpoint())
		clusters = append(clusters, own)
	}
	return clusters
}

// dynamicCluster is a cluster of all engines, which it asks for.
func (c Config) dynamicCluster(name string, members []Member) *clusterv3.Cluster {
	cluster := c.cluster(name)
	cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	source := ads()
	source.InitialFetchTimeout = durationpb.New(edsTimeout)
	cluster.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: source}
	cluster.TransportSocketMatches = c.tlsSockets(members)
	// A removed engine must be gone at once, also where somebody adds a health
	// check to this cluster.
	cluster.IgnoreHealthOnHostRemoval = true
	return cluster
}

// Assignments are the members of the clusters of all engines. Where none is healthy
// all count as such: Envoy then tries, which is better than to refuse.
func (c Config) Assignments(members []Member) []*endpointv3.ClusterLoadAssignment {
	hopeless := true
	for _, m := range members {
		hopeless = hopeless && m.Health != Healthy
	}
	list := make([]*endpointv3.LbEndpoint, 0, len(members))
	for _, m := range members {
		if hopeless {
			m.Health = Healthy
		}
		list = append(list, m.lbEndpoint())
	}
	assignments := []*endpointv3.ClusterLoadAssignment{assignment(clusterPool, list...)}
	if c.Canary != nil {
		assignments = append(assignments, assignment(clusterPlain, list...))
	}
	return assignments
}

func (m Member) lbEndpoint() *endpointv3.LbEndpoint {
	e := lbEndpoint(m.Address)
	e.HealthStatus = map[Health]corev3.HealthStatus{
		Healthy: corev3.HealthStatus_HEALTHY, Unhealthy: corev3.HealthStatus_UNHEALTHY, Draining: corev3.HealthStatus_DRAINING,
	}[m.Health]
	if !m.TLS {
		return e
	}
	if _, err := netip.ParseAddr(m.Host); err == nil {
		e.Metadata = tlsMark(m.Address)
		return e
	}
	e.Metadata = tlsMark(byName)
	e.GetEndpoint().Hostname = m.Host
	return e
}

// byName marks https engines whose certificate is made out to a name: one
// transport socket serves all of them, whatever their names are.
const byName = "name"

// tlsSockets are the transport sockets that the members need. Those of engines
// with a name are one; of those with an address each needs its own, because
// Envoy verifies names by itself, but addresses only as written.
func (c Config) tlsSockets(members []Member) []*clusterv3.Cluster_TransportSocketMatch {
	var sockets []*clusterv3.Cluster_TransportSocketMatch
	named := false
	for _, m := range members {
		if !m.TLS {
			continue
		}
		if _, err := netip.ParseAddr(m.Host); err == nil {
			sockets = append(sockets, c.tlsSocket(m.Address))
			continue
		}
		named = true
	}
	if named {
		context := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{}, AutoHostSni: true}
		if !c.SkipVerify {
			context.AutoSniSanValidation = true
			context.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{
				ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: c.authorities()},
			}
		}
		sockets = append(sockets, tlsSocketMatch(byName, context))
	}
	return sockets
}

// Protocol is how Envoy and an xDS server talk.
type Protocol string

// The protocols.
const (
	// StateOfTheWorld: a change of one resource tells all of its kind.
	StateOfTheWorld Protocol = "sotw"
	// Delta: only what has changed is told.
	Delta Protocol = "delta"
)

// Management is where Envoy asks for what changes at run time.
type Management struct {
	// Address of the xDS server: host:port, or unix:/path.
	Address string
	// Standby are further servers that tell the same, in order of priority.
	Standby []string
	// TLS says how it is spoken to where it speaks TLS; nil where it does not.
	TLS      *PortTLS
	Protocol Protocol
	// Node is what this Envoy calls itself.
	Node string
}

func (m Management) validate() error {
	var faults []error
	if !strings.HasPrefix(m.Address, unixScheme) {
		if _, _, err := splitAddress(m.Address); err != nil {
			faults = append(faults, fmt.Errorf("xDS server: %w", err))
		}
	}
	servers := append([]string{m.Address}, m.Standby...)
	faults = append(faults, validatePriorities("xDS standby", servers), validateMixed("xDS server", servers))
	if m.Protocol != StateOfTheWorld && m.Protocol != Delta {
		faults = append(faults, fmt.Errorf("xDS protocol: %q is unknown; write %s or %s", m.Protocol, StateOfTheWorld, Delta))
	}
	if m.Node == "" {
		faults = append(faults, errors.New("node: is empty; write a name for this Envoy"))
	}
	return errors.Join(faults...)
}

// DynamicBootstrap is an Envoy config as YAML that holds the way to the service
// and asks for everything else. Of c only Admin, Service, Standby, ServiceTLS,
// BodyMode, Canary and Shadow count. The error joins every fault.
func DynamicBootstrap(c Config, m Management) ([]byte, error) {
	if err := errors.Join(c.validateService(), m.validate(), c.Shadow.validate()); err != nil {
		return nil, err
	}
	api := corev3.ApiConfigSource_GRPC
	if m.Protocol == Delta {
		api = corev3.ApiConfigSource_DELTA_GRPC
	}
	b := &bootstrapv3.Bootstrap{
		Node:           &corev3.Node{Id: m.Node, Cluster: "firsttoken"},
		Admin:          &bootstrapv3.Admin{Address: socketAddress(c.Admin)},
		LayeredRuntime: c.layeredRuntime(),
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			LdsConfig: ads(),
			CdsConfig: ads(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:             api,
				TransportApiVersion: corev3.ApiVersion_V3,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: clusterManagement},
				}}},
			},
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			// The way to the service is this Envoy's own, and must not hang on
			// an answer from there.
			Clusters: append(c.serviceClusters(), managementCluster(m)),
		},
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("envoy config: %w", err)
	}
	return toYAML(b)
}

// managementCluster is where Envoy asks. Without health check: whatever the
// service thinks of its readiness, Envoy may ask. Pings find a server that is
// gone without a word.
func managementCluster(m Management) *clusterv3.Cluster {
	cluster := &clusterv3.Cluster{
		Name:            clusterManagement,
		DnsLookupFamily: clusterv3.Cluster_V4_PREFERRED,
		ConnectTimeout:  durationpb.New(time.Second),
		TypedExtensionProtocolOptions: http2Options(&corev3.Http2ProtocolOptions{
			ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(5 * time.Second)},
		}),
	}
	if len(m.Standby) > 0 {
		// Here it may choose whom to ask: one that knows of engines. Where none
		// does, any will do.
		cluster.HealthChecks = health("", time.Second)
		cluster.CloseConnectionsOnHostHealthFailure = true
	}
	serviceMembers(cluster, m.TLS, append([]string{m.Address}, m.Standby...))
	return cluster
}
