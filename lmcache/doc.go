// Package lmcache knows what each engine's LMCache holds. It hosts the
// controller that LMCache's workers report to, computes the same chunk keys as
// they do, and answers how much of a prompt each endpoint has cached.
//
// A prompt's token ids become chunk keys by the settings of a KeyGroup. The
// Index maps chunk keys to the workers that reported them. The mapping says
// which endpoint an LMCache instance belongs to. Source puts the three together
// as a scoring.CacheIndex.
package lmcache
