package lmcache

import (
	"math/bits"
	"math/rand/v2"
	"slices"
)

// store is where an Index keeps who holds which key: entries in pages, found by
// an open-addressing table of their numbers, in a list by their last report.
// It holds no pointer but those to extra holders, so that the garbage collector
// has nothing to walk, and nothing in it grows by more than a page or a
// segment at once, so that no single report waits for all to be copied.
//
// An entry takes 32 bytes and its place in the table 10 to 20; a holder beyond
// the first takes 16 and its share of a list of 24. Number 0 is no entry.
type store struct {
	entries pages[entry]
	extras  pages[[]holder]
	// seed makes the places of keys unpredictable for whoever chooses the keys.
	seed     uint64
	segments []segment
	shift    uint // of a hash, to its segment's number

	count          int // entries
	oldest, newest uint32
}

// entry is one key and who holds it: the first holder here, the others in
// extras. They are in order of location, the better first.
type entry struct {
	key          Key
	ranks        uint64
	older, newer uint32
	more         uint32 // number in extras; 0: none
	slot         uint16
	location     uint8
}

// holder is one instance's hold of a chunk in one location.
type holder struct {
	ranks    uint64 // bit i: instance.ranks[i] has it. Never 0
	slot     uint16
	location uint8
}

// segmentEntries is how many entries a segment has when the store is full: its
// table grows in some microseconds.
const segmentEntries = 1024

// maxEntries keeps numbers of entries within 32 bits.
const maxEntries = 1<<32 - 1<<16

func newStore(most int) store {
	n := 1
	for n < most/segmentEntries {
		n *= 2
	}
	return store{
		seed:     rand.Uint64(), //nolint:gosec // against bad luck and mischief, not a secret
		segments: make([]segment, n),
		shift:    uint(64 - bits.TrailingZeros(uint(n))),
	}
}

