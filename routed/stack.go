package routed

import "container/list"

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
type stack struct {
	room   [tiers]int // blocks
	order  [tiers]list.List
	blocks map[uint64]*list.Element // of *entry
}

type entry struct {
	hash uint64
	tier int
	// computed: the first token of a prompt with this block was seen.
	computed bool
}

func newStack() *stack { return &stack{blocks: make(map[uint64]*list.Element)} }

// put puts a block on top. Once computed it stays that.
func (s *stack) put(hash uint64, computed bool) {
	if e := s.blocks[hash]; e != nil {
		b := e.Value.(*entry)
		b.computed = b.computed || computed
		if b.tier == onGPU {
			s.order[onGPU].MoveToFront(e)
			return
		}
		s.order[b.tier].Remove(e)
		b.tier = onGPU
		s.blocks[hash] = s.order[onGPU].PushFront(b)
	} else {
		s.blocks[hash] = s.order[onGPU].PushFront(&entry{hash: hash, computed: computed})
	}
	s.sink()
}

// sink moves what is too much for a tier to the top of the next.
func (s *stack) sink() {
	for t := range tiers {
		for s.order[t].Len() > s.room[t] {
			b := s.order[t].Remove(s.order[t].Back()).(*entry)
			if b.tier++; b.tier == tiers {
				delete(s.blocks, b.hash)
				continue
			}
			s.blocks[b.hash] = s.order[b.tier].PushFront(b)
		}
	}
}

// resize changes how many blocks each tier has. The newest stay.
func (s *stack) resize(room [tiers]int) {
	s.room = room
	for t := range tiers {
		for below := t + 1; below < tiers; below++ {
			for s.order[t].Len() < room[t] && s.order[below].Len() > 0 {
				b := s.order[below].Remove(s.order[below].Front()).(*entry)
				b.tier = t
				s.blocks[b.hash] = s.order[t].PushBack(b)
			}
		}
	}
	s.sink()
}

// leading is how many blocks of the chain have been computed without a gap, and
// are in that tier or above.
func (s *stack) leading(chain []uint64) (upTo [tiers]int) {
	tier := onGPU
	for i, hash := range chain {
		e := s.blocks[hash]
		if e == nil {
			break
		}
		b := e.Value.(*entry)
		if !b.computed {
			break
		}
		tier = max(tier, b.tier)
		for t := tier; t < tiers; t++ {
			upTo[t] = i + 1
		}
	}
	return upTo
}

// size is how many blocks are in the tiers that are believed.
func (s *stack) size() int { return s.order[onGPU].Len() + s.order[inHost].Len() }
