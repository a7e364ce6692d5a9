package kvevents

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// view is what one rank of one endpoint is believed to hold, and the account
// of how that came to be known.
//
// One goroutine writes (the subscriber's); mu keeps readers out for the blocks
// of one event at most, in parts of lockedBlocks.
type view struct {
	progress *progress            // its endpoint's; set once
	rank     int                  // set once
	capacity scoring.TierCapacity // set once
	total    *atomic.Int64        // blocks of all views; shared
	most     int64                // bounds total; set once

	mu sync.RWMutex // guards the following fields
	// known is true once the engine has told anything: from then on, what is
	// not here is not cached there, as far as anybody can know.
	known bool
	// shelves are in order of their tier, the fastest first. At most maxShelves.
	shelves []*shelf
	account account
	// room is how many tokens the engine says that all its ranks hold on the GPU;
	// 0: it does not. smallest is the size of the smallest block told of there.
	room     scoring.Tokens
	smallest int

	// run are the hashes of the blocks of the event that was stored last, if a
	// prefill's progress can be read from it; the writer's.
	run []uint64
}

// account counts what happened to a view.
type account struct {
	lastBatch time.Time
	batches   uint64
	events    [kinds]uint64
	badFrames uint64
	ignored   uint64
	gaps      uint64
	restarts  uint64
	replays   uint64
	failed    uint64 // replays
	prefills  uint64
	aged      uint64 // blocks
	cleared   map[string]uint64
}

// Why a view was cleared, besides the engine's own AllBlocksCleared.
const (
	clearedRestart = "restart"
	clearedGap     = "gap"
	clearedFrame   = "bad_frame"
)

const (
	// lockedBlocks is how many blocks are worked on under one hold of the lock:
	// some tens of microseconds.
	lockedBlocks = 64
	// maxShelves bounds the media times groups of one rank. Models have up to a
	// handful of groups, engines three tiers.
	maxShelves = 64
)

// apply does what the batch says. live: it tells what happened just now, so that
// prefills may be over by it.
func (v *view) apply(b *batch, now time.Time, live bool) {
	v.mu.Lock()
	v.known = true
	v.account.lastBatch = now
	v.account.batches++
	for i := range b.events {
		v.account.events[b.events[i].kind]++
	}
	v.mu.Unlock()
	for i := range b.events {
		e := &b.events[i]
		switch e.kind {
		case kindStored:
			v.store(e)
			if live {
				v.follow(e)
			}
		case kindRemoved:
			v.remove(e)
		case kindCleared:
			v.mu.Lock()
			v.dropLocked(func(s *shelf) bool { return s.medium == mediumGPU })
			v.mu.Unlock()
		case kindOther:
		}
	}
}

// follow tells the prompts under way what the event that was stored last computed.
func (v *view) follow(e *event) {
	if len(v.run) == 0 || v.progress.waiting.Load() == 0 {
		return
	}
	if ended := v.progress.tell(v.progress.stored(v.rank, e.blockSize, v.run)); ended > 0 {
		v.note(func(a *account) { a.prefills += ended })
	}
}

// fullLocked is what the progress of prefills is read from: the engine's own
// blocks, of the first group that keeps all of a prompt; nil: there is none.
// Caller must hold v.mu.
func (v *view) fullLocked() *shelf {
	for _, s := range v.shelves {
		if s.medium == mediumGPU && s.reach == reachAll {
			return s
		}
	}
	return nil
}

// grain is the block size of the chains that most blocks are in; 0: none is yet.
func (v *view) grain() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	grain, most := 0, 0
	if s := v.fullLocked(); s != nil {
		for _, l := range s.layouts {
			if l.grain == l.stride && l.held.len() > most {
				grain, most = l.grain, l.held.len()
			}
		}
	}
	return grain
}

// leading is how many of the chain's blocks are held from the first one on, but
// for those of news.
func (v *view) leading(grain int, chain, news []uint64) int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := v.fullLocked()
	if s == nil {
		return 0
	}
	for _, l := range s.layouts {
		if l.grain != grain || l.stride != grain {
			continue
		}
		for i, hash := range chain {
			if !l.held.has(hash) || slices.Contains(news, hash) {
				return i
			}
		}
		return len(chain)
	}
	return 0
}

// clear forgets everything, for a reason that is counted.
func (v *view) clear(reason string) {
	if reason == clearedRestart {
		v.progress.restarted()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dropLocked(func(*shelf) bool { return true })
	if v.account.cleared == nil {
		v.account.cleared = make(map[string]uint64)
	}
	v.account.cleared[reason]++
}

// note changes the account.
func (v *view) note(change func(*account)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.account)
}

