package envoy

import (
	"errors"
	"fmt"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	rulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Rescue lets a request whose engine gives no first token in time go to the
// next best endpoint. Two parts of Envoy do it together: the deadline of each
// try, which the service sets by a header, and a filter of the pool's cluster
// that shows the service each try's answer and keeps its headers back until the
// first chunk of the body. Without that filter the deadline would be over at the
// engine's headers, which leave it long before its first token.
type Rescue struct {
	// Longest is the longest deadline that the service sets for one try. Envoy
	// waits for the service with an answer's headers longer than that: where it
	// did not, it would let them go to the client, and a try that gave headers
	// could not be given up any more.
	Longest time.Duration
}

// Headers by which the service bounds the tries of one request. They are
// Envoy's own, and no client's.
const (
	// HeaderTryTimeout is the time in milliseconds until a try's answer must have
	// begun.
	HeaderTryTimeout = "x-envoy-upstream-rq-per-try-timeout-ms"
	// HeaderMaxRetries is how many tries may follow the first.
	HeaderMaxRetries = "x-envoy-max-retries"
)

// AttributeAttempt is the number of a try, from 1 on. Only the filter of the
// pool's cluster asks for it: it tells the service which filter it speaks with.
const AttributeAttempt = "upstream.request_attempt_count"

// routerPrefixes begin the headers by which a client could set timeouts and
// retries of Envoy's router.
var routerPrefixes = []string{"x-envoy-upstream-", "x-envoy-max-retries", "x-envoy-retry-", "x-envoy-retriable-", "x-envoy-hedge-"}

// rescueMargin is how much longer than a deadline Envoy waits for the service
// with an answer's headers.
const rescueMargin = 5 * time.Second

// MaxRescueDeadline is the longest deadline that Envoy can wait for.
const MaxRescueDeadline = maxMessageTimeout - rescueMargin

// rescueFaults joins what is wrong with the rescue of c.
func (c Config) rescueFaults() error {
	if c.Rescue == nil {
		return nil
	}
	var faults []error
	if c.Rescue.Longest <= 0 || c.Rescue.Longest > MaxRescueDeadline {
		faults = append(faults, fmt.Errorf("rescue: the longest deadline is %s; write the service's own, at most %s", c.Rescue.Longest, MaxRescueDeadline))
	}
	if c.Route == RouteClusterHeader {
		faults = append(faults, errors.New("rescue (server.rescue.enabled): a cluster of route cluster-header holds one endpoint, so there is no other for a second try; "+
			"write route override-host, or server.rescue.enabled: false"))
	}
	return errors.Join(faults...)
}

// holdFilters are the filters of a cluster of engines: one that shows the
// service each try's answer before anything of it reaches the router, and the
// codec that must end the chain. Nil where there is no rescue.
func (c Config) holdFilters() []*hcmv3.HttpFilter {
	if c.Rescue == nil {
		return nil
	}
	hold := &extprocv3.ExternalProcessor{
		GrpcService: grpcService(clusterService),
		// A service that is down costs the rescue, never the answer.
		FailureModeAllow: true,
		MessageTimeout:   durationpb.New(c.Rescue.Longest + rescueMargin),
		// The first chunk of the body must reach the service while the headers
		// wait for its answer.
		SendBodyWithoutWaitingForHeaderResponse: true,
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SKIP,
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
		},
		MetadataOptions: &extprocv3.MetadataOptions{
			ForwardingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{MetadataBalancer, Metadata}},
		},
		ResponseAttributes: []string{AttributeUpstream, AttributeAttempt, AttributePath},
	}
	return []*hcmv3.HttpFilter{
		{Name: "firsttoken.hold", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(hold)}},
		{Name: "envoy.filters.http.upstream_codec", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&codecv3.UpstreamCodec{})}},
	}
}

// obeyDeadlines makes the filter that asks for the choice take the headers of a
// deadline, which it ignores silently without leave. The filter of the cluster
// tells what the response phase would.
func obeyDeadlines(p *extprocv3.ExternalProcessor) {
	p.MutationRules = &rulesv3.HeaderMutationRules{AllowAllRouting: wrapperspb.Bool(true), AllowEnvoy: wrapperspb.Bool(true)}
	p.ProcessingMode.ResponseBodyMode = extprocv3.ProcessingMode_NONE
	p.ResponseAttributes = nil
}

// withRescue makes a route's retries include a try that was given up, or that
// ended before its first token.
func withRescue(r *routev3.RetryPolicy) *routev3.RetryPolicy {
	r.RetryOn += ",gateway-error"
	return r
}

// localReplies words what Envoy itself answers for engines as they would: all
// tries were given up, or none reached an engine. The service's own refusals
// have no such flag and stay as they are.
func localReplies() *hcmv3.LocalReplyConfig {
	mapper := func(kind, message string, flags ...string) *hcmv3.ResponseMapper {
		value := structpb.NewStringValue
		return &hcmv3.ResponseMapper{
			Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
				ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: flags},
			}},
			BodyFormatOverride: &corev3.SubstitutionFormatString{
				ContentType: "application/json",
				Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: map[string]*structpb.Value{
					"error": namespaceValue(map[string]*structpb.Value{
						"message": value(message), "type": value(kind), "param": structpb.NewNullValue(), "code": value("%RESPONSE_CODE%"),
					}),
				}}},
			},
		}
	}
	return &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{
		mapper("GatewayTimeoutError", "No engine gave a first token in time.", "UT"),
		mapper("ServiceUnavailableError", "No engine could be reached.", "UF", "UO", "UH", "UR", "UC", "URX"),
	}}
}

func namespaceValue(fields map[string]*structpb.Value) *structpb.Value {
	return structpb.NewStructValue(&structpb.Struct{Fields: fields})
}
