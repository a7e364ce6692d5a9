package simulator

import "slices"

// Key names the content of one block or chunk together with everything before
// it: equal keys mean equal prefixes.
type Key uint64

// block is a fixed piece of KV memory.
type block struct {
	key    Key
	cached bool // key is valid and the pool's index knows it
	refs   int  // requests that hold it; 0: it is in the free list
	// prev and next are neighbours in the free list.
	prev, next *block
	// older and newer are a ring of the blocks of the same key: two requests
	// that compute the same block at once both keep theirs.
	older, newer *block
}

// pool hands out blocks. A freed block keeps its content until it is handed out
// again, least recently freed first, and can be found by its key meanwhile.
type pool struct {
	blocks []block
	free   block          // sentinel of a ring; next is the first to be handed out
	idle   int            // length of the ring
	index  map[Key]*block // of several of one key, the oldest
}

func newPool(n int) *pool {
	p := &pool{blocks: make([]block, n), index: make(map[Key]*block)}
	p.free.prev, p.free.next = &p.free, &p.free
	for i := range p.blocks {
		p.append(&p.blocks[i])
	}
	return p
}

func (p *pool) append(b *block) {
	b.prev, b.next = p.free.prev, &p.free
	b.prev.next, b.next.prev = b, b
	p.idle++
}

func (p *pool) unlink(b *block) {
	b.prev.next, b.next.prev = b.next, b.prev
	b.prev, b.next = nil, nil
	p.idle--
}

// match is the longest run of cached blocks from the first key on.
func (p *pool) match(keys []Key) []*block {
	var run []*block
	for _, k := range keys {
		b := p.index[k]
		if b == nil {
			break
		}
		run = append(run, b)
	}
	return run
}

// idleAmong counts the blocks that pin would take out of the free list.
func (p *pool) idleAmong(run []*block) int {
	n := 0
	for _, b := range run {
		if b.refs == 0 {
			n++
		}
	}
	return n
}

// pin holds blocks, so that nobody is handed them.
func (p *pool) pin(run []*block) {
	for _, b := range run {
		if b.refs == 0 {
			p.unlink(b)
		}
		b.refs++
	}
}

// take hands out the block that was freed longest ago; its content is lost. The
// caller checks idle before.
func (p *pool) take() *block {
	b := p.free.next
	p.unlink(b)
	p.forget(b)
	b.refs = 1
	return b
}

// release gives blocks of one request back, the last first: the end of a prompt
// is of less use to others than its beginning.
func (p *pool) release(held []*block) {
	for _, b := range slices.Backward(held) {
		b.refs--
		if b.refs == 0 {
			p.append(b)
		}
	}
}

// remember makes a block's content known by its key.
func (p *pool) remember(b *block, k Key) {
	if b.cached {
		return
	}
	b.key, b.cached = k, true
	first := p.index[k]
	if first == nil {
		p.index[k] = b
		b.older, b.newer = b, b
		return
	}
	b.older, b.newer = first.older, first
	b.older.newer, first.older = b, b
}

func (p *pool) forget(b *block) {
	if !b.cached {
		return
	}
	switch {
	case b.newer == b:
		delete(p.index, b.key)
	case p.index[b.key] == b:
		p.index[b.key] = b.newer
	}
	b.older.newer, b.newer.older = b.newer, b.older
	b.cached, b.older, b.newer = false, nil, nil
}
