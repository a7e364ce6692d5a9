package scoring

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Clock tells the time of events. It is read under the ledger's lock, so that
// the times of events are in the order in which they are taken in; it must not
// call back.
type Clock func() time.Time

// ledger is our own account of prefill work sent and not yet seen finished. It
// needs no scrape, so it is never stale; it cannot see traffic that bypasses
// this process, and what other replicas sent is unknown to it.
//
// One mutex guards everything in it, and the state of all its reservations. It
// is held for a scan over the endpoints of one request, never across I/O.
type ledger struct {
	cfg   Config // set once
	clock Clock  // set once
	// rescheduled gets a value when nextRelease changed.
	rescheduled chan struct{}

	mu sync.Mutex // guards the following fields and every Reservation's
	// now is the time of the last event, began that of the first.
	now, began time.Time
	// rng breaks ties.
	rng *rand.Rand
	// accounts has exactly the endpoints last given to sync.
	accounts map[EndpointID]*account
	// open has every reservation that has not ended, by decision id. Bounded by
	// age: each has a deadline.
	open map[string]*Reservation
	due  deadlines
	// overdue collects reservations that ended by age until expire hands them
	// out.
	overdue []*Reservation
	// grouping are the accounts with an open group of first tokens, the oldest
	// group first.
	grouping []*account
	// underWay has the blocks that requests bring to endpoints' caches.
	underWay *optimistic
	// pools and kinds are what was learned of engines, at most maxPools of each
	// whose endpoints are all gone.
	pools map[string]*pool
	kinds map[kindID]*kind
	// endsTold: the last answer that was over was so because somebody told.
	endsTold bool
	turn     uint64
	count    Counts
	// set and found are followLocked's, kept from call to call.
	set   []uint64
	found []int32
	// endpoints are those last given to sync.
	endpoints []Endpoint
	// held has what waits to be sent, heldNumber the number of the last of them.
	// released are those that an event let go, until unlock tells of it, and
	// nextRelease is when time alone will be such an event; zero: never.
	held        heldOrder
	heldNumber  uint64
	released    []*Held
	nextRelease time.Time
}

// account is what one life of one endpoint owes. Reservations point at it, so
// what belongs to a removed endpoint is never charged to its successor.
type account struct {
	ready bool
	pool  *pool
	kind  *kind
	slot  uint32 // in underWay
	// queue has the reservations before their first token in order of dispatch,
	// waiting counts them. Of them: area and work are what is not over by what was
	// told, in the trapezoid's unit and in time; uncached and promptTokens their
	// tokens.
	queue        line
	waiting      int
	area         Work
	work         time.Duration
	uncached     Tokens
	promptTokens Tokens
	// decoded has those past their first token in that order. fresh is the first
	// of them whose answer is not predicted to be over, freshCount and freshTokens
	// those from it on.
	decoded        line
	decoding       int
	decodingTokens Tokens
	fresh          *Reservation
	freshCount     int
	freshTokens    Tokens
	// lastFirst is when the endpoint last gave a first token: before it, the
	// engine was busy with an earlier request.
	lastFirst time.Time
	group     group
	// heard is when the engine last showed that it computes.
	heard time.Time
	// engine is what the engine said last, told how often it said something.
	// engineWaiting are the prompt tokens of the requests that waited there then,
	// sentSince those of the requests sent since that are still there.
	engine                   Engine
	told                     uint64
	engineWaiting, sentSince Tokens
	// turns is when the endpoint was last chosen, by pool.
	turns map[string]uint64
	sent  rate
	// chosen is how many requests were booked here first.
	chosen uint64
	// The following are of use during a pass over what is held: backlogged is the
	// backlog with the work of those that stay in it, limit what it may be, in
	// seconds; stayTokens are the prompts of those that stay.
	backlogged, limit float64
	stayTokens        Tokens
}

// Counts are totals since start.
type Counts struct {
	// ExpiredQueued and ExpiredDecoding ended by age, before and after their
	// first token. The former is a leak somewhere: nothing told of the request.
	ExpiredQueued   uint64
	ExpiredDecoding uint64
	// Predicted left the queue at the predicted first token, not streamed.
	Predicted uint64
	// Prefilled left the queue because the engine told that their prompt was
	// computed, before anything of the answer was seen.
	Prefilled uint64
	// Moved were served by another endpoint than the one booked.
	Moved uint64
}

func newLedger(cfg Config, clock Clock, rng *rand.Rand) *ledger {
	return &ledger{
		cfg:         cfg,
		clock:       clock,
		rescheduled: make(chan struct{}, 1),
		rng:         rng,
		accounts:    make(map[EndpointID]*account),
		open:        make(map[string]*Reservation),
		underWay:    newOptimistic(maxOptimisticBytes),
		pools:       make(map[string]*pool),
		kinds:       make(map[kindID]*kind),
	}
}

