package lmcache

import (
	"slices"
	"sync"
)

// Held is what one instance holds of a row of chunks.
type Held struct {
	// Known is false for an instance that never registered nor reported.
	Known bool
	// Chunks is how many it holds from the first on without a gap.
	Chunks int
	// Runs say where, in order; the last one's End is Chunks.
	Runs []Run
}

// Run is a run of chunks in one location.
type Run struct {
	End      int // chunks, counted from the row's begin
	Location string
}

// Match reports what each of the named instances holds of the row of chunks
// that keys are, in the order of instances. A chunk counts for an instance if
// every one of its registered ranks has it; its location is the best that all
// ranks reach, LocationCPU before any other. dst is used for the answer where
// it has room, and so are the Runs in it; the caller owns them.
func (ix *Index) Match(dst []Held, keys []Key, instances []string) []Held {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	ix.mu.RLock()
	defer ix.mu.RUnlock()

	s.begin(ix, instances)
	for i := 0; i < len(keys) && s.matchLocked(ix, keys[i], i); i++ {
	}
	dst = dst[:min(len(dst), len(instances))]
	for len(dst) < len(instances) {
		dst = append(dst, Held{})
	}
	for i := range instances {
		k := &s.seekers[s.asked[i]]
		dst[i].Known, dst[i].Chunks, dst[i].Runs = s.asked[i] != 0, max(0, k.chunks), dst[i].Runs[:0]
		for _, r := range k.runs {
			dst[i].Runs = append(dst[i].Runs, Run{End: r.end, Location: ix.locations[r.location]})
		}
	}
	return dst
}

// Anywhere is how many chunks of the row, from the first one on without a gap,
// are held by any one of the named instances each, no matter which: what an
// engine finds that can fetch from all of them.
func (ix *Index) Anywhere(keys []Key, instances []string) int {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	s.begin(ix, instances)
	for i, key := range keys {
		if !s.anyLocked(ix, key, i) {
			return i
		}
	}
	return len(keys)
}

// anyLocked reports whether one of the instances asked for holds key, chunk
// number i, on all its ranks. Caller must hold Index.mu.
func (s *scratch) anyLocked(ix *Index, key Key, i int) bool {
	id := ix.store.find(key)
	if id == 0 {
		return false
	}
	e := ix.store.entries.at(id)
	s.holders = append(append(s.holders[:0], e.first()), ix.store.others(e)...)
	for _, h := range s.holders {
		k := &s.seekers[s.bySlot[h.slot]]
		if k.chunks < 0 {
			continue
		}
		if k.at != i {
			k.at, k.have = i, 0
		}
		if k.have |= h.ranks; k.have&k.required == k.required {
			return true
		}
	}
	return false
}

// Holds reports whether any rank of the instance has the chunk, wherever.
func (ix *Index) Holds(instance string, key Key) bool {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	in, id := ix.instances[instance], ix.store.find(key)
	if in == nil || id == 0 {
		return false
	}
	e := ix.store.entries.at(id)
	return e.slot == in.slot || slices.ContainsFunc(ix.store.others(e), func(h holder) bool { return h.slot == in.slot })
}

// scratch is the working memory of one Match.
type scratch struct {
	// seekers begins with one that stands for every instance not asked for.
	seekers []seeker
	// asked is the seeker of each instance asked for, 0 where it is unknown.
	asked []int32
	// bySlot is the seeker of each slot.
	bySlot []int32
	// holders are those of the chunk looked at.
	holders []holder
}

// seeker is one instance while a row of chunks is looked up.
type seeker struct {
	required uint64 // ranks that must have a chunk
	have     uint64 // ranks seen to have chunk number at
	at       int
	chunks   int // held without a gap; -1: not asked for
	runs     []seekerRun
}

type seekerRun struct {
	end      int
	location uint8
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// begin sets up a seeker for each instance. Caller must hold ix.mu.
func (s *scratch) begin(ix *Index, instances []string) {
	s.asked, s.seekers = s.asked[:0], s.seekers[:0]
	if cap(s.bySlot) < len(ix.slots) {
		s.bySlot = make([]int32, len(ix.slots))
	}
	s.bySlot = s.bySlot[:len(ix.slots)]
	clear(s.bySlot)
	s.seek(0).chunks = -1
	for _, name := range instances {
		in := ix.instances[name]
		if in == nil {
			s.asked = append(s.asked, 0)
			continue
		}
		if s.bySlot[in.slot] == 0 {
			s.bySlot[in.slot] = int32(len(s.seekers)) //nolint:gosec // at most maxInstances
			s.seek(in.required)
		}
		s.asked = append(s.asked, s.bySlot[in.slot])
	}
}

// seek adds a seeker, with the memory of one that was there before.
func (s *scratch) seek(required uint64) *seeker {
	if len(s.seekers) < cap(s.seekers) {
		s.seekers = s.seekers[:len(s.seekers)+1]
	} else {
		s.seekers = append(s.seekers, seeker{})
	}
	k := &s.seekers[len(s.seekers)-1]
	*k = seeker{required: required, at: -1, runs: k.runs[:0]}
	return k
}

// matchLocked moves on those who hold key, chunk number i, and everything
// before it, and reports whether there is one. Caller must hold Index.mu.
func (s *scratch) matchLocked(ix *Index, key Key, i int) bool {
	id := ix.store.find(key)
	if id == 0 {
		return false
	}
	e := ix.store.entries.at(id)
	s.holders = append(append(s.holders[:0], e.first()), ix.store.others(e)...)
	found := false
	for _, h := range s.holders {
		k := &s.seekers[s.bySlot[h.slot]]
		if k.chunks != i {
			continue // It has a gap before, or has this chunk in a better place.
		}
		if k.at != i {
			k.at, k.have = i, 0
		}
		k.have |= h.ranks
		if k.have&k.required != k.required {
			continue
		}
		found = true
		k.chunks = i + 1
		if n := len(k.runs); n > 0 && k.runs[n-1].location == h.location {
			k.runs[n-1].end = k.chunks
		} else {
			k.runs = append(k.runs, seekerRun{k.chunks, h.location})
		}
	}
	return found
}
