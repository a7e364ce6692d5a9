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

// Clone is a copy that goes its own way: whatever is done to one leaves the
// other as it is. It can be made between steps and in one; what that one has
// told so far, but its tokens, only e tells. The copy reads what other engines
// share and tells them nothing.
func (e *Engine) Clone() *Engine {
	c := *e
	c.pool = e.pool.clone()
	if e.host != nil {
		c.host = e.host.clone()
	}
	c.byID = make(map[ID]*state, len(e.byID))
	c.running, c.waiting = c.adopt(e.running), c.adopt(e.waiting)
	c.result = Result{Prefill: e.result.Prefill, Decode: e.result.Decode, Preempted: e.result.Preempted}
	return &c
}

// adopt copies requests and makes them known to e.
func (e *Engine) adopt(from []*state) []*state {
	if len(from) == 0 {
		return nil
	}
	states := make([]state, len(from))
	to := make([]*state, len(from), len(from)+1)
	for i, s := range from {
		states[i] = *s
		states[i].held = append(make([]slot, 0, len(s.held)+1), s.held...)
		to[i] = &states[i]
		e.byID[s.ID] = to[i]
	}
	return to
}
