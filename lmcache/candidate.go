package lmcache

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The settings that engines are met with, the likeliest first. Of versions it
// is one of each row of settings that give different keys.
var (
	usualAlgorithms = []string{"builtin", "sha256_cbor", "sha256", "xxhash", "xxhash_cbor"}
	usualLMCache    = []string{"0.5.6", "0.4.5", "0.3.15", "0.3.3"}
	usualVLLM       = []string{"0.33.0", "0.9.2", NoVLLM}
	usualPython     = []string{"3.12", "3.10"}
	usualSeeds      = []string{"0", SeedUnset, "42", "123", "1234", "1", "random"}
	usualChunkSizes = []int{256, 16, 32, 64, 128, 512, 1024, 2048, 4096, maxChunkSize}
)

// Of other chunk sizes all multiples of oddChunkStep up to maxOddChunk are
// tried: LMCache wants a multiple of vLLM's block size, and of models with
// several kinds of layers that is a number such as 528.
const (
	oddChunkStep = 16
	maxOddChunk  = 1056
)

// candidate is settings that an engine might have.
type candidate struct {
	KeyGroup
	scheme
}

// withChunkSize is the candidate with other chunks.
func (c candidate) withChunkSize(n int) candidate {
	c.ChunkSize, c.chunkSize = n, n
	return c
}

// candidates are the settings to try for engines that were said to have those
// of base: base itself first, then the more that differs, the later. Each makes
// other keys than all before it.
type candidates struct {
	// schemes have base's chunk size; of each, distance tells in how many
	// settings it differs from base.
	schemes  []candidate
	distance []int
	sizes    []int
}

func newCandidates(base KeyGroup) *candidates {
	base = base.Or(DefaultKeyGroup())
	seen := make(map[scheme]bool)
	cs := &candidates{sizes: chunkSizes(base.ChunkSize)}
	type far struct {
		candidate
		distance int
	}
	var found []far
	add := func(g KeyGroup) {
		s, faults := g.scheme()
		// Whether tails are kept is found out by itself.
		full := s
		full.saveTail = false
		if len(faults) > 0 || seen[full] {
			return
		}
		seen[full] = true
		found = append(found, far{candidate{g, s}, g.distance(base)})
	}
	add(base)
	var all []KeyGroup
	for _, algorithm := range first(base.Algorithm, usualAlgorithms) {
		for _, lmcache := range first(base.LMCacheVersion, usualLMCache) {
			for _, vllm := range first(base.VLLMVersion, usualVLLM) {
				for _, python := range first(base.PythonVersion, usualPython) {
					for _, seed := range first(base.PythonHashSeed, usualSeeds) {
						g := base
						g.Algorithm, g.LMCacheVersion, g.VLLMVersion, g.PythonVersion, g.PythonHashSeed, g.NoneHash = algorithm, lmcache, vllm, python, seed, ""
						all = append(all, g)
					}
				}
			}
		}
	}
	// The nearest of several that give equal keys is the one to name.
	slices.SortStableFunc(all, func(a, b KeyGroup) int { return cmp.Compare(a.distance(base), b.distance(base)) })
	for _, g := range all {
		add(g)
	}
	for _, f := range found {
		cs.schemes, cs.distance = append(cs.schemes, f.candidate), append(cs.distance, f.distance)
	}
	return cs
}

// each calls try with every candidate in order until it returns false.
func (cs *candidates) each(try func(candidate) bool) {
	// A chunk size that differs counts as one more setting.
	for distance := 0; distance <= 1+slices.Max(cs.distance); distance++ {
		for i, c := range cs.schemes {
			if cs.distance[i] == distance && !try(c) {
				return
			}
			if cs.distance[i] != distance-1 {
				continue
			}
			for _, n := range cs.sizes[1:] {
				if !try(c.withChunkSize(n)) {
					return
				}
			}
		}
	}
}

// builtinAfter is the first candidate that hashes by Python's hash() with such a
// third item after a NONE_HASH of the hash before.
func (cs *candidates) builtinAfter(before int64, x extra) (candidate, bool) {
	for _, c := range cs.schemes {
		if c.function != builtin || c.extra != x || c.none.size > 0 {
			continue
		}
		h := int64(c.none.n) //nolint:gosec // the bits of a signed integer
		if !c.none.hashed {
			h = hashInt(h)
		}
		if h == before {
			return c, true
		}
	}
	return candidate{}, false
}

// chunkSizes are those to try, base's first.
func chunkSizes(base int) []int {
	sizes := first(base, usualChunkSizes)
	for n := oddChunkStep; n <= maxOddChunk; n += oddChunkStep {
		if !slices.Contains(sizes, n) {
			sizes = append(sizes, n)
		}
	}
	return sizes
}

// first is list with one put in front.
func first[T comparable](one T, list []T) []T {
	out := []T{one}
	for _, x := range list {
		if x != one {
			out = append(out, x)
		}
	}
	return out
}

// distance is in how many settings two groups differ.
func (g KeyGroup) distance(o KeyGroup) int {
	n := 0
	for _, differs := range []bool{
		g.Algorithm != o.Algorithm, g.LMCacheVersion != o.LMCacheVersion, g.VLLMVersion != o.VLLMVersion,
		g.PythonVersion != o.PythonVersion, g.PythonHashSeed != o.PythonHashSeed, g.NoneHash != o.NoneHash, g.ChunkSize != o.ChunkSize,
	} {
		if differs {
			n++
		}
	}
	return n
}

// String is the group as it is written in the configuration.
func (g KeyGroup) String() string {
	parts := []string{
		"algorithm: " + g.Algorithm, "chunk_size: " + strconv.Itoa(g.ChunkSize), "pythonhashseed: " + strconv.Quote(g.PythonHashSeed),
		"lmcache_version: " + g.LMCacheVersion, "vllm_version: " + g.VLLMVersion, "python_version: " + strconv.Quote(g.PythonVersion),
	}
	if g.SaveUnfullChunk != nil {
		parts = append(parts, fmt.Sprintf("save_unfull_chunk: %t", *g.SaveUnfullChunk))
	}
	if g.NoneHash != "" {
		parts = append(parts, "none_hash: "+strconv.Quote(g.NoneHash))
	}
	return strings.Join(parts, ", ")
}
