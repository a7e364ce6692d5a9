// Package experiments repeats the two experiments of the proposal of TTFT
// routing on real Envoy, in real time, with simulated engines: each policy gets
// the same requests, in fresh processes, run after run in turn. It compares the
// medians with what must be reached and writes a page about it.
package experiments
