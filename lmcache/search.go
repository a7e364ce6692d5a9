package lmcache

import (
	"fmt"
	"slices"
	"strconv"
)

// compared is what looking for a prompt's keys has shown.
type compared int

const (
	keysShort   compared = iota // the prompt has no chunk to look for
	keysMissing                 // it has, and the instance does not hold it
	keysHeld
)

// comparedChunks is how many chunks of a prompt are looked for: the second is
// chained to the first, so chance cannot give both.
const comparedChunks = 2

// interior is the tokens of the leading full chunks that are looked for. A
// chunk that ends with the prompt is left out: with save_unfull_chunk a short
// prompt's tail looks like a chunk of its size.
func (h *Hasher) interior(s *sample) []uint32 {
	n := min(comparedChunks, (len(s.tokens)-1)/h.chunkSize)
	return s.tokens[:n*h.chunkSize]
}

// compare looks for the sample's keys by the settings of h at every rank of the
// instance.
func (d *Detector) compare(h *Hasher, id string, s *sample) compared {
	tokens := h.interior(s)
	if len(tokens) == 0 {
		return keysShort
	}
	if keys := h.Keys(nil, tokens); d.index.Match(nil, keys, []string{id})[0].Chunks < len(keys) {
		return keysMissing
	}
	return keysHeld
}

// confirmed reports whether the settings explain two different prompts with
// two different chunks; and where NONE_HASH was worked out from one prompt's
// first chunk, another that begins otherwise.
func (d *Detector) confirmed(h *Hasher, id string, samples []*sample) bool {
	prompts, keys, firsts := 0, []Key{}, []Key{}
	add := func(list *[]Key, key Key) {
		if !slices.Contains(*list, key) {
			*list = append(*list, key)
		}
	}
	for i, s := range samples {
		if slices.ContainsFunc(samples[:i], func(o *sample) bool { return slices.Equal(o.tokens, s.tokens) }) || d.compare(h, id, s) != keysHeld {
			continue
		}
		prompts++
		for i, key := range h.Keys(nil, h.interior(s)) {
			if add(&keys, key); i == 0 {
				add(&firsts, key)
			}
		}
	}
	return prompts >= 2 && len(keys) >= 2 && (!h.none.hashed || len(firsts) >= 2)
}

// search tries other settings on a sample whose keys are missing, and reports
// whether it found some that explain it. They are adopted when a second prompt
// confirms them, and until then suspected.
func (d *Detector) search(id string, c *detection, s *sample) bool {
	d.metrics.searches.Inc()
	explains := func(f found) bool {
		if d.compare(f.hasher, id, s) != keysHeld {
			return false
		}
		if d.confirmed(f.hasher, id, c.kept) {
			d.adopt(id, c, f)
		} else {
			c.suspect = f
		}
		return true
	}
	if c.suspect.hasher != nil && explains(c.suspect) {
		return true
	}
	// A fleet's engines are set up alike.
	for _, other := range d.instances {
		if other != c && other.proven && !other.learnt() && other.inForce.hasher != c.inForce.hasher && explains(other.inForce) {
			return true
		}
	}
	cs := d.candidates(c.configured)
	explained := false
	cs.each(func(each candidate) bool {
		if len(s.tokens) <= each.chunkSize {
			return true
		}
		chain := each.begin()
		defer chain.end()
		if d.index.Holds(id, chain.next(s.tokens[:each.chunkSize]).key()) {
			explained = explains(d.found(each))
		}
		return !explained
	})
	if explained {
		return true
	}
	f, t := d.recover(cs, id, s)
	switch {
	case f.hasher == nil:
		if t.fault != "" {
			c.trouble = t
		}
	case explains(f):
		return true
	default:
		c.trouble = trouble{
			fmt.Sprintf("the ranks of LMCache instance %s begin their hashes each with a NONE_HASH of its own", id),
			"set PYTHONHASHSEED=0 for the engine",
		}
	}
	return false
}

func (d *Detector) candidates(configured *Hasher) *candidates {
	cs := d.tried[configured]
	if cs == nil {
		cs = newCandidates(d.source.keys.groups[configured])
		d.tried[configured] = cs
	}
	return cs
}

