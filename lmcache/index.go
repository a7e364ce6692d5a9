package lmcache

import (
	"math/bits"
	"slices"
	"sync"
)

// Key is the 64-bit pattern of a chunk key as it comes on the wire. LMCache
// sends a signed integer (builtin hash) or an unsigned one (folded digests):
// -1 and 2^64-1 are different integers there and the same Key here. That is
// deliberate: one fleet uses one hash, and across hashes such a meeting is as
// unlikely as any other 64-bit collision. Keys sent as bytes are the first
// eight, big-endian.
type Key uint64

// WorkerID names one rank of one LMCache instance.
type WorkerID struct {
	Instance string
	Worker   int
}

// LocationCPU is the location that wins where a chunk is held in several.
const LocationCPU = "LocalCPUBackend"

// Limits on what strangers can make the Index remember, besides its keys.
// Reports past them are ignored and counted.
const (
	maxRanks     = 64 // a holder's ranks are one machine word
	maxLocations = 64
	maxInstances = 4096
)

// lockedKeys is how many keys are worked on under one hold of the lock: some
// tens of microseconds, the longest that a decision waits for a burst of reports.
const lockedKeys = 64

// Index remembers which chunks each worker has reported, in memory that
// IndexConfig.MaxKeys bounds. All methods are safe for concurrent use.
//
// Locks: writing serialises the methods that change the Index, so that a purge
// may let go of mu between slices of its work and still see no other writer;
// mu guards the data against readers and is never held for longer than a slice.
// One RWMutex, not one per shard of the key space: a prompt's chunks fall into
// all shards, so shards would cost a reader hundreds of lock operations for
// each decision instead of one. Lock order: writing, mu.
type Index struct {
	maxKeys int // set once

	writing sync.Mutex

	mu sync.RWMutex // guards the following fields
	// entries has one entry for each key that somebody holds.
	entries map[Key]*entry
	// oldest and newest end the list of all entries by their last report.
	oldest, newest *entry
	// held is the sum of len(entry.holders); bounded by maxKeys.
	held      int
	instances map[string]*instance
	// slots finds instances by number; nil where the number is free.
	slots []*instance
	// locations are the names seen; the number of one is its rank in choosing
	// the better of two, LocationCPU is 0.
	locations  []string
	overflowed uint64
	ignored    uint64
}

// IndexConfig bounds an Index.
type IndexConfig struct {
	// MaxKeys is the most records kept, one for each chunk, instance and
	// location. Past it, the chunks longest not reported are forgotten and
	// counted. At least 1.
	MaxKeys int
}

// entry is one key and who holds it.
type entry struct {
	key          Key
	older, newer *entry
	// holders are in order of location, the better first. Never empty.
	holders []holder
}

// holder is one instance's hold of a chunk in one location.
type holder struct {
	ranks    uint64 // bit i: instance.ranks[i] has it. Never 0
	slot     uint32
	location uint8
}

// instance is one engine's ranks.
type instance struct {
	name string
	slot uint32
	// ranks by bit number; a free bit has a nil rank.
	ranks []*rank
	// required is the ranks that must have a chunk for it to count: all that
	// are registered, or where none is, all that ever reported.
	required uint64
}

// rank is one worker.
type rank struct {
	worker     int
	registered bool
	// keys is how many the rank has in each location.
	keys [maxLocations]int
}

// NewIndex makes an empty Index.
func NewIndex(cfg IndexConfig) *Index {
	return &Index{
		maxKeys:   max(1, cfg.MaxKeys),
		entries:   make(map[Key]*entry),
		instances: make(map[string]*instance),
		locations: []string{LocationCPU},
	}
}

// Register tells that the worker exists. All that it reported before is
// forgotten: a worker registers when its engine starts.
func (ix *Index) Register(w WorkerID) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	in, bit := ix.join(w)
	if in == nil {
		return
	}
	ix.purge(in, 1<<bit, -1)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	in.ranks[bit].registered = true
	in.requireLocked()
}

// Confirm tells that the worker is registered after all, and keeps what it
// reported: a sign of life stands in for a registration that was lost.
func (ix *Index) Confirm(w WorkerID) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	in, bit := ix.join(w)
	if in == nil {
		return
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	in.ranks[bit].registered = true
	in.requireLocked()
}

