package tracing

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// spans is a collector that keeps what it is sent.
type spans struct {
	collector.UnimplementedTraceServiceServer
	got chan *tracev1.ResourceSpans
}

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	for _, spans := range r.GetResourceSpans() {
		s.got <- spans
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// startCollector serves until the test ends.
func startCollector(t *testing.T) (*spans, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, server := &spans{got: make(chan *tracev1.ResourceSpans, 16)}, grpc.NewServer()
	collector.RegisterTraceServiceServer(server, s)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return s, l.Addr().String()
}

func TestSpansReachTheCollectorAtTheEnd(t *testing.T) {
	received, address := startCollector(t)
	cfg := DefaultConfig()
	cfg.Endpoint, cfg.ServiceName, cfg.SampleRatio = address, "picker", 1
	p, err := New(t.Context(), cfg, "v1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, span := p.Tracer().Start(t.Context(), "a decision")
	span.End()
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := <-received.got
	if name := got.GetScopeSpans()[0].GetSpans()[0].GetName(); name != "a decision" {
		t.Errorf("span %q", name)
	}
	if text := got.GetResource().String(); !strings.Contains(text, "picker") || !strings.Contains(text, "v1") {
		t.Errorf("resource %s", text)
	}
}

// Whoever began a trace says whether it is recorded, whatever our own share is.
func TestSamplingFollowsTheParent(t *testing.T) {
	for _, c := range []struct {
		name    string
		ratio   float64
		flags   trace.TraceFlags
		records bool
	}{
		{"recorded by the client", 0, trace.FlagsSampled, true},
		{"not recorded by the client", 1, 0, false},
	} {
		cfg := DefaultConfig()
		cfg.Endpoint, cfg.SampleRatio = "127.0.0.1:1", c.ratio
		p, err := New(t.Context(), cfg, "v1", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: c.flags, Remote: true})
		_, span := p.Tracer().Start(trace.ContextWithRemoteSpanContext(t.Context(), parent), "a decision")
		if span.IsRecording() != c.records {
			t.Errorf("%s: recording %t", c.name, span.IsRecording())
		}
	}
}

func TestOff(t *testing.T) {
	p, err := New(t.Context(), DefaultConfig(), "v1", slog.New(slog.DiscardHandler))
	if p != nil || err != nil {
		t.Fatalf("%v, %v", p, err)
	}
	if p.Tracer() != nil {
		t.Error("a tracer, but nothing is traced")
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	cfg := Config{Endpoint: "collector", SampleRatio: 2}
	err := cfg.Validate("tracing")
	for _, want := range []string{"tracing.endpoint: \"collector\"", "tracing.service_name", "tracing.sample_ratio: is 2"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v names no %s", err, want)
		}
	}
	if err := DefaultConfig().Validate("tracing"); err != nil {
		t.Error(err)
	}
}
