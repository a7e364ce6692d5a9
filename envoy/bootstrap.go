package envoy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	rulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// unixScheme begins an address that is a file.
const unixScheme = "unix:"

// Bootstrap is a complete static Envoy config as YAML. The error joins every
// fault of c.
func Bootstrap(c Config) ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		Admin:          &bootstrapv3.Admin{Address: socketAddress(c.Admin)},
		LayeredRuntime: c.layeredRuntime(),
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Listeners: []*listenerv3.Listener{c.listener()},
			Clusters:  c.clusters(),
		},
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("envoy config: %w", err)
	}
	return toYAML(b)
}

// toYAML prints m with the field names that Envoy's documentation uses.
func toYAML(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("envoy config: %w", err)
	}
	// JSON is YAML; a node keeps the order of the fields.
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return nil, fmt.Errorf("envoy config: %w", err)
	}
	blockStyle(&node)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return nil, fmt.Errorf("envoy config: %w", err)
	}
	return out.Bytes(), nil
}

// blockStyle takes JSON's braces and quotes off; quotes that YAML needs come
// back when it is printed.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	if n.Tag == "!!str" && slices.Contains(formerBooleans, strings.ToLower(n.Value)) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// formerBooleans are words that Envoy, as YAML 1.1 has it, takes for true and false.
var formerBooleans = []string{"y", "n", "yes", "no", "on", "off"}

// listener takes the clients' requests.
func (c Config) listener() *listenerv3.Listener { return c.listenerOf(c.connectionManager()) }

func (c Config) listenerOf(manager *hcmv3.HttpConnectionManager) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:    "clients",
		Address: socketAddress(c.Listen),
		// The default of 1 MiB refuses long prompts.
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(uint32(c.BufferLimit())), //nolint:gosec // bounded by the service's config
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(manager)},
		}}}},
	}
}

func (c Config) connectionManager() *hcmv3.HttpConnectionManager {
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:       "clients",
		UseRemoteAddress: wrapperspb.Bool(true),
		// The client's X-Request-Id, or one that Envoy makes, goes to the engine and
		// back: whoever looks for a request finds it by one name everywhere.
		PreserveExternalRequestId:    true,
		AlwaysSetRequestIdInResponse: true,
		// The default of 5 minutes cuts requests that queue long, and answers
		// that are not streamed.
		StreamIdleTimeout:             durationpb.New(0),
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{c.withoutControlHeaders()},
		RouteSpecifier:                &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: c.routes()},
		// Engines take HTTP/1.0, and proxies in front of this one still speak it.
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{AcceptHttp_10: true, DefaultHostForHttp_10: "engines"},
		HttpFilters:         c.filters(),
		// A websocket has no body that ends, for which the service would be
		// waited for: it goes to the engine with the fewest requests.
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{
			UpgradeType: "websocket", Filters: []*hcmv3.HttpFilter{routerFilter()},
		}},
		AccessLog: c.accessLogs(),
	}
	if c.Rescue != nil {
		manager.LocalReplyConfig = localReplies()
	}
	if c.Shadow != nil {
		manager.EarlyHeaderMutationExtensions = nil // nothing is changed, and no header obeyed
	}
	return manager
}

// filters are those that every request passes, in their order.
func (c Config) filters() []*hcmv3.HttpFilter {
	if c.Shadow != nil {
		return []*hcmv3.HttpFilter{c.shadowFilter(), c.shadowRouter()}
	}
	list := []*hcmv3.HttpFilter{
		{Name: filterChoice, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(c.externalProcessor())}},
		routerFilter(),
	}
	if c.BodyMode == BodyFullDuplex && c.Rescue == nil {
		list = append([]*hcmv3.HttpFilter{watcher()}, list...)
	}
	return list
}

func routerFilter() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})},
	}
}

// withoutControlHeaders removes what only the service may say. It acts before
// every filter, so it holds when the service is down and the ext_proc filter
// lets requests pass.
func (c Config) withoutControlHeaders() *corev3.TypedExtensionConfig {
	m := &earlyv3.HeaderMutation{}
	prefixes := ControlPrefixes
	if c.Rescue != nil {
		prefixes = append(slices.Clip(prefixes), routerPrefixes...)
	}
	for _, prefix := range prefixes {
		m.Mutations = append(m.Mutations, &rulesv3.HeaderMutation{Action: &rulesv3.HeaderMutation_RemoveOnMatch_{
			RemoveOnMatch: &rulesv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}, IgnoreCase: true,
			}},
		}})
	}
	return extension("envoy.http.early_header_mutation.header_mutation", m)
}

