package scoring

import "time"

// Reservation is one request's booking. Its state only moves forward, queued,
// decoding, ended, so every method may be called late, twice or in any order:
// what comes after the fact changes nothing. Safe for concurrent use.
type Reservation struct {
	ledger *ledger // set once in reserve

	// The following are guarded by ledger.mu.
	state    state
	decision *Decision // what it points to is immutable
	// dispatched is when the answer that carries the choice left, and decodes
	// when the first token was seen, told or predicted.
	dispatched, decodes time.Time
	// sent: dispatched is the time of Sent.
	sent bool
	// account and candidate are where the booking is: nil once the endpoint is
	// gone, or where an endpoint unknown to us serves the request. moved: it is
	// not where the choice was.
	account   *account
	candidate *Candidate
	moved     bool
	// unplaced: of a Shadow, where the request went is not known yet.
	unplaced bool
	// before and after are its neighbours in the account's line of its state.
	before, after *Reservation
	// area, work and tokens are what is booked while queued; of area and work what
	// is not over by what was told is left. computed is how many leading tokens of
	// each sequence are told to be computed there; nil: nothing was told.
	area     Work
	work     time.Duration
	leftArea Work
	left     time.Duration
	tokens   Tokens
	computed []Tokens
	// began is when the engine could begin with the prompt; set when it tells that
	// the prompt is computed, zero before. The first token is still to come then.
	began time.Time
	// hold is what the prompt brings to the endpoint's cache; nil: nothing.
	hold *hold
	// answered: the first token of a streamed request was seen.
	answered bool
	// since is the account's told+1 when it was counted as sent since; 0: it was
	// not.
	since uint64
	// isFresh: it is one of the account's fresh ones.
	isFresh bool
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
	l.lock()
	defer l.unlock()
	if r.state == ended || r.unplaced || address == "" || (r.candidate != nil && r.candidate.Endpoint.Address == address) {
		return false
	}
	if r.candidate == nil && r.account == nil && !r.knowsLocked(address) {
		return false
	}
	l.count.Moved++
	r.moved = true
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
	l.lock()
	defer l.unlock()
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
	r.heardLocked()
	c := r.candidate
	area, _ := computedWork(d.Prompt, d.shared, c.Matches, nil, r.computed)
	left := r.left
	if a, n := computedWork(d.Prompt, d.shared, c.Matches, c.optimistic, r.computed); n > 0 {
		// The engine loads first; what is left to compute is in proportion.
		over := equivalents(a, n, float64(l.cfg.AttentionTokens))
		left = min(left, time.Duration(max(0, 1-over/c.equivalents)*float64(r.work-exact(c.Load))))
	}
	r.leaveBy(r.leftArea-max(0, r.area-area), r.left-left)
}

// leaveBy takes so much off what is booked.
func (r *Reservation) leaveBy(area Work, work time.Duration) {
	r.leftArea -= area
	r.left -= work
	r.account.area -= area
	r.account.work -= work
}

// Sent tells that the answer which carries the choice has left: what the engine
// does from here on counts. Without it the time of the choice does.
func (r *Reservation) Sent() {
	l := r.ledger
	now := l.lock()
	defer l.unlock()
	if r.state != queued || r.sent {
		return
	}
	r.sent, r.dispatched = true, now
}

// Prefilled tells that endpoint at has computed the whole prompt, so that the
// first token is on its way: the queued work is released, also where the answer
// is not streamed. It reports whether that was news. The first token of a
// streamed request, when it comes, is measured and teaches as ever.
func (r *Reservation) Prefilled(at EndpointID) bool {
	l := r.ledger
	l.lock()
	defer l.unlock()
	if r.state != queued || r.candidate == nil || r.candidate.Endpoint.ID != at {
		return false
	}
	r.began = r.beganLocked()
	r.heardLocked()
	l.count.Prefilled++
	r.decodeLocked()
	return true
}

// beganLocked is when the engine could begin with this request: from its
// dispatch on, or from the moment it was done with the one before. Caller must
// hold ledger.mu.
func (r *Reservation) beganLocked() time.Time {
	if !r.began.IsZero() {
		return r.began
	}
	return later(r.dispatched, r.account.lastFirst)
}

// FirstToken tells that the first chunk of a good answer's body came. For a
// streamed request that is the first token: the queued work is released, the
// pool's fit learns, and the time since dispatch is returned with first true.
// An answer that is not streamed comes when everything is generated; it
// releases what is left and teaches nothing.
func (r *Reservation) FirstToken() (ttft time.Duration, first bool) {
	l := r.ledger
	now := l.lock()
	defer l.unlock()
	if r.state == ended || r.answered {
		return 0, false
	}
	r.heardLocked()
	if r.decision.Prompt.Streamed {
		r.answered = true
		r.teachLocked()
	}
	if r.state == queued {
		r.decodeLocked()
	}
	if !r.answered {
		return 0, false
	}
	r.decodes = now
	r.decision = r.decision.withoutTokenIDs()
	return now.Sub(r.dispatched), true
}