// lock takes mu for an event, whose time it returns, and lets happen first what
// happens by time alone.
func (l *ledger) lock() time.Time {
	l.mu.Lock()
	l.now = later(l.now, l.clock())
	if l.began.IsZero() {
		l.began = l.now
	}
	l.closeGroupsLocked()
	l.elapseLocked()
	l.underWay.elapse(l.now)
	return l.now
}

// sync opens accounts for endpoints that are new and closes those of endpoints
// that are gone: all that was booked there is released.
func (l *ledger) sync(endpoints []Endpoint) {
	l.lock()
	defer l.unlock()
	present := make(map[EndpointID]*account, len(endpoints))
	pools, kinds := make(map[string]bool), make(map[kindID]bool)
	for i := range endpoints {
		e := &endpoints[i]
		a := l.accounts[e.ID]
		if a == nil {
			a = &account{turns: make(map[string]uint64), slot: l.underWay.join()}
		}
		present[e.ID] = a
		id := kindID{e.pool(), e.Kind}
		pools[id.pool], kinds[id] = true, true
		a.ready, a.pool, a.kind = e.TakesRequests(), l.poolLocked(id.pool), l.kindLocked(id)
	}
	gone := make(map[*account]bool)
	for id, a := range l.accounts {
		if present[id] == nil {
			gone[a] = true
		}
	}
	if len(gone) > 0 {
		for _, r := range l.open {
			if gone[r.account] {
				r.leaveLocked()
			}
		}
	}
	for a := range gone {
		l.underWay.leave(a.slot)
	}
	l.accounts = present
	// What was learned of a pool outlives a moment without endpoints only as
	// long as another pool does not need the room.
	for id := range l.pools {
		if !pools[id] && len(l.pools) > maxPools {
			delete(l.pools, id)
		}
	}
	for id := range l.kinds {
		if !kinds[id] && len(l.kinds) > maxPools {
			delete(l.kinds, id)
		}
	}
	l.roomLocked()
	l.endpoints = endpoints
	l.syncHeldLocked()
}

func (l *ledger) poolLocked(id string) *pool {
	p := l.pools[id]
	if p == nil {
		p = &pool{late: priorLate}
		l.pools[id] = p
	}
	return p
}

func (l *ledger) kindLocked(id kindID) *kind {
	k := l.kinds[id]
	if k == nil {
		k = &kind{output: firstOutput}
		l.kinds[id] = k
	}
	return k
}

// fitLocked is the speed of an endpoint. A fit for each kind is of use only
// where requests are kept from engines whose memory is full: without that it
// makes the choice worse than one for all. Caller must hold mu.
func (l *ledger) fitLocked(a *account) *Fit {
	if l.cfg.FitPerKind && a.pool.room {
		return &a.kind.fit
	}
	return &a.pool.fit
}

// reserve picks the best candidate and books its work in the same critical
// section, so that requests which arrive together see each other instead of
// all choosing the endpoint that looked idle. It completes the candidates'
// numbers and reorders them: the choice, the next two, the rest in no order.
// Candidates whose endpoint is gone meanwhile are dropped; ErrNoEndpoint says
// that none is left.
func (l *ledger) reserve(d *Decision) error {
	d.Time = l.lock()
	defer l.unlock()
	if err := l.completeLocked(d); err != nil {
		return err
	}
	l.arriveLocked(d)
	l.rankLocked(d)
	l.bookLocked(d)
	return nil
}

// explain ranks the candidates as reserve does and changes nothing.
func (l *ledger) explain(d *Decision) error {
	d.Time = l.lock()
	defer l.unlock()
	if err := l.completeLocked(d); err != nil {
		return err
	}
	l.rankLocked(d)
	return nil
}

// completeLocked drops the candidates that are gone and gives the others the
// numbers of this moment. Caller must hold mu.
func (l *ledger) completeLocked(d *Decision) error {
	for i := range d.Candidates {
		d.Candidates[i].account = l.accounts[d.Candidates[i].Endpoint.ID]
	}
	d.Candidates = slices.DeleteFunc(d.Candidates, func(c Candidate) bool { return c.account == nil })
	if len(d.Candidates) == 0 {
		return ErrNoEndpoint
	}
	l.followLocked(d)
	l.weighAllLocked(d)
	return nil
}

// weighAllLocked gives all candidates the numbers of this moment. Caller must hold
// mu.
func (l *ledger) weighAllLocked(d *Decision) {
	for i := range d.Candidates {
		l.weighLocked(d, &d.Candidates[i])
	}
}