// hash mixes all bits of key into the high ones, which choose the segment, and
// the low ones, which choose the place (the finalizer of MurmurHash3).
func (s *store) hash(key Key) uint64 {
	h := uint64(key) ^ s.seed
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// find is the number of key's entry; 0: there is none.
func (s *store) find(key Key) uint32 {
	h := s.hash(key)
	return s.segments[h>>s.shift].find(s, uint32(h), key) //nolint:gosec // G115: the low half is meant
}

// insert adds key, which must not be there, as the newest entry.
func (s *store) insert(key Key, first holder) {
	id := s.entries.take()
	*s.entries.at(id) = entry{key: key, ranks: first.ranks, slot: first.slot, location: first.location}
	h := s.hash(key)
	s.segments[h>>s.shift].insert(uint32(h), id) //nolint:gosec // G115: the low half is meant
	s.link(id)
	s.count++
}

// remove takes an entry out, and its holders with it.
func (s *store) remove(id uint32) {
	e := s.entries.at(id)
	h := s.hash(e.key)
	s.segments[h>>s.shift].remove(uint32(h), id) //nolint:gosec // G115: the low half is meant
	s.unlink(e)
	s.dropExtras(e)
	*e = entry{}
	s.entries.free(id)
	s.count--
}

func (s *store) dropExtras(e *entry) {
	if e.more != 0 {
		*s.extras.at(e.more) = nil
		s.extras.free(e.more)
		e.more = 0
	}
}

// touch makes an entry the newest.
func (s *store) touch(id uint32) {
	if s.newest != id {
		s.unlink(s.entries.at(id))
		s.link(id)
	}
}

func (s *store) link(id uint32) {
	e := s.entries.at(id)
	e.older, e.newer = s.newest, 0
	if s.newest != 0 {
		s.entries.at(s.newest).newer = id
	} else {
		s.oldest = id
	}
	s.newest = id
}

func (s *store) unlink(e *entry) {
	if e.older != 0 {
		s.entries.at(e.older).newer = e.newer
	} else {
		s.oldest = e.newer
	}
	if e.newer != 0 {
		s.entries.at(e.newer).older = e.older
	} else {
		s.newest = e.older
	}
}

// first is the holder in the entry itself.
func (e *entry) first() holder { return holder{e.ranks, e.slot, e.location} }

func (e *entry) setFirst(h holder) { e.ranks, e.slot, e.location = h.ranks, h.slot, h.location }

// others are the holders but the first; the slice belongs to the store.
func (s *store) others(e *entry) []holder {
	if e.more == 0 {
		return nil
	}
	return *s.extras.at(e.more)
}

// add lets rank, one bit, of an instance hold the entry in a location. fresh
// says that the rank did not, record that this needed another holder.
func (s *store) add(id uint32, rank uint64, slot uint16, location uint8) (fresh, record bool) {
	e := s.entries.at(id)
	if e.slot == slot && e.location == location {
		fresh = e.ranks&rank == 0
		e.ranks |= rank
		return fresh, false
	}
	others := s.others(e)
	at := 0 // of others; where this one goes
	for at < len(others) && others[at].location <= location {
		if h := &others[at]; h.slot == slot && h.location == location {
			fresh = h.ranks&rank == 0
			h.ranks |= rank
			return fresh, false
		}
		at++
	}
	h := holder{rank, slot, location}
	if location < e.location {
		first := e.first()
		e.setFirst(h)
		h, at = first, 0
	}
	if e.more == 0 {
		e.more = s.extras.take()
	}
	list := s.extras.at(e.more)
	*list = slices.Insert(*list, at, h)
	return true, true
}

// release takes ranks of the instance at slot off an entry, in the location, or
// for -1 in all, and calls gone with each hold that ended. It returns how many
// holders that were; an entry without holders is removed.
func (s *store) release(id uint32, ranks uint64, slot uint16, location int, gone func(ranks uint64, location uint8)) (records int) {
	e := s.entries.at(id)
	hit := func(h *holder) bool {
		if h.slot != slot || location >= 0 && int(h.location) != location {
			return false
		}
		if h.ranks&ranks != 0 {
			gone(h.ranks&ranks, h.location)
			h.ranks &^= ranks
		}
		return h.ranks == 0
	}
	first := e.first()
	empty := hit(&first)
	others := s.others(e)
	kept := others[:0]
	for i := range others {
		h := others[i]
		if hit(&h) {
			records++
			continue
		}
		kept = append(kept, h)
	}
	if empty {
		records++
		if len(kept) == 0 {
			s.remove(id)
			return records
		}
		first = kept[0]
		kept = slices.Delete(kept, 0, 1)
	}
	e.setFirst(first)
	switch {
	case len(kept) == 0:
		s.dropExtras(e)
	case len(kept) != len(others):
		*s.extras.at(e.more) = kept
	}
	return records
}

// pages is a growing array whose elements never move and whose freed ones are
// used again. Number 0 is never given out.
type pages[T any] struct {
	list  [][]T
	taken uint32   // numbers below it were given out once
	freed []uint32 // of those, not in use now
}

const pageBits = 12

func (p *pages[T]) at(id uint32) *T { return &p.list[id>>pageBits][id&(1<<pageBits-1)] }

func (p *pages[T]) take() uint32 {
	if n := len(p.freed); n > 0 {
		id := p.freed[n-1]
		p.freed = p.freed[:n-1]
		return id
	}
	p.taken = max(p.taken, 1)
	if int(p.taken>>pageBits) == len(p.list) {
		p.list = append(p.list, make([]T, 1<<pageBits))
	}
	p.taken++
	return p.taken - 1
}

func (p *pages[T]) free(id uint32) { p.freed = append(p.freed, id) }

// segment is a part of the table: open addressing with linear probing. A place
// has the low half of the key's hash above the number of its entry; 0: free.
type segment struct {
	places []uint64 // a power of two
	used   int
}

// segmentSmallest is the first size of a segment's table.
const segmentSmallest = 8

func (g *segment) find(s *store, low uint32, key Key) uint32 {
	if g.used == 0 {
		return 0
	}
	mask := uint32(len(g.places) - 1) //nolint:gosec // G115: below 2^32
	for at := low & mask; g.places[at] != 0; at = (at + 1) & mask {
		if place := g.places[at]; uint32(place>>32) == low {
			if id := uint32(place); s.entries.at(id).key == key { //nolint:gosec // G115: the low half is meant
				return id
			}
		}
	}
	return 0
}

func (g *segment) insert(low, id uint32) {
	if 5*(g.used+1) > 4*len(g.places) { // at most 80 % full
		old := g.places
		g.places = make([]uint64, max(segmentSmallest, 2*len(old)))
		for _, place := range old {
			if place != 0 {
				g.put(place)
			}
		}
	}
	g.put(uint64(low)<<32 | uint64(id))
	g.used++
}

func (g *segment) put(place uint64) {
	mask := uint32(len(g.places) - 1) //nolint:gosec // G115: below 2^32
	at := uint32(place>>32) & mask
	for g.places[at] != 0 {
		at = (at + 1) & mask
	}
	g.places[at] = place
}

// remove frees a place and moves up what could not have its own for it.
func (g *segment) remove(low, id uint32) {
	mask := uint32(len(g.places) - 1) //nolint:gosec // G115: below 2^32
	want := uint64(low)<<32 | uint64(id)
	at := low & mask
	for g.places[at] != want {
		at = (at + 1) & mask
	}
	for next := (at + 1) & mask; g.places[next] != 0; next = (next + 1) & mask {
		home := uint32(g.places[next]>>32) & mask
		// It may move to at unless its home lies behind at on the way to next.
		if (next-home)&mask >= (next-at)&mask {
			g.places[at] = g.places[next]
			at = next
		}
	}
	g.places[at] = 0
	g.used--
}
