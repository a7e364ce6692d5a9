package routed

import "slices"

// The tiers of a stack, the newest blocks in the first. What is doubted is not
// believed to be held any more, but remembered to see whether it was after all.
const (
	onGPU = iota
	inHost
	doubted
	tiers
)

// stack is a set of blocks in the order in which they were last put on top, cut
// into tiers by rank: the first so many are in the first tier, the next in the
// second, and what falls out of the last is forgotten. The owner serialises the
// calls.
//
// Each decision puts hundreds of blocks on top, so moving one allocates nothing,
// and the garbage collector finds no pointers in it. A chain that was put on top
// stays in its order, so whoever has the entry of one block finds the next one's
// beside it and need not look it up.
type stack struct {
	room  [tiers]int // blocks
	order [tiers]row
	// entries grows to the sum of room and one; 0 is no entry.
	entries []entry
	unused  uint32            // the first entry that holds no block, linked by below
	blocks  map[uint64]uint32 // the entry of each block
	// found is put's, kept from call to call; as long as the longest chain.
	found []uint32
}

// row is the entries of a tier.
type row struct {
	top, bottom uint32
	len         int
}

type entry struct {
	hash         uint64
	above, below uint32
	tier         uint8
	// computed: the first token of a prompt with this block was seen.
	computed bool
}

func newStack() *stack {
	return &stack{entries: make([]entry, 1), blocks: make(map[uint64]uint32)}
}

// put puts the blocks of a chain on top, its first block topmost: a prefix must
// outlive what follows it. Once computed they stay that.
func (s *stack) put(chain []uint64, computed bool) {
	s.found = s.found[:0]
	var id uint32
	for _, hash := range chain {
		// What follows a block that is gone is gone too, mostly.
		if id = s.after(id, hash); id == 0 {
			break
		}
		s.found = append(s.found, id)
	}
	for i, hash := range slices.Backward(chain) {
		// An entry that was found may hold another block by now.
		if i >= len(s.found) || hash == 0 || s.entries[s.found[i]].hash != hash {
			id = s.blocks[hash]
		} else {
			id = s.found[i]
		}
		s.putOne(id, hash, computed)
	}
}

// after is the entry of a block, of which id is the entry of the block before it
// in its chain; 0 where there is none.
func (s *stack) after(id uint32, hash uint64) uint32 {
	if below := s.entries[id].below; id != 0 && below != 0 && s.entries[below].hash == hash {
		return below
	}
	return s.blocks[hash]
}

// putOne puts a block on top; id is its entry, 0 where it has none.
func (s *stack) putOne(id uint32, hash uint64, computed bool) {
	if id == 0 {
		id = s.take()
		s.entries[id] = entry{hash: hash, computed: computed}
		s.blocks[hash] = id
	} else {
		s.entries[id].computed = s.entries[id].computed || computed
		s.leave(id)
	}
	s.join(id, onGPU, true)
	s.sink()
}

// sink moves what is too much for a tier to the top of the next.
func (s *stack) sink() {
	for t := range tiers {
		for s.order[t].len > s.room[t] {
			id := s.order[t].bottom
			s.leave(id)
			if t+1 == tiers {
				delete(s.blocks, s.entries[id].hash)
				s.entries[id] = entry{below: s.unused}
				s.unused = id
				continue
			}
			s.join(id, t+1, true)
		}
	}
}

// resize changes how many blocks each tier has. The newest stay.
func (s *stack) resize(room [tiers]int) {
	s.room = room
	for t := range tiers {
		for below := t + 1; below < tiers; below++ {
			for s.order[t].len < room[t] && s.order[below].len > 0 {
				id := s.order[below].top
				s.leave(id)
				s.join(id, t, false)
			}
		}
	}
	s.sink()
}

// take is an entry that holds no block.
func (s *stack) take() uint32 {
	if id := s.unused; id != 0 {
		s.unused = s.entries[id].below
		return id
	}
	s.entries = append(s.entries, entry{})
	return uint32(len(s.entries) - 1) //nolint:gosec // mostTokens keeps it far below
}

// leave takes an entry out of its tier.
func (s *stack) leave(id uint32) {
	e := &s.entries[id]
	r := &s.order[e.tier]
	if e.above != 0 {
		s.entries[e.above].below = e.below
	} else {
		r.top = e.below
	}
	if e.below != 0 {
		s.entries[e.below].above = e.above
	} else {
		r.bottom = e.above
	}
	r.len--
}

// join puts an entry that is in no tier on the top of one, or at its bottom.
func (s *stack) join(id uint32, tier int, top bool) {
	e, r := &s.entries[id], &s.order[tier]
	e.tier, e.above, e.below = uint8(tier), 0, 0 //nolint:gosec // below tiers
	switch {
	case r.len == 0:
		r.top, r.bottom = id, id
	case top:
		e.below = r.top
		s.entries[r.top].above = id
		r.top = id
	default:
		e.above = r.bottom
		s.entries[r.bottom].below = id
		r.bottom = id
	}
	r.len++
}

// leading is how many blocks of the chain have been computed without a gap, and
// are in that tier or above.
func (s *stack) leading(chain []uint64) (upTo [tiers]int) {
	tier := onGPU
	var id uint32
	for i, hash := range chain {
		id = s.after(id, hash)
		e := &s.entries[id]
		if !e.computed { // nor has the entry that is none
			break
		}
		tier = max(tier, int(e.tier))
		for t := tier; t < tiers; t++ {
			upTo[t] = i + 1
		}
	}
	return upTo
}

// size is how many blocks are in the tiers that are believed.
func (s *stack) size() int { return s.order[onGPU].len + s.order[inHost].len }