// externalProcessor asks the service about every request.
func (c Config) externalProcessor() *extprocv3.ExternalProcessor {
	p := &extprocv3.ExternalProcessor{
		GrpcService: c.asked(),
		// A service that is down costs the choice, never the request.
		FailureModeAllow: true,
		MessageTimeout:   durationpb.New(c.MessageTimeout()),
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:  extprocv3.ProcessingMode_SEND,
			RequestBodyMode:    extprocv3.ProcessingMode_BUFFERED,
			RequestTrailerMode: extprocv3.ProcessingMode_SKIP,
			// The first chunk of the body is the first token. Headers leave
			// an engine before it has begun, so they say nothing.
			ResponseHeaderMode:  extprocv3.ProcessingMode_SKIP,
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
		},
		ResponseAttributes: []string{AttributeCode, AttributeUpstream},
		MetadataOptions: &extprocv3.MetadataOptions{
			ReceivingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{MetadataBalancer, Metadata}},
		},
	}
	if c.MaxMessageTimeout > 0 {
		// message_timeout stays short: a service that hangs is left alone soon.
		p.MaxMessageTimeout = durationpb.New(c.MaxMessageTimeout)
	}
	if c.BodyMode == BodyFullDuplex {
		duplex(p)
	}
	if c.Rescue != nil {
		obeyDeadlines(p)
	}
	return p
}

// routes send everything to the pool; in the cluster_header variant only what
// no choice was made for, or a choice without a cluster of its own: one of
// several addresses of a name.
func (c Config) routes() *routev3.RouteConfiguration {
	routes := c.lastRoutes()
	if c.Route == RouteClusterHeader {
		chosen := c.route("chosen", []*routev3.HeaderMatcher{{
			Name:                 HeaderCluster,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		}})
		chosen.GetRoute().ClusterSpecifier = &routev3.RouteAction_ClusterHeader{ClusterHeader: HeaderCluster}
		routes = append([]*routev3.Route{chosen}, routes...)
	}
	return &routev3.RouteConfiguration{
		Name:         "engines",
		VirtualHosts: []*routev3.VirtualHost{{Name: "engines", Domains: []string{"*"}, Routes: routes}},
	}
}

// route is a route without its cluster.
func (c Config) route(name string, headers []*routev3.HeaderMatcher) *routev3.Route {
	retries := retryPolicy()
	if c.Rescue != nil {
		retries = withRescue(retries)
	}
	route := &routev3.Route{
		Name: name,
		Match: &routev3.RouteMatch{
			PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"},
			Headers:       headers,
		},
		// Above 1 MiB, the default, a body is not kept for a retry.
		RequestBodyBufferLimit: wrapperspb.UInt64(uint64(c.BufferLimit())), //nolint:gosec // validated to be positive
		// With response headers skipped the service cannot add these itself.
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{
			setHeader(HeaderServed, "%UPSTREAM_REMOTE_ADDRESS%"),
			setHeader(HeaderReason, "%DYNAMIC_METADATA("+Metadata+":"+KeyReason+")%"),
			setHeader(HeaderID, "%DYNAMIC_METADATA("+Metadata+":"+KeyID+")%"),
			setHeader(HeaderArm, "%DYNAMIC_METADATA("+Metadata+":"+KeyArm+")%"),
		},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			// A request may queue and stream for as long as it takes.
			Timeout:     durationpb.New(0),
			RetryPolicy: retries,
		}},
	}
	if c.Shadow != nil {
		route.ResponseHeadersToAdd = nil
		if c.Shadow.Router != "" {
			route.GetRoute().RetryPolicy = nil // it has its own
		}
	}
	return route
}

// retryPolicy tries the next best where the choice cannot be reached or is
// overloaded; with the default back-off of 25 ms that is what costs most.
func retryPolicy() *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn:              "connect-failure,refused-stream,reset,retriable-status-codes",
		RetriableStatusCodes: []uint32{503},
		NumRetries:           wrapperspb.UInt32(2),
		RetryBackOff:         &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(time.Millisecond)},
		// Without a choice to go down, least_request would find the endpoint
		// that just failed the least loaded.
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(previousHosts())},
		}},
		HostSelectionRetryMaxAttempts: 5,
	}
}

func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

func grpcService(cluster string) *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster},
	}}
}

// lbEndpoint is one address of a cluster.
func lbEndpoint(address string) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
		Endpoint: &endpointv3.Endpoint{Address: socketAddress(address)},
	}}
}

// socketAddress is a validated host:port or unix:/path in Envoy's form.
func socketAddress(address string) *corev3.Address {
	if path, ok := strings.CutPrefix(address, unixScheme); ok {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	}
	host, port, _ := splitAddress(address) // validated
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// discoveryType: names are resolved, addresses are taken as they are.
func discoveryType(addresses ...string) *clusterv3.Cluster_Type {
	for _, address := range addresses {
		host, _, _ := splitAddress(address)
		if _, err := netip.ParseAddr(host); err != nil && !strings.HasPrefix(address, unixScheme) {
			return &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		}
	}
	return &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
}

func extension(name string, config proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: pack(config)}
}

// pack wraps a message for a typed_config field. The same message is the same bytes,
// maps in it too: of those a version is made by which Envoys are told what is new.
func pack(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err) // only a message that cannot be marshalled, which is none of ours
	}
	return a
}

// never is a percentage that no share of healthy hosts falls below: a balancer
// that never panics.
func never() *typev3.Percent { return &typev3.Percent{Value: 0} }
