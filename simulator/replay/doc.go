// Package replay runs a workload over simulated engines on a virtual clock and
// routes it with the scoring code that the service runs, so that policies can
// be compared on equal terms and faster than time passes.
//
// What the router sees is what it sees in service: prompts, KV events some time
// after they happened (or only what it routed itself), each first token and each
// end. It sees those at once. The same setup and workload give the same report,
// bit by bit.
package replay
