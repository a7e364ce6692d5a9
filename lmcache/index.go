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
// IndexConfig.MaxKeys bounds: 45 bytes a record, measured at ten million with one
// holder each, and less with more (BenchmarkIndexMemory). All methods are safe for concurrent use.
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
	// store has an entry for each key that somebody holds.
	store store
	// held is the number of holders of all entries; bounded by maxKeys.
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

// instance is one engine's ranks.
type instance struct {
	name string
	slot uint16
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
	most := min(max(1, cfg.MaxKeys), maxEntries)
	return &Index{
		maxKeys:   most,
		store:     newStore(most),
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
			if id := ix.store.find(key); id != 0 {
				ix.releaseLocked(id, in, 1<<bit, place)
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
		in = &instance{name: w.Instance, slot: uint16(slot)} //nolint:gosec // below maxInstances
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
	for id := ix.store.newest; left > 0 && id != 0; {
		ix.mu.Lock()
		for range lockedKeys {
			older := ix.store.entries.at(id).older
			left -= ix.releaseLocked(id, in, ranks, place)
			if id = older; id == 0 {
				break
			}
		}
		ix.mu.Unlock()
	}
}

// admitLocked notes one key. Caller must hold mu.
func (ix *Index) admitLocked(in *instance, bit, place int, key Key) {
	rank, location := uint64(1)<<bit, uint8(place) //nolint:gosec // below maxLocations
	fresh, record := true, true
	if id := ix.store.find(key); id == 0 {
		ix.store.insert(key, holder{rank, in.slot, location})
	} else {
		ix.store.touch(id)
		fresh, record = ix.store.add(id, rank, in.slot, location)
	}
	if fresh {
		in.ranks[bit].keys[place]++
	}
	if record {
		ix.held++
		for ix.held > ix.maxKeys {
			ix.overflowLocked()
		}
	}
}

// overflowLocked forgets the entry that was longest not reported. Caller must
// hold mu.
func (ix *Index) overflowLocked() {
	id, before := ix.store.oldest, ix.held
	for ix.store.oldest == id {
		ix.releaseLocked(id, ix.slots[ix.store.entries.at(id).slot], ^uint64(0), -1)
	}
	ix.overflowed += uint64(before - ix.held) //nolint:gosec // G115: it shrank
}

// releaseLocked takes the ranks of an instance off an entry, in the location
// numbered place or, for -1, in all. It returns how many holds of a rank that
// were. Caller must hold mu.
func (ix *Index) releaseLocked(id uint32, in *instance, ranks uint64, place int) int {
	released := 0
	ix.held -= ix.store.release(id, ranks, in.slot, place, func(gone uint64, location uint8) {
		for ; gone != 0; gone &= gone - 1 {
			in.ranks[bits.TrailingZeros64(gone)].keys[location]--
			released++
		}
	})
	return released
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
