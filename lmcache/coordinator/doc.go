// Package coordinator is the coordinator of LMCache's multiprocess mode: the
// HTTP service that lmcache server's --coordinator-url points at. Each server
// holds the cache of a node, in memory (tier l1) and in storage (tier l2), and
// reports what it stores and deletes.
//
// A Directory applies the reports, answers what each endpoint can load of a
// prompt as a scoring.CacheIndex, and serves the part of the real coordinator's
// HTTP interface that servers and tools use. What the wire types mean was read
// from LMCache 0.5.6, lmcache/v1/mp_coordinator.
package coordinator
