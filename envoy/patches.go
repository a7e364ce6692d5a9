package envoy

import (
	"errors"
	"fmt"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Patches are what a gateway that writes Envoy's configuration itself has to
// add to it, where it can be patched as Istio's can. Each is YAML of the Envoy
// message that its name says. What Bootstrap prints is made of the same parts.
type Patches struct {
	// Listener and Manager (a network filter) are merged into the listener that
	// clients reach and its HTTP connection manager. They leave other routes
	// there as they are, except that bodies of the service's length fit, and that
	// no client can send control headers.
	Listener, Manager *yaml.Node
	// Filter is an HTTP filter to insert before the router. It is off, and
	// switched on for the engines' route by Route.
	Filter *yaml.Node
	// Route is merged into the route to the engines, which must have no retry
	// policy: lists in it would be joined with ours.
	Route *yaml.Node
	// Pool is merged into the cluster of all engines, Service into that of the
	// service.
	Pool, Service *yaml.Node
}

// Patches are those for a gateway in which the service is the given cluster. The
// filter, and what switches it on for the route, have the given name, which no
// other ext_proc filter of the gateway may have: another service's would be
// switched on with ours. Of c only DecisionDeadline, MaxMessageTimeout and
// BodyLimit count. The error joins every fault.
func (c Config) Patches(filter, service string) (*Patches, error) {
	// What a patch has no part for.
	c.Route, c.Listen, c.Standby, c.BodyMode, c.Rescue = RouteOverrideHost, "127.0.0.1:0", nil, BodyBuffered, nil
	faults := c.ValidateResources()
	if filter == "" {
		faults = errors.Join(faults, errors.New("filter: is empty; write a name for it that is told from those of other installations"))
	}
	if service == "" {
		faults = errors.Join(faults, errors.New("service: is empty; write the name of its cluster in the gateway"))
	}
	if faults != nil {
		return nil, faults
	}
	p := &Patches{}
	for _, part := range []struct {
		to   **yaml.Node
		from proto.Message
	}{
		{&p.Listener, &listenerv3.Listener{PerConnectionBufferLimitBytes: c.listener().GetPerConnectionBufferLimitBytes()}},
		{&p.Manager, c.managerPatch(service)},
		{&p.Filter, c.filterPatch(filter, service)},
		{&p.Route, c.routePatch(filter)},
		{&p.Pool, &clusterv3.Cluster{
			LoadBalancingPolicy: &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{poolPolicy()}},
		}},
		{&p.Service, c.servicePatch()},
	} {
		node, err := toNode(part.from)
		if err != nil {
			return nil, err
		}
		*part.to = node
	}
	return p, nil
}

// MessageTimeout is how long Envoy waits for an answer that nothing holds.
func (c Config) MessageTimeout() time.Duration { return c.DecisionDeadline + deadlineMargin }

// BufferLimit is how many bytes of a body Envoy must be able to keep.
func (c Config) BufferLimit() int { return c.BodyLimit + bodyLimitMargin }

// managerPatch keeps control headers of clients out, and tells the service how
// requests end that it chose for.
func (c Config) managerPatch(service string) *listenerv3.Filter {
	log := accessLogTo(service)
	log.Filter = decided()
	return &listenerv3.Filter{
		Name: "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(&hcmv3.HttpConnectionManager{
			EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{c.withoutControlHeaders()},
			AccessLog:                     []*accesslogv3.AccessLog{log},
		})},
	}
}

// decided passes what the service has chosen for.
func decided() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_MetadataFilter{
		MetadataFilter: &accesslogv3.MetadataFilter{
			Matcher: &matcherv3.MetadataMatcher{
				Filter: Metadata,
				Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: KeyID}}},
				Value:  &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}},
			},
			MatchIfKeyNotFound: wrapperspb.Bool(false),
		},
	}}
}

func (c Config) filterPatch(name, service string) *hcmv3.HttpFilter {
	external := c.externalProcessor()
	external.GetGrpcService().GetEnvoyGrpc().ClusterName = service
	return &hcmv3.HttpFilter{
		Name: name, Disabled: true,
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(external)},
	}
}

func (c Config) routePatch(filter string) *routev3.Route {
	route := c.route("", nil)
	route.Match = nil
	// The gateway's own stream_idle_timeout cuts what queues for long.
	route.GetRoute().IdleTimeout = durationpb.New(0)
	route.TypedPerFilterConfig = map[string]*anypb.Any{filter: pack(&extprocv3.ExtProcPerRoute{
		Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: &extprocv3.ExtProcOverrides{}},
	})}
	return route
}

// servicePatch is how Envoy finds a service that is gone or drains. How it is
// reached is the gateway's affair.
func (c Config) servicePatch() *clusterv3.Cluster {
	c.Service = "127.0.0.1:0"
	own := c.serviceCluster()
	return &clusterv3.Cluster{
		ConnectTimeout: own.GetConnectTimeout(),
		CommonLbConfig: own.GetCommonLbConfig(),
		HealthChecks:   own.GetHealthChecks(),
	}
}

// toNode is m as YAML to put into a document.
func toNode(m proto.Message) (*yaml.Node, error) {
	text, err := toYAML(m)
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("envoy patch: %w", err)
	}
	return document.Content[0], nil
}
