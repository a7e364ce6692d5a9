// Package tracing sends spans to an OpenTelemetry collector, if one is named.
package tracing