// Bounds of recover.
const (
	// Of an instance's keys so many are tried as the sample's first, the newest
	// first: of builtin one costs some nanoseconds, of the others microseconds.
	maxNewestBuiltin = 4096
	maxNewestDigest  = 256
	// maxDigestChunk is the largest chunk tried with those, of the usual sizes.
	maxDigestChunk = 1024
	// maxSeed is the highest PYTHONHASHSEED tried where all else is known.
	maxSeed = 9999
)

// recover finds the settings of an instance whose NONE_HASH is none of the
// usual. A chunk's key follows from the one before it, so the key of a sample's
// second chunk tells which key is that of its first without knowing what is
// before that. With builtin the NONE_HASH follows from it; with a digest it
// can only be guessed, and the trouble says so where that fails.
func (d *Detector) recover(cs *candidates, id string, s *sample) (found, trouble) {
	newest := d.index.Newest(nil, id, maxNewestBuiltin)
	held := make(map[Key]bool, len(newest))
	for _, key := range newest {
		held[key] = true
	}
	tried := make(map[scheme]bool)
	for _, row := range cs.schemes {
		row.none, row.noneText = link{}, ""
		if tried[row.scheme] {
			continue
		}
		tried[row.scheme] = true
		for _, size := range cs.sizes {
			if len(s.tokens) <= 2*size {
				continue
			}
			c := row.withChunkSize(size)
			if c.function == builtin {
				if f, ok := d.recoverBuiltin(cs, c, newest, held, s); ok {
					return f, trouble{}
				}
				continue
			}
			if !c.folded || size > maxDigestChunk || size != cs.sizes[0] && !slices.Contains(usualChunkSizes, size) {
				continue // Unfolded, what is reported is not the whole link.
			}
			if first, ok := c.firstLink(newest[:min(len(newest), maxNewestDigest)], held, s); ok {
				if g, ok := c.guessSeed(first, s); ok {
					return d.found(g), trouble{}
				}
				return found{}, trouble{
					fmt.Sprintf("LMCache instance %s hashes by %s with chunk_size %d, but its NONE_HASH is random, or PYTHONHASHSEED unusual", id, c.Algorithm, size),
					"set PYTHONHASHSEED=0 for the engine",
				}
			}
		}
	}
	return found{}, trouble{}
}

// recoverBuiltin works out NONE_HASH from the key of the sample's first chunk.
func (d *Detector) recoverBuiltin(cs *candidates, c candidate, newest []Key, held map[Key]bool, s *sample) (found, bool) {
	size := c.chunkSize
	next := hashTokens(s.tokens[size : 2*size])
	for _, key := range newest {
		first := int64(key)                                      //nolint:gosec // the bits of a signed integer
		if !held[Key(hashLink(hashInt(first), next, c.extra))] { //nolint:gosec // the bits of a signed integer
			continue
		}
		before := beforeLink(first, hashTokens(s.tokens[:size]), c.extra)
		if usual, ok := cs.builtinAfter(before, c.extra); ok {
			// The keys came while the usual settings were tried.
			return d.found(usual.withChunkSize(size)), true
		}
		c.none = link{n: uint64(before), hashed: true} //nolint:gosec // the bits of a signed integer
		c.noneText = strconv.FormatInt(before, 10)
		c.PythonHashSeed, c.NoneHash = SeedUnset, c.noneText
		return d.found(c), true
	}
	return found{}, false
}

// firstLink finds the key of the sample's first chunk by that of its second.
func (c candidate) firstLink(newest []Key, held map[Key]bool, s *sample) (Key, bool) {
	chain := c.begin()
	defer chain.end()
	for _, key := range newest {
		chain.last = link{n: uint64(key)}
		if held[chain.next(s.tokens[c.chunkSize:2*c.chunkSize]).key()] {
			return key, true
		}
	}
	return 0, false
}

// guessSeed tries PYTHONHASHSEED by number.
func (c candidate) guessSeed(first Key, s *sample) (candidate, bool) {
	chain := c.begin()
	defer chain.end()
	for seed := range maxSeed + 1 {
		text := strconv.Itoa(seed)
		none, noneText, err := c.digest(c.function.sum(c.function.appendString(nil, text)))
		if err != nil {
			return c, false
		}
		if chain.last = none; chain.next(s.tokens[:c.chunkSize]).key() == first {
			c.none, c.noneText, c.PythonHashSeed, c.NoneHash = none, noneText, text, ""
			return c, true
		}
	}
	return c, false
}
