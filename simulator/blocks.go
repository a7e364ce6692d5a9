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

// pool hands out blocks: those without content that anybody could find, then the
// least recently freed. A freed block keeps its content until it is handed out
// again, and can be found by its key meanwhile.
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
		p.insert(&p.blocks[i], p.free.prev)
	}
	return p
}

// insert puts a block into the free list, behind another or the sentinel.
func (p *pool) insert(b, behind *block) {
	b.prev, b.next = behind, behind.next
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

// take hands out the block that was freed longest ago. Its content is lost:
// where it was known by a key, lost is true and the key is that of the result.
// The caller checks idle before.
func (p *pool) take() (b *block, key Key, lost bool) {
	b = p.free.next
	p.unlink(b)
	key, lost = b.key, b.cached
	p.forget(b)
	b.refs = 1
	return b, key, lost
}

// release gives blocks of one request back, the last first: the end of a prompt
// is of less use to others than its beginning. Those that cannot be found by a
// key are the first to be handed out, as in vLLM (seen in 0.32).
func (p *pool) release(held []*block) {
	for _, b := range slices.Backward(held) {
		b.refs--
		switch {
		case b.refs > 0:
		case b.cached:
			p.insert(b, p.free.prev)
		default:
			p.insert(b, &p.free)
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

// forgetAll makes every block's content unknown; the order in which they are
// handed out stays.
func (p *pool) forgetAll() {
	for i := range p.blocks {
		p.forget(&p.blocks[i])
	}
}
