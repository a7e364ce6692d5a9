package routed

import "github.com/firsttoken/firsttoken/scoring"

// guard compares what we predicted an engine to find in its cache with what it
// counted, and says how much of what was routed there is to be believed. It
// does not learn the capacity: simulated, that did not pay, because the hits
// of a window depend on what was asked in it more than on what was held. It is
// there for what is grossly wrong and not told otherwise: a restart that was
// not seen, prefix caching that is off, a cache that is much smaller than it is
// said to be or filled by others.
//
// All errors of the comparison are to one side: the engine also finds answers
// that it generated, copies of one prompt, and prompts that others sent, all of
// which it counts and we do not. So less than predicted says something, and as
// much as predicted little; the guard is quick to believe again, in bounds
// that others know.
type guard struct {
	level int // index of shares
	// Since the last change of the level, the older weighing less: prompts
	// computed of which anything was predicted to be found, the tokens
	// predicted to be found of what is believed and of all that is remembered,
	// and the tokens that the engine found.
	prompts, believed, all, found float64
}

// shares are how much of the capacity is believed to be held, by level.
var shares = [...]float64{1, 1. / 4, 1. / 16, 0}

const (
	// What has to be known before the level is changed. With less, prompts
	// under way, which the engine has counted and we have not, would weigh.
	leastPrompts = 24
	leastTokens  = 8192
	// clearly is the share of the predicted below which a prediction was wrong.
	clearly = 0.5
)

// predicted takes in a prompt that was computed, and how much of it was
// predicted to be found: in what is believed, and in all that is remembered.
func (g *guard) predicted(believed, all scoring.Tokens) {
	if all == 0 {
		return
	}
	g.prompts++
	g.believed += float64(believed)
	g.all += float64(all)
}

// counted takes in that the engine found so many more tokens, and judges. An
// engine with ranks finds a prefix only in the rank that has it.
func (g *guard) counted(tokens uint64, ranks int) {
	g.found += float64(tokens)
	if g.prompts < leastPrompts || g.all < leastTokens {
		return
	}
	share := 1 / float64(max(1, ranks))
	switch {
	case g.level+1 < len(shares) && g.found < clearly*g.believed*share:
		*g = guard{level: g.level + 1}
	case g.level > 0 && g.found > (g.believed+clearly*(g.all-g.believed))*share:
		*g = guard{level: g.level - 1}
	case g.prompts > 4*leastPrompts:
		g.prompts /= 2
		g.believed /= 2
		g.all /= 2
		g.found /= 2
	}
}
