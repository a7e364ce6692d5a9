package scoring

import (
	"math/rand/v2"
	"sync"
	"time"
)

// ledger is our own account of prefill work sent and not yet seen finished. It
// needs no scrape, so it is never stale; it cannot see traffic that bypasses
// this process, and what other replicas sent is unknown to it.
//
// One mutex guards everything in it, and the state of all its reservations. It
// is held for a scan over the endpoints of one request, never across I/O.
type ledger struct {
	decodingAge time.Duration

	mu sync.Mutex // guards the following fields and every Reservation's
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
	// paces has one entry for each pool: the own model name of its engines.
	paces map[string]*pace
	turn  uint64
	count Counts
}

// account is what one life of one endpoint owes. Reservations point at it, so
// what belongs to a removed endpoint is never charged to its successor.
type account struct {
	queued   Work
	waiting  int
	decoding int
	// lastFirst is when the endpoint last gave a first token: before it, the
	// engine was busy with an earlier request.
	lastFirst time.Time
	// turns is when the endpoint was last chosen, by pool.
	turns map[string]uint64
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

func newLedger(decodingAge time.Duration, rng *rand.Rand) *ledger {
	return &ledger{
		decodingAge: decodingAge,
		rng:         rng,
		accounts:    make(map[EndpointID]*account),
		open:        make(map[string]*Reservation),
		paces:       make(map[string]*pace),
	}
}

// sync opens accounts for endpoints that are new and closes those of endpoints
// that are gone: all that was booked there is released.
func (l *ledger) sync(endpoints []Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	present := make(map[EndpointID]*account, len(endpoints))
	pools := make(map[string]*pace)
	for _, e := range endpoints {
		a := l.accounts[e.ID]
		if a == nil {
			a = &account{turns: make(map[string]uint64)}
		}
		present[e.ID] = a
		pools[e.pool()] = l.paces[e.pool()]
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
	l.accounts = present
	// What was learned of a pool outlives a moment without endpoints only as
	// long as another pool does not need the room.
	for pool := range l.paces {
		if _, ok := pools[pool]; !ok && len(l.paces) > maxPaces {
			delete(l.paces, pool)
		}
	}
}

// maxPaces bounds the pools whose speed is remembered though no endpoint of
// them is left.
const maxPaces = 64

// pool names the endpoints that are alike: one model.
func (e Endpoint) pool() string {
	if len(e.Models) == 0 {
		return ""
	}
	return e.Models[0]
}

func (l *ledger) paceLocked(pool string) *pace {
	p := l.paces[pool]
	if p == nil {
		p = &pace{}
		l.paces[pool] = p
	}
	return p
}

// reserve picks the best candidate and books its work in the same critical
// section, so that requests which arrive together see each other instead of
// all choosing the endpoint that looked idle. It completes the candidates'
// numbers and reorders them: the choice, the next two, the rest in no order.
// Candidates whose endpoint is gone meanwhile are dropped; ErrNoEndpoint says
// that none is left.
func (l *ledger) reserve(now time.Time, d *Decision, policy Policy) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.elapseLocked(now)

	kept := d.Candidates[:0]
	for _, c := range d.Candidates {
		a := l.accounts[c.Endpoint.ID]
		if a == nil {
			continue
		}
		pool := c.Endpoint.pool()
		c.Queued, c.Waiting, c.Decoding, c.Turn = a.queued, a.waiting, a.decoding, a.turns[pool]
		c.Loading = l.paceLocked(pool).worth(c.Load)
		c.Work += c.Loading
		c.Estimate = l.paceLocked(pool).estimate(c.Queued + c.Work)
		kept = append(kept, c)
	}
	if len(kept) == 0 {
		return ErrNoEndpoint
	}
	d.Candidates = kept
	l.rng.Shuffle(len(kept), func(i, j int) { kept[i], kept[j] = kept[j], kept[i] })
	for front := range min(len(kept), 1+alternates) {
		best := front
		for i := front + 1; i < len(kept); i++ {
			if policy.Better(&kept[i], &kept[best]) {
				best = i
			}
		}
		kept[front], kept[best] = kept[best], kept[front]
	}

	choice := &kept[0]
	a := l.accounts[choice.Endpoint.ID]
	l.turn++
	a.turns[choice.Endpoint.pool()] = l.turn
	r := &Reservation{ledger: l, decision: d, dispatched: now}
	r.enterLocked(a, choice)
	age := max(minQueuedAge, queuedAgeEstimates*choice.Estimate)
	if !d.Prompt.Streamed {
		age = choice.Estimate
	}
	l.due.set(r, now.Add(age))
	l.open[d.ID] = r
	d.Reservation = r
	return nil
}

const (
	// alternates are how many next best endpoints a retry may go to.
	alternates = 2
	// A booking whose first token is not seen within ten times the estimate,
	// and at least a minute, is given up: something was lost.
	minQueuedAge       = 60 * time.Second
	queuedAgeEstimates = 10
)

// elapseLocked lets happen what happens by time alone: predicted first tokens
// and ages. Caller must hold mu.
func (l *ledger) elapseLocked(now time.Time) {
	for r := l.due.next(now); r != nil; r = l.due.next(now) {
		switch {
		case r.state == queued && !r.decision.Prompt.Streamed:
			l.count.Predicted++
			r.decodeLocked(now)
		case r.state == queued:
			l.count.ExpiredQueued++
			l.overdue = append(l.overdue, r)
			r.endLocked()
		default:
			l.count.ExpiredDecoding++
			l.overdue = append(l.overdue, r)
			r.endLocked()
		}
	}
}

// expire is elapseLocked for callers outside; it returns the reservations that
// ended by age since the last call.
func (l *ledger) expire(now time.Time) []*Reservation {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.elapseLocked(now)
	overdue := l.overdue
	l.overdue = nil
	return overdue
}

func (l *ledger) find(id string) *Reservation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open[id]
}
