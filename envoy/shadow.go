package envoy

import (
	"errors"
	"fmt"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	roundv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Shadow makes an Envoy that shows the service every request and never asks it:
// requests go where they would without it.
type Shadow struct {
	// Balancer spreads requests over the engines.
	Balancer Balancer
	// Router is the host:port of another router that takes all requests in place
	// of the engines; empty: Envoy dials them itself.
	Router string
	// Streams is how many requests this Envoy shows at a time, from their first
	// byte to their first token; those beyond are not shown.
	Streams int
}

// Balancer is a way in which Envoy itself chooses an engine.
type Balancer string

// The balancers.
const (
	LeastRequest Balancer = "least_request"
	RoundRobin   Balancer = "round_robin"
)

// DefaultShadowStreams is what costs Envoy 4 MB where the service hangs, with
// bodies of 20 KB; its default of 1024 streams was measured to cost 130 MB.
const DefaultShadowStreams = 100

// clusterShadow is the way to the service for what it is shown: of its own, so that
// its limit is nobody else's, and so that the access log does not wait behind bodies:
// on one connection with them, one record in eight was dropped.
const clusterShadow = "firsttoken-shadow"

// deferredCloseTimeout is how long Envoy leaves a stream on which it only shows
// something open after the request, for the service to take the rest: with 0.1 s, and with 1 s, a service on a busy
// machine lost short requests. The service ends each stream itself when it has seen
// enough, so only one that hangs leaves them open, up to the limit.
const deferredCloseTimeout = 5 * time.Second

func (s *Shadow) validate() error {
	if s == nil {
		return nil
	}
	var faults []error
	if s.Balancer != LeastRequest && s.Balancer != RoundRobin {
		faults = append(faults, fmt.Errorf("shadow: balancer %q is unknown; write %s or %s", s.Balancer, LeastRequest, RoundRobin))
	}
	if s.Streams < 1 {
		faults = append(faults, fmt.Errorf("shadow: %d streams; write 1 or more", s.Streams))
	}
	if s.Router != "" {
		if _, _, err := splitAddress(s.Router); err != nil {
			faults = append(faults, fmt.Errorf("shadow: router: %w", err))
		}
	}
	return errors.Join(faults...)
}

// shadowFaults joins what is wrong with the shadow of c.
func (c Config) shadowFaults() error {
	if c.Shadow == nil {
		return nil
	}
	faults := []error{c.Shadow.validate()}
	if c.Route == RouteClusterHeader {
		faults = append(faults, fmt.Errorf("shadow: nobody is told a choice, so there is no route %s; write %s", RouteClusterHeader, RouteOverrideHost))
	}
	if c.BodyMode == BodyFullDuplex {
		faults = append(faults, fmt.Errorf("shadow: bodies are shown as they pass, whatever the body mode, so %s means nothing; write %s", BodyFullDuplex, BodyBuffered))
	}
	return errors.Join(faults...)
}

// shadowFilter shows the service every request. Bodies must be streamed: the filter
// takes other modes in observability mode and then shows none. Response headers
// come long before the first token and say who serves.
func (c Config) shadowFilter() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name: "firsttoken-shadow",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&extprocv3.ExternalProcessor{
			GrpcService:          grpcService(clusterShadow),
			ObservabilityMode:    true,
			DeferredCloseTimeout: durationpb.New(deferredCloseTimeout),
			FailureModeAllow:     true,
			ProcessingMode: &extprocv3.ProcessingMode{
				RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
				RequestBodyMode:     extprocv3.ProcessingMode_STREAMED,
				RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
				ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
				ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
				ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
			},
			ResponseAttributes: []string{AttributeCode, AttributeUpstream},
		})},
	}
}

// shadowRouter also tells the service of each request as it leaves for an engine: of an
// answer that is not streamed nothing else does before its end.
func (c Config) shadowRouter() *hcmv3.HttpFilter {
	logs := c.accessLogs()
	for _, log := range logs {
		log.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_LogTypeFilter{LogTypeFilter: &accesslogv3.LogTypeFilter{
			Types: []dataaccesslogv3.AccessLogType{dataaccesslogv3.AccessLogType_UpstreamPoolReady},
		}}}
	}
	return &hcmv3.HttpFilter{
		Name: "envoy.filters.http.router",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{
			UpstreamLog: logs,
			UpstreamLogOptions: &routerv3.Router_UpstreamAccessLogOptions{
				FlushUpstreamLogOnUpstreamStream: true,
			},
		})},
	}
}

// shadowCluster is serviceCluster with a limit, so that a service that hangs costs
// Envoy little memory and nothing else.
func (c Config) shadowCluster() *clusterv3.Cluster {
	cluster := c.serviceCluster()
	cluster.Name = clusterShadow
	cluster.LoadAssignment.ClusterName = clusterShadow
	cluster.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxRequests:        wrapperspb.UInt32(uint32(c.Shadow.Streams)), //nolint:gosec // validated to be positive
		MaxPendingRequests: wrapperspb.UInt32(uint32(c.Shadow.Streams)), //nolint:gosec // validated to be positive
	}}}
	return cluster
}

// balancer spreads requests without regard to anything that we say.
func (s *Shadow) balancer() *clusterv3.LoadBalancingPolicy_Policy {
	if s.Balancer == RoundRobin {
		return policy("envoy.load_balancing_policies.round_robin", &roundv3.RoundRobin{})
	}
	return policy("envoy.load_balancing_policies.least_request", &leastv3.LeastRequest{})
}

// ShadowSnippet is what an Envoy that runs today needs to show the service its
// requests, as YAML: an entry for http_filters before the router, the router itself
// with its log, an entry for access_log, and two clusters. The error joins every fault
// of c, of which Service, ServiceTLS and Shadow count.
func ShadowSnippet(c Config) ([]byte, error) {
	c.Admin = "127.0.0.1:0"
	if err := errors.Join(c.validateService(), c.Shadow.validate()); err != nil {
		return nil, err
	}
	parts := &bootstrapv3.Bootstrap_StaticResources{Clusters: c.serviceClusters()}
	manager := &hcmv3.HttpConnectionManager{
		HttpFilters: []*hcmv3.HttpFilter{c.shadowFilter(), c.shadowRouter()},
		AccessLog:   c.accessLogs(),
	}
	above, err := toYAML(manager)
	if err != nil {
		return nil, err
	}
	below, err := toYAML(parts)
	if err != nil {
		return nil, err
	}
	text := "# Into the http_connection_manager, the first filter before all that answer by themselves;\n" +
		"# the router filter and the access log may stay as they are where Envoy does not dial the engines.\n"
	return append(append([]byte(text), above...), append([]byte("# Into static_resources.\n"), below...)...), nil
}