// Estimate is the time to first token that was predicted for the endpoint where
// the request was sent; known is false where another one serves it, or of a
// Shadow that was not placed.
func (r *Reservation) Estimate() (estimate time.Duration, known bool) {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	return r.decision.Estimate(), !r.moved && !r.unplaced
}

// teachLocked takes in a first token: it joins the endpoint's group. Caller must
// hold ledger.mu.
func (r *Reservation) teachLocked() {
	l, a := r.ledger, r.account
	if a == nil {
		return
	}
	began := r.beganLocked()
	if a.group.opened.IsZero() {
		a.group = group{opened: l.now, began: began}
		l.grouping = append(l.grouping, a)
	}
	g := &a.group
	g.last = l.now
	if began.Before(g.began) {
		g.began = began
	}
	// When a request that was retried came to its endpoint is not known.
	if c := r.candidate; !r.moved {
		g.equivalents += c.equivalents
		g.steps += c.steps
		g.load += c.Load
	}
	a.lastFirst = l.now
	if !r.moved {
		sent := r.decision.Time
		if r.decision.Shadow != nil {
			sent = r.dispatched // it did not wait for us
		}
		a.pool.missed(l.now.Sub(sent) - r.candidate.Estimate)
	}
}

// End tells that the request is over, however it went, and reports whether
// that was news. Nothing of the booking is left afterwards.
func (r *Reservation) End() bool {
	l := r.ledger
	now := l.lock()
	defer l.unlock()
	if r.state == ended {
		return false
	}
	if r.answered && r.account != nil {
		// Whoever tells of an end that far from the beginning, the access log or a
		// stream that follows the answer, tells of them all.
		l.endsTold = true
		r.account.kind.ended(now.Sub(r.decodes))
	}
	r.endLocked()
	return true
}

// Generated tells how many tokens the answer had, before its End is told.
func (r *Reservation) Generated(tokens Tokens) {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	if r.state == ended || r.account == nil || tokens < 0 {
		return
	}
	k := r.account.kind
	k.output += answerMemory * (float64(tokens) - k.output)
}

// enterLocked books the request on a. Caller must hold ledger.mu.
func (r *Reservation) enterLocked(a *account, c *Candidate) {
	r.account, r.candidate = a, c
	r.area, r.work, r.tokens = c.Area, exact(c.Work), r.decision.Prompt.Length()
	r.leftArea, r.left = r.area, r.work
	r.hold = r.ledger.underWay.hold(r.decision.Prompt, a.slot, c.root)
	switch r.state {
	case queued:
		a.queue.join(r)
		a.waiting++
		a.area += r.area
		a.work += r.work
		a.uncached += c.Uncached
		a.promptTokens += r.tokens
		a.sentSince += r.tokens
		r.since = a.told + 1
	case decoding:
		a.decode(r)
	case ended:
	}
}

// decode takes in a request past its first token.
func (a *account) decode(r *Reservation) {
	a.decoded.join(r)
	a.decoding++
	a.decodingTokens += r.tokens
	if a.fresh == nil {
		a.fresh = r
	}
	r.isFresh = true
	a.freshCount++
	a.freshTokens += r.tokens
}

// leaveLocked takes the request off its account. Caller must hold ledger.mu.
func (r *Reservation) leaveLocked() {
	a := r.account
	if a == nil {
		return
	}
	switch r.state {
	case queued:
		r.unqueueLocked()
	case decoding:
		if r.isFresh {
			r.isFresh = false
			a.freshCount--
			a.freshTokens -= r.tokens
			if a.fresh == r {
				a.fresh = r.after
			}
		}
		a.decoded.leave(r)
		a.decoding--
		a.decodingTokens -= r.tokens
	case ended:
	}
	if r.since == a.told+1 {
		a.sentSince -= r.tokens
	}
	r.ledger.underWay.drop(r.hold)
	r.since = 0
	r.account, r.candidate, r.computed, r.began, r.hold = nil, nil, nil, time.Time{}, nil
}

// unqueueLocked takes the request off what its account has queued. Caller must
// hold ledger.mu.
func (r *Reservation) unqueueLocked() {
	a := r.account
	a.queue.leave(r)
	a.waiting--
	r.leaveBy(r.leftArea, r.left)
	a.uncached -= r.candidate.Uncached
	a.promptTokens -= r.tokens
}

// decodeLocked moves the request from queued to decoding. Caller must hold
// ledger.mu.
func (r *Reservation) decodeLocked() {
	l := r.ledger
	if a := r.account; a != nil {
		r.unqueueLocked()
		a.decode(r)
		a.lastFirst = l.now // also where that is only predicted
		if !l.endsTold {
			l.underWay.linger(r.hold, l.now)
		}
	}
	r.state, r.decodes = decoding, l.now
	l.due.set(r, l.now.Add(l.cfg.DecodingAge))
}

// endLocked ends the request. Caller must hold ledger.mu.
func (r *Reservation) endLocked() {
	if r.state == decoding {
		r.ledger.underWay.linger(r.hold, r.ledger.now)
		r.hold = nil
	}
	r.leaveLocked()
	r.state = ended
	r.ledger.due.drop(r)
	delete(r.ledger.open, r.decision.ID)
}
