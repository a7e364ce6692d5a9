package scoring

import "time"

// passLocked lets go of what is held and may go now. In order, each request goes
// to its best endpoint if that is free: if it has not more booked than it may
// have. Those that stay count as if they were booked too: else requests would
// pile up behind an endpoint that many prefer. Caller must hold mu.
func (l *ledger) passLocked() {
	if l.held.count == 0 {
		l.scheduleLocked(time.Time{})
		return
	}
	for _, g := range l.held.groups {
		for _, a := range g.accounts {
			a.backlogged, a.limit, a.stayTokens = a.backlog(l.now).Seconds(), l.limitLocked(a).Seconds(), 0
		}
	}
	l.held.pass((*account).isFree, l.tryLocked)
	l.scheduleLocked(l.crossingLocked())
}

// isFree reports whether the endpoint may be sent what is held, in a pass.
func (a *account) isFree() bool { return a.backlogged <= a.limit }

// limitLocked is how much an endpoint may have booked and still be sent what is
// held: H. Caller must hold mu.
func (l *ledger) limitLocked(a *account) time.Duration {
	fit := l.fitLocked(a)
	return exact(l.cfg.Hold.Steps * (fit.SecondsPerToken()*float64(l.cfg.BatchTokens) + fit.SecondsPerStep()))
}

// tryLocked books the request at its best endpoint if that is free. Caller must
// hold mu.
func (l *ledger) tryLocked(h *Held) (goes bool) {
	d := h.decision
	l.followLocked(d)
	for i := range d.Candidates {
		c := &d.Candidates[i]
		l.weighLocked(d, c)
		c.Backlog = c.account.backlogged
		if stay := c.account.stayTokens; stay > 0 && l.cfg.KVRoom && c.account.pool.room {
			c.KVWait = c.account.waitForRoom(c.HeldTokens+stay, d.Prompt.Length())
		}
	}
	l.costLocked(d)
	best := &d.Candidates[l.bestLocked(d.Candidates)]
	a := best.account
	goes = a.isFree()
	a.backlogged += best.Work
	if !goes {
		a.stayTokens += d.Prompt.Length()
		return false
	}
	d.Candidates[0], *best = *best, d.Candidates[0]
	l.frontLocked(d.Candidates[1:], alternates)
	l.weighAllLocked(d) // what stays held is no part of the estimate
	l.goLocked(h)
	return true
}

// goLocked books the request at its first candidate. Caller must hold mu.
func (l *ledger) goLocked(h *Held) {
	h.decision.Time, h.decision.Held = l.now, l.now.Sub(h.arrived)
	l.bookLocked(h.decision)
	h.gone = true
	l.released = append(l.released, h)
}

// crossingLocked is when by time alone the next endpoint becomes free; zero: none
// does. Caller must hold mu.
func (l *ledger) crossingLocked() (next time.Time) {
	for _, g := range l.held.groups {
		for _, a := range g.accounts {
			limit := l.limitLocked(a)
			if a.backlog(l.now) <= limit {
				continue
			}
			if at := a.fallsTo(limit); !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

// scheduleLocked notes the next crossing. Caller must hold mu.
func (l *ledger) scheduleLocked(at time.Time) {
	if at.Equal(l.nextRelease) {
		return
	}
	l.nextRelease = at
	select {
	case l.rescheduled <- struct{}{}:
	default:
	}
}
