package kvevents

import "github.com/firsttoken/firsttoken/scoring"

// shelf is what one rank of an engine holds of one KV cache group in one
// medium. It belongs to its view, whose lock guards it.
type shelf struct {
	medium string // set once
	group  int    // set once
	reach  reach
	// window is how many tokens before a position must be held for a prefix
	// that ends there, where reach is reachWindow.
	window scoring.Tokens

	// blocks are all blocks held, by the engine's hash; bounded by capacity and
	// by Config.MaxBlocks.
	blocks map[uint64]*block
	// layouts find those of them whose tokens are known. At most maxLayouts.
	layouts []*layout
	// oldest and newest end the list of blocks by their last announcement.
	oldest, newest *block
	// matched is the number of blocks that a prompt can be compared with.
	matched int
	// tokens are held over all blocks; capacity bounds them, 0: not at all.
	tokens, capacity scoring.Tokens
	// removed and aged count the blocks that the engine took back, and those that
	// were forgotten because the medium is full.
	removed, aged uint64
}

// storeOnly: the engine tells what it stores there and not what it removes. An
// engine makes room before it stores, so one that does tell fills no medium past
// its capacity.
func (s *shelf) storeOnly() bool { return s.aged > 0 && s.removed == 0 }

// reach says which blocks of a prompt a group of layers needs.
type reach uint8

const (
	// reachAll: attention over all that was before, so all blocks count.
	reachAll reach = iota
	// reachWindow: only the last tokens before a position count, of sliding
	// windows and of states that are kept block by block.
	reachWindow
	// reachNone: the group says nothing of the prompt's prefix (encoders).
	reachNone
)

// reachOf says it for vLLM's names of attention kinds. What is unknown needs
// all, which can only understate what is cached.
func reachOf(spec string, window int) (reach, scoring.Tokens) {
	switch spec {
	case "sliding_window", "sliding_window_mla":
		return reachWindow, scoring.Tokens(max(1, window-1))
	case "mamba", "chunked_local_attention":
		// The state at the end of the prefix is all that is read. Local
		// attention may need more of its chunk, whose size is not told.
		return reachWindow, 1
	case "encoder_only_attention", "cross_attention":
		return reachNone, 0
	}
	return reachAll, 0
}

// layout is a way in which prompts are cut into blocks.
type layout struct {
	// grain is the block size of the hashes' chain, stride the tokens that one
	// block here stands for: a multiple of grain where an offloading tier
	// keeps several blocks under the hash of the last.
	grain, stride int
	// held counts the blocks held with each chain hash: two names of the
	// same tokens are two.
	held chainSet
}

// maxLayouts bounds the block sizes of one group in one medium; past it a
// block counts as unknown.
const maxLayouts = 8

// block is one hash that the engine announced and has not taken back as often.
type block struct {
	older, newer *block
	// layout and chain say which tokens it holds; layout is nil where that is
	// not known, and foreign where no prompt of ours can match it.
	layout *layout
	chain  uint64
	hash   uint64
	refs   uint32 // copies held; never 0
	size   uint32 // tokens
}

// foreign is the layout of blocks whose hash has something in it that we cannot
// know of a prompt, such as an image. No prompt matches them, nor what follows
// them.
var foreign = &layout{}

func newShelf(medium string, group int, capacity scoring.Tokens) *shelf {
	return &shelf{medium: medium, group: group, capacity: capacity, blocks: make(map[uint64]*block)}
}

// layout finds or makes one; nil where there are too many.
func (s *shelf) layout(grain, stride int) *layout {
	for _, l := range s.layouts {
		if l.grain == grain && l.stride == stride {
			return l
		}
	}
	if len(s.layouts) == maxLayouts {
		return nil
	}
	l := &layout{grain: grain, stride: stride}
	s.layouts = append(s.layouts, l)
	return l
}

// admit notes one more copy of the block and returns it.
func (s *shelf) admit(hash uint64, size int) (b *block, added bool) {
	b = s.blocks[hash]
	if b == nil {
		b = &block{hash: hash, refs: 1, size: uint32(size)} //nolint:gosec // At most maxBlockSize.
		s.blocks[hash] = b
		s.tokens += scoring.Tokens(size)
		added = true
	} else {
		b.refs++
		s.unlink(b)
	}
	b.older = s.newest
	if s.newest != nil {
		s.newest.newer = b
	} else {
		s.oldest = b
	}
	s.newest = b
	return b, added
}

// identify says which tokens a block holds that did not say so yet.
func (s *shelf) identify(b *block, l *layout, chain uint64) {
	b.layout, b.chain = l, chain
	if l != nil && l != foreign {
		l.held.add(chain)
		s.matched++
	}
}

// release notes one copy less; what was never announced is ignored. It reports
// whether that was the last.
func (s *shelf) release(hash uint64) bool {
	b := s.blocks[hash]
	if b == nil {
		return false
	}
	if b.refs--; b.refs > 0 {
		return false
	}
	s.forget(b)
	s.removed++
	return true
}

// forget drops a block, however many copies of it there are.
func (s *shelf) forget(b *block) {
	delete(s.blocks, b.hash)
	s.unlink(b)
	s.tokens -= scoring.Tokens(b.size)
	if l := b.layout; l != nil && l != foreign {
		s.matched--
		l.held.remove(b.chain)
	}
}

func (s *shelf) unlink(b *block) {
	if b.older != nil {
		b.older.newer = b.newer
	} else {
		s.oldest = b.newer
	}
	if b.newer != nil {
		b.newer.older = b.older
	} else {
		s.newest = b.older
	}
	b.older, b.newer = nil, nil
}