// settle says that all the engine has to tell was heard.
func (v *view) settle() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known = true
}

// dropLocked drops shelves. Caller must hold v.mu.
func (v *view) dropLocked(which func(*shelf) bool) {
	v.shelves = slices.DeleteFunc(v.shelves, func(s *shelf) bool {
		if !which(s) {
			return false
		}
		v.total.Add(-int64(len(s.blocks)))
		return true
	})
}

// store admits the blocks of one event.
func (v *view) store(e *event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.run = v.run[:0]
	s := v.shelfLocked(e.medium, e.group)
	if s == nil {
		v.account.ignored++
		return
	}
	if e.spec != "" {
		s.reach, s.window = reachOf(e.spec, e.window)
	}
	if s.medium == mediumGPU && e.blockSize > 0 && (v.smallest == 0 || e.blockSize < v.smallest) {
		v.smallest = e.blockSize
	}
	at := v.beginLocked(s, e)
	full := s == v.fullLocked()
	for i, hash := range e.hashes {
		if i > 0 && i%lockedBlocks == 0 {
			v.mu.Unlock()
			v.mu.Lock() // Nobody else changes shelves.
		}
		b := v.storeLocked(s, e, i, hash, &at)
		if full && b.layout != nil && b.layout.grain == e.blockSize {
			v.run = append(v.run, b.chain)
		}
	}
}

// place is where in a prompt the blocks of an event have got to: the layout and
// the chain of the block before; layout nil where that is not known.
type place struct {
	layout *layout
	chain  uint64
}

// beginLocked finds where the event's first block begins. Caller must hold v.mu.
func (v *view) beginLocked(s *shelf, e *event) place {
	switch {
	case e.foreign == 0:
		return place{layout: foreign}
	case e.blockSize == 0 || len(e.tokens) == 0:
		return place{}
	case len(e.tokens)/e.blockSize > len(e.hashes):
		// Groups with a window keep only some blocks of a prompt, and the event
		// has the tokens of all: nobody knows which are whose.
		return place{}
	case !e.hasParent:
		return place{s.layout(e.blockSize, e.blockSize), scoring.ChainRoot(e.adapter, e.salt)}
	}
	parent := v.findLocked(s, e.parent)
	if parent == nil {
		return place{}
	}
	return s.behind(parent, e.blockSize)
}

// behind is the place after b in a run of blocks of that size.
func (s *shelf) behind(b *block, size int) place {
	switch {
	case b.layout == nil || b.layout == foreign:
		return place{layout: b.layout}
	case size%b.layout.grain != 0:
		// A chain of larger blocks cannot be gone on with in smaller ones.
		return place{}
	}
	return place{s.layout(b.layout.grain, size), b.chain}
}

// storeLocked admits block i of the event, which begins at the place and moves
// it on. It may be forgotten at once, where there is no room. Caller must hold
// v.mu.
func (v *view) storeLocked(s *shelf, e *event, i int, hash uint64, at *place) *block {
	if e.foreign >= 0 && i >= e.foreign {
		at.layout = foreign
	}
	b, added := s.admit(hash, e.blockSize)
	switch end := (i + 1) * e.blockSize; {
	case b.layout != nil:
		// Told before, perhaps when more was known than now.
	case at.layout == foreign:
		s.identify(b, foreign, 0)
	default:
		// The same hash means the same content wherever it lies, and tiers that
		// copy do not say what there is besides tokens.
		twin := v.twinLocked(s, hash)
		switch {
		case twin != nil && s.copy(b, twin):
		case at.layout != nil && end <= len(e.tokens):
			s.identify(b, at.layout, at.layout.extendChain(at.chain, e.tokens[end-e.blockSize:end]))
		}
	}
	if b.layout != nil {
		v.tellTwinsLocked(s, b)
	}
	s.moveOn(at, b, e, i)
	if added {
		v.total.Add(1)
	}
	for v.fullShelfLocked(s) {
		s.forget(s.oldest)
		s.aged++
		v.account.aged++
		v.total.Add(-1)
	}
	for v.total.Load() > v.most && s.oldest != nil {
		s.forget(s.oldest)
		v.total.Add(-1)
	}
	return b
}

// extendChain is the chain behind tokens, a block of the layout.
func (l *layout) extendChain(chain uint64, tokens []uint32) uint64 {
	for begin := 0; begin+l.grain <= len(tokens); begin += l.grain {
		chain = scoring.ChainBlock(chain, tokens[begin:begin+l.grain])
	}
	return chain
}

