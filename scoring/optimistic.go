package scoring

import (
	"math/bits"
	"slices"
	"time"
)

// optimistic knows which blocks the requests under way bring to which endpoint,
// so that a prompt follows one with the same beginning before any source of
// cache truth has heard of it. What an engine computes for a request stays in
// its memory while the request runs, since it needs it; so blocks are held from
// the choice to lingering after the end, or after the first token where ends are
// not told.
//
// It is one index for all endpoints: a block's holders are a set of bits, so one
// walk down a chain finds all endpoints' leading blocks. A request holds its
// whole chain, so an endpoint that holds a block holds all before it.
//
// It is guarded by ledger.mu. Its memory is bounded by limit; past it requests are
// not taken in. Maps never shrink, so it stays at its peak.
type optimistic struct {
	// slots are the endpoints' bits: slots[i] is taken. held is how many blocks
	// are held there, one that several requests hold as often.
	slots []bool
	held  []int
	// blocks has the entry of each block by its key; entries[0] is none. unused is
	// the first entry that holds no block, linked by slot.
	blocks  map[uint64]uint32
	entries []holder
	unused  uint32
	// spare are crowds that nobody uses.
	spare []*crowd
	// bytes is what all of it takes, limit the most that it may.
	bytes, limit int
	// refused counts requests that were not taken in.
	refused uint64
	// leaving are those that are let go of by time, in that order.
	leaving []lingering
	// alive is the walk's.
	alive []uint64
}

// holder is who holds a block: one endpoint so many times, or a crowd.
type holder struct {
	slot, count uint32
	crowd       *crowd
}

// crowd is several endpoints that hold a block: their bits, and how many times
// each holds it.
type crowd struct {
	set    []uint64
	counts []uint32
	total  uint32
}

// lingering is a hold that ends at a time.
type lingering struct {
	at   time.Time
	hold *hold
}

// hold is the blocks that one request brings to one endpoint.
type hold struct {
	slot   uint32
	root   uint64
	chains [][]uint64
	// leaving: it is in line to be let go of; over: it has been.
	leaving, over bool
}

const (
	// lingers is how long blocks are believed to be held after their request, until
	// a source reports them: LMCache does when the answer has ended.
	lingers = 5 * time.Second
	// maxOptimisticBytes bounds the index: 80 million tokens under way, none of
	// which two endpoints have in common.
	maxOptimisticBytes = 64 << 20
	// blockBytes is what a block costs in map and entries, at most.
	blockBytes = 52
)

func newOptimistic(limit int) *optimistic {
	return &optimistic{limit: limit, blocks: make(map[uint64]uint32), entries: make([]holder, 1)}
}

// join gives an endpoint its slot.
func (o *optimistic) join() uint32 {
	slot := slices.Index(o.slots, false)
	if slot < 0 {
		slot = len(o.slots)
		o.slots, o.held = append(o.slots, false), append(o.held, 0)
	}
	o.slots[slot] = true
	return uint32(slot) //nolint:gosec // there are as many slots as endpoints
}

// leave takes back a slot, and what lingers of it. What requests under way hold
// of it has been dropped.
func (o *optimistic) leave(slot uint32) {
	for _, l := range o.leaving {
		if l.hold.slot == slot {
			o.drop(l.hold)
		}
	}
	o.slots[slot] = false
}

// hold takes in what a request brings; nil: nothing, or there is no room.
func (o *optimistic) hold(p *Prompt, slot uint32, root uint64) *hold {
	n := 0
	for i := range p.Sequences {
		n += len(p.Sequences[i].Chain)
	}
	if n == 0 {
		return nil
	}
	if o.bytes+n*blockBytes > o.limit {
		o.refused++
		return nil
	}
	o.held[slot] += n
	h := &hold{slot: slot, root: root, chains: make([][]uint64, len(p.Sequences))}
	for i := range p.Sequences {
		h.chains[i] = p.Sequences[i].Chain
		for _, block := range h.chains[i] {
			o.add(BlockKey(root, block), slot)
		}
	}
	return h
}

// add lets slot hold a block once more.
func (o *optimistic) add(key uint64, slot uint32) {
	id := o.blocks[key]
	if id == 0 {
		if id = o.unused; id != 0 {
			o.unused = o.entries[id].slot
		} else {
			id = uint32(len(o.entries)) //nolint:gosec // maxOptimisticBytes keeps it far below
			o.entries = append(o.entries, holder{})
		}
		o.blocks[key] = id
		o.entries[id] = holder{slot: slot, count: 1}
		o.bytes += blockBytes
		return
	}
	e := &o.entries[id]
	switch {
	case e.crowd != nil:
		o.widen(e.crowd)
	case e.slot == slot:
		e.count++
		return
	default:
		e.crowd = o.gather()
		e.crowd.put(e.slot, e.count)
	}
	e.crowd.put(slot, 1)
}

