package simulator

import (
	"math"
	"time"
)

// Coast runs steps as Schedule and Complete would, as long as there is nothing
// to tell of them: all that runs decodes, nobody gets a first or last token,
// takes a block or leaves the queue. It stops before the first step that ends
// after limit, and returns how long they took together and how many tokens each
// running request got. Their cost does not grow with the number of requests.
// With dry nothing changes. The caller calls it between steps.
func (e *Engine) Coast(limit time.Duration, dry bool) (took time.Duration, steps int) {
	if e.stepping {
		panic("simulator: Coast before the step under way is complete")
	}
	most := e.silent()
	if most == 0 {
		return 0, 0
	}
	l := load{decodes: len(e.running)}
	for _, s := range e.running {
		l.decodeContext += s.total
	}
	for steps < most {
		d := e.profile.duration(l)
		if took+d > limit {
			break
		}
		took += d
		l.decodeContext += l.decodes
		steps++
	}
	if !dry {
		for _, s := range e.running {
			s.total += steps
			s.computed += steps
		}
	}
	return took, steps
}

// silent is how many of the next steps have nothing to tell, at least: one token
// less than the first request needs to its end or to the end of its last block.
func (e *Engine) silent() int {
	if len(e.running) == 0 || len(e.running) > e.profile.BatchTokens || e.reset ||
		len(e.waiting) > 0 && !e.blocked && len(e.running) < e.profile.MaxSeqs {
		return 0
	}
	most := math.MaxInt
	for _, s := range e.running {
		if !s.decoding() {
			return 0
		}
		most = min(most, s.PromptTokens+s.OutputTokens-1-s.total, len(s.held)*e.block-s.total)
	}
	return max(0, most)
}
