package scoring

import "time"

// Reservation is one request's booking. Its state only moves forward, queued,
// decoding, ended, so every method may be called late, twice or in any order:
// what comes after the fact changes nothing. Safe for concurrent use.
type Reservation struct {
	ledger     *ledger   // set once in reserve
	dispatched time.Time // set once in reserve

	// The following are guarded by ledger.mu.
	state    state
	decision *Decision // what it points to is immutable
	// account and candidate are where the booking is: nil once the endpoint is
	// gone, or where an endpoint unknown to us serves the request.
	account   *account
	candidate *Candidate
	// left is the work of candidate that is not over yet, while queued. computed
	// is how many leading tokens of each sequence are told to be computed there;
	// nil: nothing was told.
	left     Work
	computed []Tokens
	// began is when the engine could begin with the prompt; set when it tells that
	// the prompt is computed, zero before. The first token is still to come then.
	began time.Time
	// answered: the first token of a streamed request was seen.
	answered bool
	// due is the deadline, zero where there is none.
	due time.Time
}

type state uint8

const (
	queued state = iota
	decoding
	ended
)

// Decision is what the booking belongs to. After the first token of a streamed
// request its prompt has no token ids any more: nobody needs them, and a
// booking may live on for as long as the answer does.
func (r *Reservation) Decision() *Decision {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	return r.decision
}

// Endpoint is where the booking is now: the choice, or the endpoint that
// served the request instead. Known is false where that endpoint is gone or
// was never ours.
func (r *Reservation) Endpoint() (e Endpoint, known bool) {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	if r.candidate == nil {
		return Endpoint{}, false
	}
	return r.candidate.Endpoint, true
}

// Served tells which address answers the request. If it is not the one booked
// (a retry went to the next), the booking moves there, with the work that the
// request is there, given what that endpoint has cached. It reports whether
// the booking moved.
func (r *Reservation) Served(address string) bool {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.state == ended || address == "" || (r.candidate != nil && r.candidate.Endpoint.Address == address) {
		return false
	}
	if r.candidate == nil && r.account == nil && !r.knowsLocked(address) {
		return false
	}
	l.count.Moved++
	r.leaveLocked()
	for i := range r.decision.Candidates {
		c := &r.decision.Candidates[i]
		if a := l.accounts[c.Endpoint.ID]; a != nil && c.Endpoint.Address == address {
			r.enterLocked(a, c)
			break
		}
	}
	return true
}

// knowsLocked reports whether address is a candidate that still has an
// account. Caller must hold ledger.mu.
func (r *Reservation) knowsLocked(address string) bool {
	for i := range r.decision.Candidates {
		e := &r.decision.Candidates[i].Endpoint
		if e.Address == address && r.ledger.accounts[e.ID] != nil {
			return true
		}
	}
	return false
}

// Computed tells that endpoint at has computed the first so many tokens of a
// sequence of the prompt, or holds them by now: that much of the queued work is
// over. What is told of an endpoint that the request is not booked on, or again,
// changes nothing.
func (r *Reservation) Computed(at EndpointID, sequence int, tokens Tokens) {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	d := r.decision
	if r.state != queued || r.candidate == nil || r.candidate.Endpoint.ID != at || sequence >= len(d.Prompt.Sequences) {
		return
	}
	if r.computed == nil {
		r.computed = make([]Tokens, len(d.Prompt.Sequences))
	}
	if tokens <= r.computed[sequence] {
		return
	}
	r.computed[sequence] = tokens
	over := computedWork(d.Prompt, d.shared, r.candidate.Matches, r.computed)
	if over > 0 {
		over += r.candidate.Loading // The engine loads first.
	}
	left := max(0, r.candidate.Work-over)
	r.account.queued -= r.left - left
	r.left = left
}

