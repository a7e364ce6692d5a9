package kvevents

import (
	"math"
	"slices"

	"github.com/firsttoken/firsttoken/scoring"
)

// chains are the chain hashes of one sequence from one root on, for each block
// size in use, computed no further than somebody asks. Owned by one Match.
type chains struct {
	ids    []uint32
	root   uint64
	grains []grainChain
}

type grainChain struct {
	grain int
	chain []uint64
}

// at is the hash of the block that ends at position end, a multiple of grain
// and at most len(ids).
func (c *chains) at(grain, end int) uint64 { return c.of(grain).upTo(c, end/grain)[end/grain-1] }

// upTo are the hashes of the first n blocks, at least.
func (g *grainChain) upTo(c *chains, n int) []uint64 {
	for len(g.chain) < n {
		prev, begin := c.root, len(g.chain)*g.grain
		if begin > 0 {
			prev = g.chain[len(g.chain)-1]
		}
		g.chain = append(g.chain, scoring.ChainBlock(prev, c.ids[begin:begin+g.grain]))
	}
	return g.chain
}

func (c *chains) of(grain int) *grainChain {
	for i := range c.grains {
		if c.grains[i].grain == grain {
			return &c.grains[i]
		}
	}
	c.grains = append(c.grains, grainChain{grain: grain, chain: make([]uint64, 0, len(c.ids)/grain)})
	return &c.grains[len(c.grains)-1]
}

// match is what the rank holds of the sequence; false where it has told
// nothing yet.
//
// It looks as vLLM does: the engine's own blocks first, up to the first that is
// missing, and from there on whatever the other tiers hold; then no more of the
// engine's own.
func (v *view) match(c *chains) (m scoring.Match, known bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if !v.known {
		return m, false
	}
	pos := v.extendLocked(&m, c, 0, mediumGPU, all)
	for grown := true; grown; {
		before, last, blocks := pos, mediumGPU, all
		for _, s := range v.shelves {
			if s.medium == last || pos > before {
				continue
			}
			pos, last = v.extendLocked(&m, c, pos, s.medium, blocks), s.medium
			// Behind each block of a slower tier a faster one may go on.
			blocks = 1
		}
		grown = pos > before
	}
	m.Cached = scoring.Tokens(pos)
	return m, true
}

// all is more blocks than a sequence has.
const all = math.MaxInt

// extendLocked goes from pos as far as the medium holds it, by at most so many
// blocks, adds the span and returns the end. Caller must hold v.mu for reading.
func (v *view) extendLocked(m *scoring.Match, c *chains, pos int, medium string, blocks int) int {
	end, full, windows := len(c.ids), false, false
	for _, s := range v.shelves {
		if s.medium != medium {
			continue
		}
		switch s.reach {
		case reachAll:
			end, full = min(end, s.extend(c, pos, blocks)), true
		case reachWindow:
			windows = windows || !s.silent()
		case reachNone:
		}
	}
	switch {
	case medium != mediumGPU && !full, !full && !windows:
		// Other tiers' windows are not weighed: what they lack of a window the
		// engine computes, whatever the tier says of the rest.
		return pos
	case medium == mediumGPU && windows:
		end = v.windowsLocked(c, end)
	}
	if end <= pos {
		return pos
	}
	if n := len(m.Spans); n > 0 && m.Spans[n-1].Location == medium {
		m.Spans[n-1].End = scoring.Tokens(end)
	} else {
		m.Spans = append(m.Spans, scoring.Span{End: scoring.Tokens(end), Location: medium})
	}
	return end
}

// windowsLocked shortens a prefix of the engine's own blocks until every group
// with a window has that window before its end. Caller must hold v.mu for
// reading.
func (v *view) windowsLocked(c *chains, end int) int {
	for {
		before := end
		for _, s := range v.shelves {
			if s.medium == mediumGPU && s.reach == reachWindow && !s.silent() {
				end = s.tail(c, end)
			}
		}
		if end == before {
			return end
		}
	}
}

// silent: nothing is known of the tokens that its blocks hold, so that it says
// nothing of any prompt.
func (s *shelf) silent() bool { return s.matched == 0 && len(s.blocks) > 0 }

// extend is how far the shelf holds the sequence without a gap from pos on,
// looking at no more than so many blocks.
func (s *shelf) extend(c *chains, pos, blocks int) int {
	for grown := true; grown; {
		grown = false
		for _, l := range s.layouts {
			if n := l.run(c, pos, blocks); n > 0 {
				// The block that pos is in begins there or before.
				pos, grown, blocks = (pos/l.stride+n)*l.stride, true, blocks-n
			}
		}
	}
	return pos
}

// tail is the last position up to end before which the window is held, or all
// from the beginning where that is shorter.
func (s *shelf) tail(c *chains, end int) int {
	var l *layout
	for _, other := range s.layouts {
		if l == nil || other.held.len() > l.held.len() {
			l = other
		}
	}
	if l == nil {
		return 0
	}
	stride := l.stride
	end -= end % stride
	needed := (int(s.window) + stride - 1) / stride
	run := 0
	for pos := end; pos > 0 && run < needed; pos -= stride {
		if slices.ContainsFunc(s.layouts, func(l *layout) bool { return l.stride == stride && l.has(c, pos) }) {
			run++
			continue
		}
		end, run = pos-stride, 0
	}
	return end
}

// run is how many blocks are held without a gap, beginning with the one that pos
// is in, at most so many.
func (l *layout) run(c *chains, pos, blocks int) (n int) {
	if l.held.len() == 0 {
		return 0
	}
	g, step := c.of(l.grain), l.stride/l.grain
	first := pos / l.stride
	blocks = min(blocks, len(c.ids)/l.stride-first)
	for chain := g.chain; n < blocks; n++ {
		at := (first + n + 1) * step
		if at > len(chain) {
			chain = g.upTo(c, at)
		}
		if !l.held.has(chain[at-1]) {
			break
		}
	}
	return n
}

func (l *layout) has(c *chains, end int) bool { return l.held.has(c.at(l.grain, end)) }
