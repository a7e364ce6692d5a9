package tracing

import (
	"errors"
	"fmt"
	"net"
)

// Config says where spans go. A span of ours covers a decision, from the first part
// of the request to the answer. It continues the trace of Envoy, where that traces,
// else the client's (traceparent); one that neither began is begun by chance.
type Config struct {
	// Endpoint is host:port of an OpenTelemetry collector that takes OTLP by gRPC;
	// empty: nothing is traced.
	Endpoint string `yaml:"endpoint"`
	// TLS speaks TLS with the collector, whose certificate must be signed by one of
	// the system's authorities.
	TLS bool `yaml:"tls"`
	// ServiceName is what spans are said to come from.
	ServiceName string `yaml:"service_name"`
	// SampleRatio is the share, 0 to 1, of requests without a trace that get one.
	// Whether a trace that goes on is recorded, is for whoever began it to say.
	SampleRatio float64 `yaml:"sample_ratio"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config { return Config{ServiceName: "firsttoken", SampleRatio: 0.01} }

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	if c.Endpoint != "" {
		if host, _, err := net.SplitHostPort(c.Endpoint); err != nil || host == "" {
			faults = append(faults, fmt.Errorf("%s.endpoint: %q is no host:port; write such as otel-collector:4317", path, c.Endpoint))
		}
	}
	if c.ServiceName == "" {
		faults = append(faults, fmt.Errorf("%s.service_name: is empty; write a name such as firsttoken", path))
	}
	if !(c.SampleRatio >= 0 && c.SampleRatio <= 1) { // nor NaN
		faults = append(faults, fmt.Errorf("%s.sample_ratio: is %g; write 0 to 1", path, c.SampleRatio))
	}
	return errors.Join(faults...)
}