// Prefilled tells that endpoint at has computed the whole prompt, so that the
// first token is on its way: the queued work is released, also where the answer
// is not streamed. It reports whether that was news. The first token of a
// streamed request, when it comes, is measured and teaches as ever.
func (r *Reservation) Prefilled(now time.Time, at EndpointID) bool {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.state != queued || r.candidate == nil || r.candidate.Endpoint.ID != at {
		return false
	}
	r.began = r.beganLocked()
	if a := r.account; now.After(a.lastFirst) {
		a.lastFirst = now
	}
	l.count.Prefilled++
	r.decodeLocked(now)
	return true
}

// beganLocked is when the engine could begin with this request: from its
// dispatch on, or from the moment it was done with the one before. Caller must
// hold ledger.mu.
func (r *Reservation) beganLocked() time.Time {
	if !r.began.IsZero() {
		return r.began
	}
	if r.account.lastFirst.After(r.dispatched) {
		return r.account.lastFirst
	}
	return r.dispatched
}

// FirstToken tells that the first chunk of a good answer's body came. For a
// streamed request that is the first token: the queued work is released, the
// pool's pace learns, and the time since dispatch is returned with first true.
// An answer that is not streamed comes when everything is generated; it
// releases what is left and teaches nothing.
func (r *Reservation) FirstToken(now time.Time) (ttft time.Duration, first bool) {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.state == ended || r.answered {
		return 0, false
	}
	if r.decision.Prompt.Streamed {
		r.answered = true
		r.teachLocked(now)
	}
	if r.state == queued {
		r.decodeLocked(now)
	}
	if !r.answered {
		return 0, false
	}
	r.decision = r.decision.withoutTokenIDs()
	return now.Sub(r.dispatched), true
}

// teachLocked takes in a first token. Caller must hold ledger.mu.
func (r *Reservation) teachLocked(now time.Time) {
	a := r.account
	if a == nil {
		return
	}
	if c := r.candidate; c.Work > 0 {
		// What the engine spent on loading says nothing of how fast it computes.
		// Where that was to take longer than all did, it is configured too long,
		// and as little can be learned: least of all that computing is free.
		took := now.Sub(r.beganLocked())
		load := time.Duration(c.Load * float64(time.Second))
		if load == 0 || took > load {
			r.ledger.paceLocked(c.Endpoint.pool()).observe(c.Work-c.Loading, took-load)
		}
	}
	if now.After(a.lastFirst) {
		a.lastFirst = now
	}
}

// End tells that the request is over, however it went, and reports whether
// that was news. Nothing of the booking is left afterwards.
func (r *Reservation) End() bool {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	if r.state == ended {
		return false
	}
	r.endLocked()
	return true
}

// enterLocked books the request on a. Caller must hold ledger.mu.
func (r *Reservation) enterLocked(a *account, c *Candidate) {
	r.account, r.candidate, r.left = a, c, c.Work
	switch r.state {
	case queued:
		a.queued += r.left
		a.waiting++
	case decoding:
		a.decoding++
	case ended:
	}
}

// leaveLocked takes the request off its account. Caller must hold ledger.mu.
func (r *Reservation) leaveLocked() {
	a := r.account
	if a == nil {
		return
	}
	switch r.state {
	case queued:
		a.queued -= r.left
		a.waiting--
	case decoding:
		a.decoding--
	case ended:
	}
	r.account, r.candidate, r.computed, r.began = nil, nil, nil, time.Time{}
}

// decodeLocked moves the request from queued to decoding. Caller must hold
// ledger.mu.
func (r *Reservation) decodeLocked(now time.Time) {
	if a := r.account; a != nil {
		a.queued -= r.left
		a.waiting--
		a.decoding++
	}
	r.state = decoding
	r.ledger.due.set(r, now.Add(r.ledger.decodingAge))
}

// endLocked ends the request. Caller must hold ledger.mu.
func (r *Reservation) endLocked() {
	r.leaveLocked()
	r.state = ended
	r.ledger.due.drop(r)
	delete(r.ledger.open, r.decision.ID)
}
