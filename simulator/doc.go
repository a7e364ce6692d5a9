// Package simulator is the step model of an LLM engine: chunked prefill,
// continuous batching, a prefix cache in blocks, a host tier behind it, and how
// long each step takes. It imitates vLLM's V1 scheduler as far as a router can
// see it.
//
// The package has no clock, no socket and no goroutine: the caller decides when
// a step begins and ends, in real time or in a replayed trace's.
package simulator