// Deregister forgets the worker and all that it reported.
func (ix *Index) Deregister(w WorkerID) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	in, bit := ix.find(w)
	if in == nil {
		return
	}
	if in.count() == 1 {
		ix.drop(in)
		return
	}
	ix.purge(in, 1<<bit, -1)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	in.ranks[bit] = nil
	in.requireLocked()
}

// DropInstance forgets all workers of the instance and what they reported.
func (ix *Index) DropInstance(name string) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	if in := ix.instances[name]; in != nil {
		ix.drop(in)
	}
}

// Admit tells that the worker now has keys in location. A worker that never
// registered is kept as provisional: its registration may have been lost. It
// counts as long as no worker of its instance is registered.
func (ix *Index) Admit(w WorkerID, location string, keys []Key) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	in, bit := ix.join(w)
	place, ok := ix.place(location)
	if in == nil || !ok {
		return
	}
	for part := range slices.Chunk(keys, lockedKeys) {
		ix.mu.Lock()
		for _, key := range part {
			ix.admitLocked(in, bit, place, key)
		}
		ix.mu.Unlock()
	}
}

// Evict tells that the worker no longer has keys in location. What it never
// reported is no matter.
func (ix *Index) Evict(w WorkerID, location string, keys []Key) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	in, bit := ix.find(w)
	place := slices.Index(ix.locations, location)
	if in == nil || place < 0 {
		return
	}
	for part := range slices.Chunk(keys, lockedKeys) {
		ix.mu.Lock()
		for _, key := range part {
			if e := ix.entries[key]; e != nil {
				ix.releaseLocked(e, in, 1<<bit, place)
			}
		}
		ix.mu.Unlock()
	}
}

// Clear forgets what the worker has in location.
func (ix *Index) Clear(w WorkerID, location string) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	in, bit := ix.find(w)
	place := slices.Index(ix.locations, location)
	if in != nil && place >= 0 {
		ix.purge(in, 1<<bit, place)
	}
}

// ClearWorker forgets what the worker has anywhere; it stays registered.
func (ix *Index) ClearWorker(w WorkerID) {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	if in, bit := ix.find(w); in != nil {
		ix.purge(in, 1<<bit, -1)
	}
}

// find is the worker's instance and bit, nil where it is unknown. Caller must
// hold writing.
func (ix *Index) find(w WorkerID) (*instance, int) {
	in := ix.instances[w.Instance]
	if in == nil {
		return nil, 0
	}
	for bit, r := range in.ranks {
		if r != nil && r.worker == w.Worker {
			return in, bit
		}
	}
	return nil, 0
}

