package scoring

import "time"

// Heard is when the endpoint at address last showed that it computes: by the
// first chunk of an answer, or by telling how far it is with a prompt. Zero: not
// yet, or there is no such endpoint. An engine that hangs is told by it from one
// that is late.
func (p *Picker) Heard(address string) time.Time {
	l := p.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.endpoints {
		if l.endpoints[i].Address == address {
			if a := l.accounts[l.endpoints[i].ID]; a != nil {
				return a.heard
			}
		}
	}
	return time.Time{}
}

// heardLocked takes in that the endpoint of this booking computes. Caller must
// hold ledger.mu.
func (r *Reservation) heardLocked() {
	if r.account != nil {
		r.account.heard = r.ledger.now
	}
}

// Await tells that the first token of a streamed request is waited for that
// long, whatever was estimated: the booking is not given up before.
func (r *Reservation) Await(d time.Duration) {
	l := r.ledger
	now := l.lock()
	defer l.unlock()
	if r.state != queued || !r.decision.Prompt.Streamed {
		return
	}
	if until := now.Add(d); until.After(r.due) {
		l.due.set(r, until)
	}
}