// fullShelfLocked: the shelf has more than the medium can hold. The capacity that
// an engine tells of is in blocks, really, which all groups share; whose blocks
// are larger holds more tokens in as many. Caller must hold v.mu.
func (v *view) fullShelfLocked(s *shelf) bool {
	switch {
	case s.oldest == nil:
		return false
	case s.capacity > 0:
		return s.tokens > s.capacity
	}
	return s.medium == mediumGPU && v.room > 0 && v.smallest > 0 && len(s.blocks) > int(v.room)/v.smallest
}

// moveOn moves the place behind block i of the event.
func (s *shelf) moveOn(at *place, b *block, e *event, i int) {
	switch end := (i + 1) * e.blockSize; {
	case e.blockSize == 0:
	case b.layout == foreign || b.layout != nil && e.blockSize%b.layout.grain == 0:
		*at = s.behind(b, e.blockSize)
	case at.layout == nil || at.layout == foreign:
	case b.layout == nil || end > len(e.tokens):
		at.layout = nil
	default:
		// A tier told of the block in larger ones before.
		at.chain = at.layout.extendChain(at.chain, e.tokens[end-e.blockSize:end])
	}
}

// copy identifies b by its twin in another tier or group and reports whether it
// could. A block told with a larger size stands for several of the twin's, the
// twin being the last of them.
func (s *shelf) copy(b, twin *block) bool {
	if twin.layout == foreign {
		s.identify(b, foreign, 0)
		return true
	}
	stride := int(b.size)
	switch {
	case stride == 0:
		stride = twin.layout.stride
		b.size = uint32(stride) //nolint:gosec // At most maxBlockSize.
		s.tokens += scoring.Tokens(stride)
	case stride%twin.layout.grain != 0:
		return false
	}
	l := s.layout(twin.layout.grain, stride)
	if l != nil {
		s.identify(b, l, twin.chain)
	}
	return l != nil
}

// tellTwinsLocked identifies blocks of the same hash elsewhere that came before
// anything was known of their tokens: the groups of one engine tell of a step in
// any order. Caller must hold v.mu.
func (v *view) tellTwinsLocked(s *shelf, b *block) {
	for _, other := range v.shelves {
		if other == s || other.matched == len(other.blocks) {
			continue
		}
		if twin := other.blocks[b.hash]; twin != nil && twin.layout == nil {
			other.copy(twin, b)
		}
	}
}

// remove takes back one copy of each block of one event.
func (v *view) remove(e *event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.findShelfLocked(e.medium, e.group)
	if s == nil {
		return
	}
	for i, hash := range e.hashes {
		if i > 0 && i%lockedBlocks == 0 {
			v.mu.Unlock()
			v.mu.Lock() // Nobody else changes shelves.
		}
		if s.release(hash) {
			v.total.Add(-1)
		}
	}
}

// findLocked is the block of that hash, in s or elsewhere. Caller must hold
// v.mu.
func (v *view) findLocked(s *shelf, hash uint64) *block {
	if b := s.blocks[hash]; b != nil && b.layout != nil {
		return b
	}
	return v.twinLocked(s, hash)
}

// twinLocked is a block of that hash outside s whose tokens are known, or
// known to be foreign. Caller must hold v.mu.
func (v *view) twinLocked(s *shelf, hash uint64) *block {
	for _, other := range v.shelves {
		if other == s {
			continue
		}
		if b := other.blocks[hash]; b != nil && b.layout != nil {
			return b
		}
	}
	return nil
}

func (v *view) findShelfLocked(medium string, group int) *shelf {
	for _, s := range v.shelves {
		if s.group == group && s.medium == medium {
			return s
		}
	}
	return nil
}

// shelfLocked finds or makes a shelf; nil where there are too many. Caller must
// hold v.mu.
func (v *view) shelfLocked(medium string, group int) *shelf {
	if s := v.findShelfLocked(medium, group); s != nil {
		return s
	}
	if len(v.shelves) == maxShelves {
		return nil
	}
	s := newShelf(medium, group, capacityOf(v.capacity, medium))
	v.shelves = append(v.shelves, s)
	slices.SortStableFunc(v.shelves, func(a, b *shelf) int {
		return cmp.Or(cmp.Compare(tier(a.medium), tier(b.medium)), cmp.Compare(a.medium, b.medium), cmp.Compare(a.group, b.group))
	})
	return s
}

// tier orders media by the time that loading from them takes.
func tier(medium string) int {
	switch medium {
	case mediumGPU:
		return 0
	case "cpu":
		return 1
	}
	return 2
}

func capacityOf(c scoring.TierCapacity, medium string) scoring.Tokens {
	switch medium {
	case mediumGPU:
		return c.GPU
	case "cpu":
		return c.CPU
	}
	return c.Storage
}
