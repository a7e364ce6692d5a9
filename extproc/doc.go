// Package extproc is the conversation with Envoy: one ext_proc stream is one
// request, one decision and what became of it. The same server takes Envoy's
// access log, which tells the end of a request after its stream was let go,
// and answers gRPC health checks.
//
// A stream is owned by its goroutine and never shared. What outlives it is the
// reservation of its decision, found again by the decision's id.
package extproc
