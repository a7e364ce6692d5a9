package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Provider makes spans and sends them in the background: at most 2,048 wait to be
// sent, further ones are dropped. Safe for concurrent use.
type Provider struct{ sdk *sdk.TracerProvider }

// scope names who makes the spans.
const scope = "github.com/firsttoken/firsttoken"

// warnEvery is the least time between two lines of the log about a collector that
// does not take spans.
const warnEvery = time.Minute

// New makes a Provider as a valid cfg says; nil where nothing is traced. Nothing is
// dialled before there is a span to send, so a collector that is down is no error.
// version is that of the service.
func New(ctx context.Context, cfg Config, version string, log *slog.Logger) (*Provider, error) {
	if cfg.Endpoint == "" {
		return nil, nil //nolint:nilnil // off is no fault
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(cfg.Endpoint)}
	if !cfg.TLS {
		options = append(options, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("tracing: endpoint %s: %w", cfg.Endpoint, err)
	}
	otel.SetErrorHandler(&warner{log: log, endpoint: cfg.Endpoint})
	return &Provider{sdk.NewTracerProvider(
		sdk.WithBatcher(exporter),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(cfg.SampleRatio))),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", cfg.ServiceName), attribute.String("service.version", version))),
	)}, nil
}

// Tracer makes spans; nil where p is.
func (p *Provider) Tracer() trace.Tracer {
	if p == nil {
		return nil
	}
	return p.sdk.Tracer(scope)
}

// Close sends what waits until ctx ends. The error says that spans were lost. A
// nil Provider has nothing to send.
func (p *Provider) Close(ctx context.Context) error {
	if p == nil {
		return nil
	}
	if err := p.sdk.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("tracing: the last spans were not sent: %w", err)
	}
	return nil
}

// warner logs what goes wrong with sending, but not each time.
type warner struct {
	log      *slog.Logger
	endpoint string
	last     atomic.Int64 // nanoseconds of Unix time of the last line
}

// Handle is called by the OpenTelemetry library from its own goroutine.
func (w *warner) Handle(err error) {
	now, last := time.Now().UnixNano(), w.last.Load()
	if now-last >= int64(warnEvery) && w.last.CompareAndSwap(last, now) {
		w.log.Warn("spans cannot be sent, requests are served all the same; check tracing.endpoint and the collector", "endpoint", w.endpoint, "error", err)
	}
}
