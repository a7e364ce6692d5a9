package extproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// maxChunk is the largest piece of a body sent back at once: some proxies stop
// at 64 KiB a message.
const maxChunk = 62_000

// part is the part of request or response that a reply answers.
type part uint8

const (
	requestHeaders part = iota
	requestBody
	requestTrailers
	responseHeaders
	responseBody
	responseTrailers
)

// replies builds every message that is sent to a client. Immutable.
type replies struct {
	fallbacks                 int
	header, metadata, cluster bool
	// unset are the control headers that a choice does not overwrite.
	unset  []string
	rescue RescueConfig
}

func newReplies(cfg Config) replies {
	r := replies{
		fallbacks: cfg.Fallbacks,
		header:    cfg.DestinationHeader, metadata: cfg.DestinationMetadata, cluster: cfg.ClusterHeader,
		rescue: cfg.Rescue,
	}
	for _, name := range envoy.ControlHeaders {
		if (name == envoy.HeaderEndpoint && r.header) || (name == envoy.HeaderCluster && r.cluster) {
			continue
		}
		r.unset = append(r.unset, name)
	}
	return r
}

// headers answers the request's headers with the choice. Where there is none
// (yet), the client's control headers are removed all the same.
func (r replies) headers(d *scoring.Decision) *extprocv3.ProcessingResponse {
	return r.choice(requestHeaders, d)
}

// requestBody answers a buffered body with the choice; Envoy holds the headers
// back until then.
func (r replies) requestBody(d *scoring.Decision) *extprocv3.ProcessingResponse {
	return r.choice(requestBody, d)
}

// choice answers a part of the request that leaves only after the answer.
func (r replies) choice(p part, d *scoring.Decision) *extprocv3.ProcessingResponse {
	reply := answer(p, &extprocv3.CommonResponse{
		HeaderMutation: r.mutation(d),
		// The mutation may decide which route matches.
		ClearRouteCache: true,
	})
	if d != nil {
		reply.DynamicMetadata = r.dynamicMetadata(d)
	}
	return reply
}

// mutation sets the control headers that tell of d and removes all others.
func (r replies) mutation(d *scoring.Decision) *extprocv3.HeaderMutation {
	m := &extprocv3.HeaderMutation{RemoveHeaders: envoy.ControlHeaders}
	if d != nil {
		m = r.told(d)
	}
	r.bound(m, d)
	return m
}

// told are the control headers that tell of d.
func (r replies) told(d *scoring.Decision) *extprocv3.HeaderMutation {
	m := &extprocv3.HeaderMutation{RemoveHeaders: r.unset}
	if r.header {
		m.SetHeaders = append(m.SetHeaders, setHeader(envoy.HeaderEndpoint, r.destinations(d)))
	}
	switch cluster := d.Endpoint().Cluster; {
	case r.cluster && cluster != "":
		m.SetHeaders = append(m.SetHeaders, setHeader(envoy.HeaderCluster, cluster))
	case r.cluster:
		m.RemoveHeaders = append(slices.Clip(r.unset), envoy.HeaderCluster)
	}
	return m
}

// setHeader replaces a header. Some clients read raw_value only.
func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// destinations are the choice and the next best, "ip:port,ip:port". All were
// ready when they were weighed.
func (r replies) destinations(d *scoring.Decision) string {
	n := min(len(d.Candidates), 1+r.fallbacks)
	if n == 1 {
		return d.Endpoint().Address
	}
	addresses := make([]string, n)
	for i := range addresses {
		addresses[i] = d.Candidates[i].Endpoint.Address
	}
	return strings.Join(addresses, ",")
}

// dynamicMetadata is the choice for load balancers, and for access log and
// response headers its id and reason.
func (r replies) dynamicMetadata(d *scoring.Decision) *structpb.Struct {
	own := map[string]*structpb.Value{
		envoy.KeyID:       structpb.NewStringValue(d.ID),
		envoy.KeyEndpoint: structpb.NewStringValue(d.Endpoint().Address),
		envoy.KeyReason:   structpb.NewStringValue(string(d.Reason)),
	}
	if d.Arm != "" {
		own[envoy.KeyArm] = structpb.NewStringValue(d.Arm)
	}
	namespaces := map[string]*structpb.Value{envoy.Metadata: namespace(own)}
	if r.metadata {
		namespaces[envoy.MetadataBalancer] = namespace(map[string]*structpb.Value{
			envoy.HeaderEndpoint: structpb.NewStringValue(r.destinations(d)),
		})
	}
	return &structpb.Struct{Fields: namespaces}
}

func namespace(fields map[string]*structpb.Value) *structpb.Value {
	return structpb.NewStructValue(&structpb.Struct{Fields: fields})
}