// followLocked finds what requests under way bring to each candidate. Caller
// must hold mu.
func (l *ledger) followLocked(d *Decision) {
	for i := range d.Candidates {
		d.Candidates[i].optimistic = nil
	}
	if d.Prompt.BlockTokens == 0 || d.Prompt.NoCache || len(l.underWay.blocks) == 0 {
		return
	}
	words := (len(l.underWay.slots) + 63) / 64
	l.found = slices.Grow(l.found[:0], 64*words)[:64*words]
	sequences := d.Prompt.Sequences
	var rows []Tokens // of each candidate, one of each sequence
	for s := range sequences {
		chain := sequences[s].Chain
		if len(chain) == 0 {
			continue
		}
		// There are two roots at most, of the model and of an adapter.
		for first, both := 0, false; first < len(d.Candidates) && !both; first++ {
			root := d.Candidates[first].root
			if first > 0 && root == d.Candidates[0].root {
				continue
			}
			both = first > 0
			l.set = slices.Grow(l.set[:0], words)[:words]
			clear(l.set)
			for i := range d.Candidates {
				if slot := d.Candidates[i].account.slot; d.Candidates[i].root == root {
					l.set[slot/64] |= 1 << (slot % 64)
				}
			}
			l.underWay.leading(chain, root, l.set, l.found)
			for i := range d.Candidates {
				c := &d.Candidates[i]
				if c.root != root || l.found[c.account.slot] == 0 {
					continue
				}
				if rows == nil {
					rows = make([]Tokens, len(d.Candidates)*len(sequences))
				}
				c.optimistic = rows[i*len(sequences) : (i+1)*len(sequences)]
				c.optimistic[s] = Tokens(l.found[c.account.slot]) * d.Prompt.BlockTokens
			}
		}
	}
}

// weighLocked gives a candidate the numbers of this moment. Caller must hold mu.
func (l *ledger) weighLocked(d *Decision, c *Candidate) {
	a := c.account
	at, fit := l.occupancyLocked(a, l.now), l.fitLocked(a)
	s, o := fit.SecondsPerToken(), fit.SecondsPerStep()
	c.QueuedArea, c.QueuedTokens, c.Waiting = a.area, a.uncached, a.waiting
	c.Decoding, c.HeldTokens = at.decoding, at.held
	c.Turn, c.Rate = a.turns[c.Endpoint.pool()], a.sent.perSecond(l.now)
	c.Booked, c.Backlog = a.work.Seconds(), a.backlog(l.now).Seconds()
	c.KVWait = 0
	if l.cfg.KVRoom && a.pool.room {
		c.KVWait = a.waitForRoom(at.held, d.Prompt.Length())
	}
	c.Load, c.Work, c.Optimistic = 0, 0, 0
	c.Routed = c.routedBefore()
	if len(d.Prompt.Sequences) > 0 {
		area, uncached := c.Area, c.Uncached
		if c.optimistic != nil {
			area, uncached, _ = requestWork(d.Prompt, d.shared, c.Matches, c.optimistic)
			c.Optimistic = c.Uncached - uncached
		}
		c.equivalents = equivalents(area, uncached, float64(l.cfg.AttentionTokens))
		c.steps = steps(uncached, int(l.cfg.BatchTokens), at.decoding)
		c.Remote = remoteTokens(d.Prompt, d.shared, c.Matches, c.optimistic)
		c.Load = loadSeconds(d.Prompt, d.shared, c.Matches, c.optimistic, slowEnough*s)
		c.Work = seconds(s, o, c.equivalents, c.steps) + c.Load
	}
	c.Estimate = exact(c.Backlog + c.KVWait + c.Work + a.pool.late)
}

// routedBefore is how much of the prompt was sent to the candidate before, requests
// under way among it. A source may leave out the end of a block, because engines
// do.
func (c *Candidate) routedBefore() (n Tokens) {
	for s, before := range c.routed {
		if c.optimistic != nil {
			before = max(before, c.optimistic[s])
		}
		n += (before + chainBlock - 1) / chainBlock * chainBlock
	}
	return n
}

// slowEnough: a tier counts as slow when loading a token from it takes at least
// this share of computing it; below that the noise of the measure is worth more.
const slowEnough = 0.3

// arriveLocked notes that a request came. Caller must hold mu.
func (l *ledger) arriveLocked(d *Decision) {
	busy := 0
	for i := range d.Candidates {
		if d.Candidates[i].Waiting > 0 {
			busy++
		}
	}
	d.Candidates[0].account.pool.arrive(l.now, busy, len(d.Candidates))
}