// join is find, but makes the worker where it is unknown; nil where there are
// too many. Caller must hold writing.
func (ix *Index) join(w WorkerID) (*instance, int) {
	if in, bit := ix.find(w); in != nil {
		return in, bit
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	in := ix.instances[w.Instance]
	if in == nil {
		if len(ix.instances) == maxInstances {
			ix.ignored++
			return nil, 0
		}
		slot := slices.Index(ix.slots, nil)
		if slot < 0 {
			slot = len(ix.slots)
			ix.slots = append(ix.slots, nil)
		}
		in = &instance{name: w.Instance, slot: uint32(slot)} //nolint:gosec // below maxInstances
		ix.slots[slot] = in
		ix.instances[w.Instance] = in
	}
	bit := slices.Index(in.ranks, nil)
	if bit < 0 {
		if len(in.ranks) == maxRanks {
			ix.ignored++
			return nil, 0
		}
		bit = len(in.ranks)
		in.ranks = append(in.ranks, nil)
	}
	in.ranks[bit] = &rank{worker: w.Worker}
	in.requireLocked()
	return in, bit
}

// place is the location's number, false where there are too many. Caller must
// hold writing.
func (ix *Index) place(location string) (int, bool) {
	if i := slices.Index(ix.locations, location); i >= 0 {
		return i, true
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if len(ix.locations) == maxLocations {
		ix.ignored++
		return 0, false
	}
	ix.locations = append(ix.locations, location)
	return len(ix.locations) - 1, true
}

// drop takes the instance away from readers, then forgets what it held and
// only then lets its number be used again. Caller must hold writing.
func (ix *Index) drop(in *instance) {
	ix.mu.Lock()
	delete(ix.instances, in.name)
	ix.mu.Unlock()
	ix.purge(in, ^uint64(0), -1)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.slots[in.slot] = nil
}

// purge forgets what the ranks hold in the location numbered place, -1 for all.
// It walks the list until the ranks hold nothing more, letting go of mu after
// each slice; nobody else changes the list meanwhile. Caller must hold writing.
func (ix *Index) purge(in *instance, ranks uint64, place int) {
	left := in.keys(ranks, place)
	for e := ix.newest; left > 0 && e != nil; {
		ix.mu.Lock()
		for range lockedKeys {
			older := e.older
			left -= ix.releaseLocked(e, in, ranks, place)
			if e = older; e == nil {
				break
			}
		}
		ix.mu.Unlock()
	}
}

// admitLocked notes one key. Caller must hold mu.
func (ix *Index) admitLocked(in *instance, bit, place int, key Key) {
	e := ix.entries[key]
	if e == nil {
		e = &entry{key: key}
		ix.entries[key] = e
	} else {
		ix.unlinkLocked(e)
	}
	ix.linkLocked(e)

	at := len(e.holders)
	for i, h := range e.holders {
		if h.slot == in.slot && int(h.location) == place {
			if h.ranks&(1<<bit) == 0 {
				e.holders[i].ranks |= 1 << bit
				in.ranks[bit].keys[place]++
			}
			return
		}
		if int(h.location) > place {
			at = i
			break
		}
	}
	e.holders = slices.Insert(e.holders, at, holder{ranks: 1 << bit, slot: in.slot, location: uint8(place)}) //nolint:gosec // below maxLocations
	in.ranks[bit].keys[place]++
	ix.held++
	for ix.held > ix.maxKeys {
		ix.overflowLocked()
	}
}

// overflowLocked forgets the entry that was longest not reported. Caller must
// hold mu.
func (ix *Index) overflowLocked() {
	e := ix.oldest
	ix.overflowed += uint64(len(e.holders))
	for len(e.holders) > 0 {
		ix.releaseLocked(e, ix.slots[e.holders[0].slot], ^uint64(0), -1)
	}
}

// releaseLocked takes the ranks of an instance off an entry, in the location
// numbered place or, for -1, in all. It returns how many holds of a rank that
// were. Caller must hold mu.
func (ix *Index) releaseLocked(e *entry, in *instance, ranks uint64, place int) int {
	released := 0
	kept := e.holders[:0]
	for _, h := range e.holders {
		if h.slot == in.slot && (place < 0 || int(h.location) == place) {
			for gone := h.ranks & ranks; gone != 0; gone &= gone - 1 {
				in.ranks[bits.TrailingZeros64(gone)].keys[h.location]--
				released++
			}
			if h.ranks &^= ranks; h.ranks == 0 {
				ix.held--
				continue
			}
		}
		kept = append(kept, h)
	}
	e.holders = kept
	if len(kept) == 0 && ix.entries[e.key] == e {
		delete(ix.entries, e.key)
		ix.unlinkLocked(e)
	}
	return released
}

// linkLocked puts e at the newest end. Caller must hold mu.
func (ix *Index) linkLocked(e *entry) {
	e.older, e.newer = ix.newest, nil
	if ix.newest != nil {
		ix.newest.newer = e
	} else {
		ix.oldest = e
	}
	ix.newest = e
}

// unlinkLocked takes e off the list. Caller must hold mu.
func (ix *Index) unlinkLocked(e *entry) {
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		ix.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		ix.newest = e.older
	}
	e.older, e.newer = nil, nil
}

// count is how many ranks there are.
func (in *instance) count() int {
	n := 0
	for _, r := range in.ranks {
		if r != nil {
			n++
		}
	}
	return n
}

// keys is how many the ranks hold in the location numbered place, -1 for all.
func (in *instance) keys(ranks uint64, place int) int {
	n := 0
	for bit, r := range in.ranks {
		if r == nil || ranks&(1<<bit) == 0 {
			continue
		}
		for i, keys := range r.keys {
			if place < 0 || i == place {
				n += keys
			}
		}
	}
	return n
}

// requireLocked works out required. Caller must hold Index.mu.
func (in *instance) requireLocked() {
	var registered, all uint64
	for bit, r := range in.ranks {
		if r == nil {
			continue
		}
		all |= 1 << bit
		if r.registered {
			registered |= 1 << bit
		}
	}
	if in.required = registered; registered == 0 {
		in.required = all
	}
}
