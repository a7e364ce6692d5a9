// Package kvevents is a source of cache truth fed by the engines themselves:
// it subscribes to the KV cache events that vLLM publishes over ZeroMQ and
// knows which blocks of which prompts each engine holds, and where.
//
// It needs to know nothing of how engines hash. Every event names the token
// ids of its blocks and the hash of the block before; the blocks are chained
// anew by scoring.ChainBlock, found by the engine's hash, compared by our own.
// A cache_salt or an adapter is told with the blocks and begins a chain of its
// own.
package kvevents