func (c *crowd) put(slot, times uint32) {
	c.set[slot/64] |= 1 << (slot % 64)
	c.counts[slot] += times
	c.total += times
}

// gather is an empty crowd.
func (o *optimistic) gather() *crowd {
	c := &crowd{}
	if n := len(o.spare); n > 0 {
		c, o.spare = o.spare[n-1], o.spare[:n-1]
	}
	o.bytes += c.bytes()
	o.widen(c)
	return c
}

// bytes is what a crowd costs.
func (c *crowd) bytes() int { return 56 + 8*len(c.set) + 4*len(c.counts) }

// maxSpare bounds the crowds that are kept though nobody uses them.
const maxSpare = 1024

// widen makes room for all slots.
func (o *optimistic) widen(c *crowd) {
	if len(c.counts) >= len(o.slots) {
		return
	}
	words := (len(o.slots) + 63) / 64
	o.bytes -= c.bytes()
	set, counts := make([]uint64, words), make([]uint32, 64*words)
	copy(set, c.set)
	copy(counts, c.counts)
	c.set, c.counts = set, counts
	o.bytes += c.bytes()
}

// drop lets go of what a request brought. The caller drops each hold once.
func (o *optimistic) drop(h *hold) {
	if h == nil || h.over {
		return
	}
	h.over = true
	for _, chain := range h.chains {
		o.held[h.slot] -= len(chain)
		for _, block := range chain {
			o.remove(BlockKey(h.root, block), h.slot)
		}
	}
	h.chains = nil
}

// remove lets slot hold a block once less.
func (o *optimistic) remove(key uint64, slot uint32) {
	id := o.blocks[key]
	e := &o.entries[id]
	if c := e.crowd; c != nil {
		c.total--
		if c.counts[slot]--; c.counts[slot] == 0 {
			c.set[slot/64] &^= 1 << (slot % 64)
		}
		if c.total > 0 {
			return
		}
		o.bytes -= c.bytes()
		if len(o.spare) < maxSpare {
			o.spare = append(o.spare, c) // all zero
		}
	} else if e.count--; e.count > 0 {
		return
	}
	delete(o.blocks, key)
	o.entries[id] = holder{slot: o.unused}
	o.unused = id
	o.bytes -= blockBytes
}

// linger lets go of a hold some time after now.
func (o *optimistic) linger(h *hold, now time.Time) {
	if h != nil && !h.leaving && !h.over {
		h.leaving = true
		o.leaving = append(o.leaving, lingering{now.Add(lingers), h})
	}
}

// elapse lets go of what has lingered.
func (o *optimistic) elapse(now time.Time) {
	n := 0
	for n < len(o.leaving) && !o.leaving[n].at.After(now) {
		o.drop(o.leaving[n].hold)
		n++
	}
	if n > 0 {
		rest := copy(o.leaving, o.leaving[n:])
		clear(o.leaving[rest:])
		o.leaving = o.leaving[:rest]
	}
}

// leading writes for each slot of the set how many leading blocks of a chain it
// holds, one walk for all. The rest of found is not touched.
func (o *optimistic) leading(chain []uint64, root uint64, set []uint64, found []int32) {
	o.alive = append(o.alive[:0], set...)
	for i, block := range chain {
		id := o.blocks[BlockKey(root, block)]
		if id == 0 {
			o.settleAll(i, found)
			return
		}
		e, left := &o.entries[id], uint64(0)
		for w := range o.alive {
			o.settle(w, e.word(w), i, found)
			left |= o.alive[w]
		}
		if left == 0 {
			return
		}
	}
	o.settleAll(len(chain), found)
}

// word is the holders among slots 64*w to 64*w+63.
func (h *holder) word(w int) uint64 {
	switch {
	case h.crowd != nil && w < len(h.crowd.set):
		return h.crowd.set[w]
	case h.crowd == nil && int(h.slot/64) == w:
		return 1 << (h.slot % 64)
	}
	return 0
}

// settleAll notes n for all slots that are alive.
func (o *optimistic) settleAll(n int, found []int32) {
	for w := range o.alive {
		o.settle(w, 0, n, found)
	}
}

// settle notes n for the slots of word w that are not in has, and leaves the
// others alive.
func (o *optimistic) settle(w int, has uint64, n int, found []int32) {
	gone := o.alive[w] &^ has
	o.alive[w] &= has
	for ; gone != 0; gone &= gone - 1 {
		found[w*64+bits.TrailingZeros64(gone)] = int32(n) //nolint:gosec // blocks of a prompt
	}
}
