package extproc

import (
	"context"

	attr "go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	grpcmd "google.golang.org/grpc/metadata"

	"github.com/firsttoken/firsttoken/scoring"
)

// spanName is that of the span of a decision.
const spanName = "firsttoken.decide"

// traced makes the span of the decision that was just answered, from the first part
// of the request on. A nil decision left the choice to Envoy, unless refusal says why
// there is no choice, in words of ours: what errors say may quote the request.
func (st *stream) traced(d *scoring.Decision, refusal string) {
	if st.tracer == nil {
		return
	}
	_, span := st.tracer.Start(st.traceContext(), spanName, trace.WithTimestamp(st.began), trace.WithSpanKind(trace.SpanKindServer))
	defer span.End()
	if !span.IsRecording() {
		return
	}
	if refusal != "" {
		span.SetStatus(codes.Error, refusal)
		return
	}
	if d == nil {
		span.SetAttributes(attr.Bool("firsttoken.left_to_envoy", true))
		return
	}
	choice := &d.Candidates[0]
	span.SetAttributes(
		attr.String("firsttoken.id", d.ID),
		attr.String("gen_ai.request.model", d.Model),
		attr.String("firsttoken.policy", d.Policy),
		attr.String("firsttoken.reason", string(d.Reason)),
		attr.String("firsttoken.endpoint", choice.Endpoint.Name),
		attr.String("server.address", choice.Endpoint.Address),
		attr.Int("firsttoken.candidates", len(d.Candidates)),
		attr.Int("firsttoken.prompt_tokens", int(d.Prompt.Length())),
		attr.Int("firsttoken.cached_tokens", int(choice.Cached)),
		attr.String("firsttoken.token_source", string(d.Prompt.Source)),
		attr.Float64("firsttoken.estimate_seconds", choice.Estimate.Seconds()),
		attr.Float64("firsttoken.held_seconds", d.Held.Seconds()),
	)
}

// traceContext is the trace that the span goes on with: Envoy's, which it sends with
// its call where it traces, else that of the request's own headers.
func (st *stream) traceContext() context.Context {
	ctx := st.conn.Context()
	propagator := propagation.TraceContext{}
	if md, ok := grpcmd.FromIncomingContext(ctx); ok {
		if traced := propagator.Extract(ctx, carrier(md)); trace.SpanContextFromContext(traced).IsValid() {
			return traced
		}
	}
	return propagator.Extract(ctx, propagation.MapCarrier{"traceparent": st.head.traceparent, "tracestate": st.head.tracestate})
}

// carrier lets a propagator read what came with a gRPC call.
type carrier grpcmd.MD

func (m carrier) Get(key string) string {
	if values := grpcmd.MD(m).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

func (m carrier) Set(key, value string) { grpcmd.MD(m).Set(key, value) }

func (m carrier) Keys() []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	return keys
}
