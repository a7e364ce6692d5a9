package simulator

import "slices"

// Ahead is a copy of the engine to look ahead with: whatever is done to it
// leaves e as it is. It may be used until e changes. It can be made between steps
// and in one; what that one has told so far, but its tokens, only e tells, and so
// is what changes in the host tier. It reads what other engines share and tells
// them nothing. Cost: some microseconds for every thousand blocks.
func (e *Engine) Ahead() *Engine {
	a := *e
	a.pool = e.pool.ahead()
	if e.host != nil {
		a.shared = e.shared.ahead()
		a.host = e.host.ahead(a.shared)
	}
	a.byID = make(map[ID]*state, len(e.byID)+1)
	a.running, a.waiting = a.adopt(e.running), a.adopt(e.waiting)
	a.result = Result{Prefill: e.result.Prefill, Decode: e.result.Decode, Preempted: e.result.Preempted}
	return &a
}

// adopt copies requests and makes them known to e.
func (e *Engine) adopt(from []*state) []*state {
	states := make([]state, len(from))
	to := make([]*state, len(from), len(from)+1)
	for i, s := range from {
		states[i] = *s
		// Blocks are appended and given up, never replaced, so the original's can
		// be read; an append must not write behind them.
		states[i].held = slices.Clip(s.held)
		to[i] = &states[i]
		e.byID[s.ID] = to[i]
	}
	return to
}
