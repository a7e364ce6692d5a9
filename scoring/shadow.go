package scoring

import (
	"slices"
	"time"
)

// Shadow is what belongs to a decision that nobody obeys: somebody else sends the
// request on its way, and we are shown it.
type Shadow struct {
	// Choice is the candidate that would have been chosen, with the numbers that
	// were weighed.
	Choice Candidate
	// Placed: it is known who serves the request. The decision's first candidate
	// is then that endpoint, and the booking is there. Otherwise the first
	// candidate is Choice, and nothing is booked.
	Placed bool
}

// Shadow decides for a request that somebody else sends to an endpoint, as Pick
// would, and books nothing until Place tells which one that is. sent is when the
// request was on its way whole, which is what the time to first token counts
// from; it must not be later than now. Nothing is ever held. Errors and cost are
// those of Pick; the caller must end the decision's Reservation.
func (p *Picker) Shadow(id string, prompt *Prompt, sent time.Time) (*Decision, error) {
	d, err := p.prepare(id, prompt)
	if err != nil {
		return nil, err
	}
	if err := p.ledger.shadow(d, sent); err != nil {
		return nil, err
	}
	d.Reason = reason(d)
	return d, nil
}

// shadow ranks the candidates and opens a reservation that is booked nowhere.
func (l *ledger) shadow(d *Decision, sent time.Time) error {
	d.Time = l.lock()
	defer l.unlock()
	if err := l.completeLocked(d); err != nil {
		return err
	}
	l.arriveLocked(d)
	l.rankLocked(d)
	d.Shadow = &Shadow{Choice: d.Candidates[0]}
	r := &Reservation{ledger: l, decision: d, dispatched: sent, sent: true, unplaced: true}
	l.due.set(r, l.now.Add(max(minQueuedAge, queuedAgeEstimates*d.Candidates[0].Estimate)))
	l.open[d.ID] = r
	d.Reservation = r
	return nil
}

// Place tells which address serves a request of Shadow, once: it is booked there,
// and the decision that is returned has that endpoint as its first candidate. Nil:
// it was placed before, has ended, or the address is no candidate's; then nothing
// changes.
func (r *Reservation) Place(address string) *Decision {
	l := r.ledger
	l.lock()
	defer l.unlock()
	if !r.unplaced || r.state == ended {
		return nil
	}
	at := slices.IndexFunc(r.decision.Candidates, func(c Candidate) bool { return c.Endpoint.Address == address })
	if at < 0 {
		return nil
	}
	d := *r.decision
	d.Candidates = slices.Clone(d.Candidates)
	d.Candidates[0], d.Candidates[at] = d.Candidates[at], d.Candidates[0]
	d.Shadow = &Shadow{Choice: d.Shadow.Choice, Placed: true}
	r.decision, r.unplaced = &d, false
	served := &d.Candidates[0]
	a := l.accounts[served.Endpoint.ID]
	if a == nil {
		return &d // it is gone meanwhile; nothing can be owed there
	}
	l.turn++
	a.turns[served.Endpoint.pool()] = l.turn
	a.sent.add(l.now)
	r.enterLocked(a, served)
	if r.state == queued && !d.Prompt.Streamed {
		l.due.set(r, later(l.now, r.dispatched.Add(served.Estimate)))
	}
	return &d
}
