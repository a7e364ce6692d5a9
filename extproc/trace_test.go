package extproc

import (
	"context"
	"testing"
	"testing/synctest"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	grpcmd "google.golang.org/grpc/metadata"
)

const (
	clientTrace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	envoyTrace  = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)

// A decision's span goes on with Envoy's trace, else with the client's, else begins
// one; a client's trace that is no trace is left alone.
func TestSpanContinuesTheTrace(t *testing.T) {
	for _, c := range []struct {
		name, header, grpc string
		trace, parent      string // empty: one of our own
	}{
		{"the client's", clientTrace, "", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"},
		{"Envoy's before the client's", clientTrace, envoyTrace, "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"},
		{"nobody's", "", "", "", ""},
		{"broken", "00-zz-b7ad6b7169203331-01", "00-1-2-3", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spans := tracetest.NewSpanRecorder()
				f := newFixture(t, pool(1), func(_ *Config, d *Deps) {
					d.Tracer = sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)).Tracer("test")
				})
				stream := f.openAs(t, func(ctx context.Context) context.Context {
					return grpcmd.NewIncomingContext(ctx, grpcmd.Pairs("traceparent", c.grpc))
				}, buffered)
				stream.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "traceparent", c.header))
				stream.one(t, reqBody("{}", true))
				ended := spans.Ended()
				if len(ended) != 1 {
					t.Fatalf("%d spans, want 1", len(ended))
				}
				span := ended[0]
				if got := span.SpanContext().TraceID().String(); c.trace != "" && got != c.trace {
					t.Errorf("trace %s, want %s", got, c.trace)
				}
				if got := span.Parent(); got.IsValid() != (c.parent != "") || (c.parent != "" && got.SpanID().String() != c.parent) {
					t.Errorf("parent %s, want %q", got.SpanID(), c.parent)
				}
				found := map[string]string{}
				for _, kv := range span.Attributes() {
					found[string(kv.Key)] = kv.Value.String()
				}
				if found["firsttoken.endpoint"] != "10.0.0.1:8000" || found["firsttoken.id"] != f.decided[0].ID || found["firsttoken.prompt_tokens"] != "2" {
					t.Errorf("attributes %v", found)
				}
			})
		})
	}
}

// A refusal is a span too, and says what was refused.
func TestSpanOfARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans := tracetest.NewSpanRecorder()
		f := newFixture(t, nil, func(_ *Config, d *Deps) {
			d.Tracer = sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)).Tracer("test")
		})
		stream := f.open(t, buffered, streamed)
		stream.one(t, completion())
		stream.one(t, reqBody("{}", true))
		if ended := spans.Ended(); len(ended) != 1 || ended[0].Status().Description != "firsttoken_no_endpoint" {
			t.Errorf("spans %v", ended)
		}
	})
}
