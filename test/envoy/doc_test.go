// Package envoy_test runs the service behind a real Envoy: every body mode, dead
// engines and a dead service, load, and clients that lie.
package envoy_test