// passes answer a part without changing it, one for each part; they are shared
// and never written to.
var passes = [...]*extprocv3.ProcessingResponse{
	requestHeaders:   answer(requestHeaders, nil),
	requestBody:      answer(requestBody, nil),
	requestTrailers:  answer(requestTrailers, nil),
	responseHeaders:  answer(responseHeaders, nil),
	responseBody:     answer(responseBody, nil),
	responseTrailers: answer(responseTrailers, nil),
}

// pass lets a part through unchanged. The caller must not change the result.
func pass(p part) *extprocv3.ProcessingResponse { return passes[p] }

// chunk is a piece of a body in full duplex, at most maxChunk bytes.
func chunk(p part, body []byte, end bool) *extprocv3.ProcessingResponse {
	return answer(p, &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{
			StreamedResponse: &extprocv3.StreamedBodyResponse{Body: body, EndOfStream: end},
		},
	}})
}

// answer wraps c as the answer to a part; trailers take none.
func answer(p part, c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
	reply := &extprocv3.ProcessingResponse{}
	switch p {
	case requestHeaders:
		reply.Response = &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: c}}
	case requestBody:
		reply.Response = &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: c}}
	case requestTrailers:
		reply.Response = &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}
	case responseHeaders:
		reply.Response = &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{Response: c}}
	case responseBody:
		reply.Response = &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{Response: c}}
	case responseTrailers:
		reply.Response = &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}
	}
	return reply
}

// anthropicError is the body of an error on /v1/messages, as vLLM writes it
// (entrypoints/anthropic: the type and message of its other errors).
type anthropicError struct {
	Type  string          `json:"type"` // always error
	Error anthropicDetail `json:"error"`
}

type anthropicDetail struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// wording is the fault in the shape that clients of the request's path know.
func (st *stream) wording(fault *prompt.RequestError) any {
	if path, _, _ := strings.Cut(st.head.path, "?"); path == prompt.MessagesPath {
		return anthropicError{"error", anthropicDetail{fault.Type, fault.Message}}
	}
	return fault
}

// refuse answers the client itself, in the shape of the engine's own errors.
// details is what Envoy's access log shows as the reason.
func refuse(fault any, code int, details string) *extprocv3.ProcessingResponse {
	body, err := json.Marshal(fault)
	if err != nil {
		panic(err) // strings and a number always marshal
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode(code)}, //nolint:gosec // an HTTP status
			Headers: &extprocv3.HeaderMutation{
				SetHeaders: []*corev3.HeaderValueOption{setHeader("content-type", "application/json")},
			},
			Body:    body,
			Details: details,
		},
	}}
}

// faultOf is the one map from errors to HTTP. endpoints are those of now, for
// the names of their models; model is the one asked for.
func faultOf(err error, model string, endpoints []scoring.Endpoint, bodyLimit int) (fault *prompt.RequestError, details string) {
	var pin *unknownPinError
	switch {
	case errors.As(err, &fault):
		return fault, "firsttoken_bad_request"
	case errors.As(err, &pin):
		return &prompt.RequestError{
			Status: http.StatusNotFound, Type: "NotFoundError", Param: "id",
			Message: fmt.Sprintf("The engine `%s` does not exist.", pin.id),
		}, "firsttoken_unknown_engine"
	case errors.Is(err, errBodyTooLarge):
		return &prompt.RequestError{
			Status: http.StatusRequestEntityTooLarge, Type: "RequestEntityTooLargeError",
			Message: fmt.Sprintf("The request body is larger than %d bytes.", bodyLimit),
		}, "firsttoken_body_too_large"
	case errors.Is(err, scoring.ErrModelRequired):
		return &prompt.RequestError{
			Status: http.StatusBadRequest, Type: "BadRequestError", Param: "model",
			Message: "The request names no model and more than one is served. Valid aliases: " + modelNames(endpoints) + ".",
		}, "firsttoken_model_required"
	case errors.Is(err, scoring.ErrUnknownModel):
		return &prompt.RequestError{
			Status: http.StatusNotFound, Type: "NotFoundError", Param: "model",
			Message: fmt.Sprintf("The model `%s` does not exist. Valid aliases: %s.", model, modelNames(endpoints)),
		}, "firsttoken_unknown_model"
	}
	// No endpoint is ready, or none of those that the request is restricted to is
	// there: scoring.ErrNoEndpoint, scoring.ErrUnknownEndpoint.
	return &prompt.RequestError{
		Status: http.StatusServiceUnavailable, Type: "ServiceUnavailableError",
		Message: "No engine that serves this request is ready.",
	}, "firsttoken_no_endpoint"
}

// modelNames lists what may be asked for, sorted.
func modelNames(endpoints []scoring.Endpoint) string {
	var names []string
	for _, e := range endpoints {
		names = append(names, e.Models...)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}
