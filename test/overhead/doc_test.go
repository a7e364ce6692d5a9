// Package overhead_test measures what the service costs: real Envoy with the
// real program beside Envoy alone, and beside proxies in Python. make test runs
// it at its smallest, only to see that it works; make bench-envoy at full size,
// which writes docs/benchmarks.md.
package overhead_test
