// Package remote asks LMCache's registries that run elsewhere what is cached of
// a prompt: the coordinator of multiprocess mode (lmcache coordinator) and the
// controller of in-process mode (lmcache_controller), by their HTTP interfaces.
//
// Source.Ask does the asking, before the choice; Source.Match answers from what
// came back. Who is late, fails or is not there leaves the source without an
// answer, and a circuit breaker keeps from asking for a while.
package remote