// rankLocked puts the best candidates first. Caller must hold mu.
func (l *ledger) rankLocked(d *Decision) {
	l.costLocked(d)
	l.frontLocked(d.Candidates, 1+alternates)
}

// costLocked has the policy rank the candidates. Caller must hold mu.
func (l *ledger) costLocked(d *Decision) {
	pool := d.Candidates[0].account.pool
	d.Pool = Pool{Kappa: pool.kappa(), SecondsPerToken: pool.fit.SecondsPerToken(), SecondsPerStep: pool.fit.SecondsPerStep(), Settled: pool.fit.Groups >= fitSettled}
	d.policy.Rank(d.Prompt, d.Pool, d.Candidates)
}

// frontLocked puts the best n of ranked candidates first. Caller must hold mu.
func (l *ledger) frontLocked(candidates []Candidate, n int) {
	for front := range min(len(candidates), n) {
		best := front + l.bestLocked(candidates[front:])
		candidates[front], candidates[best] = candidates[best], candidates[front]
	}
}

// bestLocked is the index of the best of ranked candidates. Caller must hold mu.
func (l *ledger) bestLocked(candidates []Candidate) int {
	best, ties := 0, 1
	for i := 1; i < len(candidates); i++ {
		c, b := &candidates[i], &candidates[best]
		switch {
		case c.Cost < b.Cost, c.Cost == b.Cost && c.Tie < b.Tie:
			best, ties = i, 1
		case c.Cost == b.Cost && c.Tie == b.Tie:
			// Each of n equals wins once in n.
			if ties++; l.rng.IntN(ties) == 0 {
				best = i
			}
		}
	}
	return best
}

// bookLocked books the request at its first candidate. Caller must hold mu.
func (l *ledger) bookLocked(d *Decision) {
	choice := &d.Candidates[0]
	a := choice.account
	l.turn++
	a.turns[choice.Endpoint.pool()] = l.turn
	a.sent.add(l.now)
	a.chosen++
	r := &Reservation{ledger: l, decision: d, dispatched: l.now}
	r.enterLocked(a, choice)
	age := max(minQueuedAge, queuedAgeEstimates*choice.Estimate)
	if !d.Prompt.Streamed {
		age = choice.Estimate
	}
	l.due.set(r, l.now.Add(age))
	l.open[d.ID] = r
	d.Reservation = r
}

const (
	// alternates are how many next best endpoints a retry may go to.
	alternates = 2
	// A booking whose first token is not seen within ten times the estimate,
	// and at least a minute, is given up: something was lost.
	minQueuedAge       = 60 * time.Second
	queuedAgeEstimates = 10
)

// closeGroupsLocked learns from the groups of first tokens that are over. Caller
// must hold mu.
func (l *ledger) closeGroupsLocked() {
	n := 0
	for n < len(l.grouping) && l.now.Sub(l.grouping[n].group.opened) > groupSpan {
		l.grouping[n].closeGroup()
		n++
	}
	if n > 0 {
		l.grouping = append(l.grouping[:0], l.grouping[n:]...)
	}
}

// closeGroup teaches the endpoint's pool and kind what its group of first tokens
// took.
func (a *account) closeGroup() {
	g := a.group
	a.group = group{}
	// What the engine spent on loading says nothing of how fast it computes. Where
	// that was to take longer than all did, it is configured too long, and as
	// little can be learned: least of all that computing is free.
	took := g.last.Sub(g.began).Seconds() - g.load
	if g.equivalents == 0 || took < 0 || (took == 0 && g.load > 0) {
		return
	}
	a.pool.fit.learn(took, g.equivalents, wholeSteps(g.steps))
	a.kind.fit.learn(took, g.equivalents, wholeSteps(g.steps))
}

// elapseLocked lets happen what happens by time alone: predicted first tokens
// and ages. Caller must hold mu.
func (l *ledger) elapseLocked() {
	for r := l.due.next(l.now); r != nil; r = l.due.next(l.now) {
		switch {
		case r.state == queued && !r.decision.Prompt.Streamed:
			l.count.Predicted++
			r.decodeLocked()
		case r.state == queued:
			l.count.ExpiredQueued++
			l.overdue = append(l.overdue, r)
			r.endLocked()
		default:
			l.count.ExpiredDecoding++
			l.endsTold = false
			l.overdue = append(l.overdue, r)
			r.endLocked()
		}
	}
}

// expire is for the passing of time; it returns the reservations that ended by
// age since the last call.
func (l *ledger) expire() []*Reservation {
	l.lock()
	defer l.unlock()
	overdue := l.overdue
	l.overdue = nil
	return overdue
}

func (l *ledger) find(id string) *Reservation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open[id]
}
