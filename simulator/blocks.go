package simulator

import (
	"maps"
	"slices"
)

// Key names the content of one block or chunk together with everything before
// it: equal keys mean equal prefixes.
type Key uint64

// slot is where a block is in its pool.
type slot int32

// none is no block.
const none slot = -1

// block is a fixed piece of KV memory.
type block struct {
	key    Key
	cached bool  // key is valid and the pool's index knows it
	refs   int32 // requests that hold it; 0: it is in the free list
	// prev and next are neighbours in the free list.
	prev, next slot
	// older and newer are a ring of the blocks of the same key: two requests
	// that compute the same block at once both keep theirs.
	older, newer slot
}

// pool hands out blocks: those without content that anybody could find, then the
// least recently freed. A freed block keeps its content until it is handed out
// again, and can be found by its key meanwhile.
type pool struct {
	// blocks are those that there are and, last, the sentinel of the free list, a
	// ring: its next is the first to be handed out.
	blocks []block
	idle   int   // length of the free list
	index  index // of several of one key, the oldest
}

// index finds blocks by their key.
type index struct {
	own map[Key]slot
	// under is what a pool to look ahead with finds below its own changes; it
	// belongs to the pool that it was made of. There none in own means no longer.
	// Nil elsewhere.
	under map[Key]slot
}

func (x *index) get(k Key) (slot, bool) {
	if i, ok := x.own[k]; ok || x.under == nil {
		return i, ok && i != none
	}
	i, ok := x.under[k]
	return i, ok
}

func (x *index) set(k Key, i slot) { x.own[k] = i }

func (x *index) remove(k Key) {
	if x.under == nil {
		delete(x.own, k)
		return
	}
	x.own[k] = none
}

// ahead is an index that may change while x does not.
func (x *index) ahead() index {
	if x.under == nil {
		return index{own: make(map[Key]slot), under: x.own}
	}
	return index{own: maps.Clone(x.own), under: x.under}
}

func newPool(n int) *pool {
	p := &pool{blocks: make([]block, n+1), index: index{own: make(map[Key]slot)}}
	free := p.free()
	p.blocks[free].prev, p.blocks[free].next = free, free
	for i := range free {
		p.insert(i, p.blocks[free].prev)
	}
	return p
}

// ahead is a copy that may change while p does not.
func (p *pool) ahead() *pool {
	return &pool{blocks: slices.Clone(p.blocks), idle: p.idle, index: p.index.ahead()}
}

// size is the number of blocks.
func (p *pool) size() int { return len(p.blocks) - 1 }

// free is the sentinel of the free list.
func (p *pool) free() slot { return slot(len(p.blocks) - 1) } //nolint:gosec // a pool of two thousand million blocks would not fit

// insert puts a block into the free list, behind another or the sentinel.
func (p *pool) insert(i, behind slot) {
	b, before := &p.blocks[i], &p.blocks[behind]
	b.prev, b.next = behind, before.next
	p.blocks[before.next].prev = i
	before.next = i
	p.idle++
}

func (p *pool) unlink(i slot) {
	b := &p.blocks[i]
	p.blocks[b.prev].next, p.blocks[b.next].prev = b.next, b.prev
	b.prev, b.next = none, none
	p.idle--
}

// match is the longest run of cached blocks from the first key on.
func (p *pool) match(keys []Key) []slot {
	var run []slot
	for n, k := range keys {
		i, ok := p.index.get(k)
		if !ok {
			break
		}
		if run == nil {
			run = make([]slot, 0, len(keys)-n+1)
		}
		run = append(run, i)
	}
	return run
}

// idleAmong counts the blocks that pin would take out of the free list.
func (p *pool) idleAmong(run []slot) int {
	n := 0
	for _, i := range run {
		if p.blocks[i].refs == 0 {
			n++
		}
	}
	return n
}

// pin holds blocks, so that nobody is handed them.
func (p *pool) pin(run []slot) {
	for _, i := range run {
		if p.blocks[i].refs == 0 {
			p.unlink(i)
		}
		p.blocks[i].refs++
	}
}

// take hands out the block that was freed longest ago. Its content is lost:
// where it was known by a key, lost is true and the key is that of the result.
// The caller checks idle before.
func (p *pool) take() (i slot, key Key, lost bool) {
	i = p.blocks[p.free()].next
	p.unlink(i)
	b := &p.blocks[i]
	key, lost = b.key, b.cached
	p.forget(i)
	b.refs = 1
	return i, key, lost
}

// release gives blocks of one request back, the last first: the end of a prompt
// is of less use to others than its beginning. Those that cannot be found by a
// key are the first to be handed out, as in vLLM (seen in 0.32).
func (p *pool) release(held []slot) {
	free := p.free()
	for _, i := range slices.Backward(held) {
		b := &p.blocks[i]
		b.refs--
		switch {
		case b.refs > 0:
		case b.cached:
			p.insert(i, p.blocks[free].prev)
		default:
			p.insert(i, free)
		}
	}
}

// remember makes a block's content known by its key.
func (p *pool) remember(i slot, k Key) {
	b := &p.blocks[i]
	if b.cached {
		return
	}
	b.key, b.cached = k, true
	first, ok := p.index.get(k)
	if !ok {
		p.index.set(k, i)
		b.older, b.newer = i, i
		return
	}
	oldest := &p.blocks[first]
	b.older, b.newer = oldest.older, first
	p.blocks[b.older].newer = i
	oldest.older = i
}

func (p *pool) forget(i slot) {
	b := &p.blocks[i]
	if !b.cached {
		return
	}
	if first, _ := p.index.get(b.key); b.newer == i {
		p.index.remove(b.key)
	} else if first == i {
		p.index.set(b.key, b.newer)
	}
	p.blocks[b.older].newer, p.blocks[b.newer].older = b.newer, b.older
	b.cached, b.older, b.newer = false, none, none
}

// forgetAll makes every block's content unknown; the order in which they are
// handed out stays.
func (p *pool) forgetAll() {
	for i := range p.free() {
		p.forget(i)
	}
}
