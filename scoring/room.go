package scoring

import (
	"math"
	"time"
)

// Engine is what an engine says of itself.
type Engine struct {
	// At is when it said so; zero: only CapacityTokens is known.
	At time.Time
	// CapacityTokens is how many tokens its KV memory holds, over all of its
	// ranks; 0: not known.
	CapacityTokens Tokens
	// Answers are those that it brought to their end since it was started, and
	// AnswerTokens what it generated for them; 0: not told.
	Answers, AnswerTokens uint64
	// Running and Waiting are the requests that it works on and that wait to be
	// let in, Usage the share of its KV memory in use, 0 to 1.
	Running, Waiting int
	Usage            float64
}

const (
	// engineFresh is how long what an engine said of itself counts.
	engineFresh = 10 * time.Second
	// roomShare is how much of the KV memory can be filled before requests have
	// to wait for room.
	roomShare = 0.95
	// firstHeld is how long a request holds its KV memory after the first token,
	// in seconds, until an end was seen, and firstOutput how many tokens its
	// answer is taken to have.
	firstHeld   = 5
	firstOutput = 200
	// answerMemory is the weight of each new end.
	answerMemory = 0.02
)

// heldSeconds is how long a request holds its KV memory after its first token.
func (k *kind) heldSeconds() float64 {
	if k.held == 0 {
		return firstHeld
	}
	return k.held
}

// ended takes in that a request was over so long after its first token.
func (k *kind) ended(after time.Duration) {
	seconds := max(0, after.Seconds())
	if k.held == 0 {
		k.held = seconds
		return
	}
	k.held += answerMemory * (seconds - k.held)
}

// generated takes in that so many answers had so many tokens together.
func (k *kind) generated(answers, tokens uint64) {
	weight := 1 - math.Pow(1-answerMemory, float64(answers))
	k.output += weight * (float64(tokens)/float64(answers) - k.output)
}

// DecodingSource says where the number of requests past their first token comes
// from.
type DecodingSource string

// The sources, from best to worst.
const (
	// DecodingFromEnds: the end of each answer is told.
	DecodingFromEnds DecodingSource = "ends"
	// DecodingFromEngine: the engine's own counters.
	DecodingFromEngine DecodingSource = "engine"
	// DecodingPredicted: every answer is taken to be as long as the last ones
	// whose end was seen.
	DecodingPredicted DecodingSource = "predicted"
)

// occupancy is who is at an endpoint.
type occupancy struct {
	// decoding requests are past their first token; held is the KV tokens of all
	// in flight.
	decoding int
	held     Tokens
	from     DecodingSource
}

// occupancyLocked is who is at an endpoint now. Caller must hold mu.
func (l *ledger) occupancyLocked(a *account, now time.Time) occupancy {
	half := func(n int) Tokens { return Tokens(0.5 * a.kind.output * float64(n)) }
	switch {
	case l.endsTold:
		return occupancy{a.decoding, a.promptTokens + a.decodingTokens + half(a.decoding), DecodingFromEnds}
	case !a.engine.At.IsZero() && now.Sub(a.engine.At) <= engineFresh:
		// Of those running, the ones that we know to wait for their first token and
		// that are let in are not past it.
		admitted := max(0, a.waiting-a.engine.Waiting)
		used := Tokens(a.engine.Usage * float64(a.engine.CapacityTokens))
		return occupancy{max(0, a.engine.Running-admitted), used + a.engineWaiting + a.sentSince, DecodingFromEngine}
	}
	for r := a.fresh; r != nil && now.Sub(r.decodes).Seconds() > a.kind.heldSeconds(); r = a.fresh {
		a.stale(r)
	}
	return occupancy{a.freshCount, a.promptTokens + a.freshTokens + half(a.freshCount), DecodingPredicted}
}

// stale takes it that the oldest answer under way is over.
func (a *account) stale(r *Reservation) {
	a.fresh = r.after
	r.isFresh = false
	a.freshCount--
	a.freshTokens -= r.tokens
}

// setEngine takes in what an engine says of itself.
func (l *ledger) setEngine(id EndpointID, e Engine) {
	l.lock()
	defer l.unlock()
	a := l.accounts[id]
	if a == nil {
		return
	}
	known := a.engine.CapacityTokens > 0
	if before := a.engine; before.Answers > 0 && e.Answers > before.Answers && e.AnswerTokens >= before.AnswerTokens {
		a.kind.generated(e.Answers-before.Answers, e.AnswerTokens-before.AnswerTokens)
	}
	a.engine = e
	// Of what waits there, what was sent since is not counted by the engine, and
	// of the rest it has let in all but the newest.
	a.sentSince, a.engineWaiting = 0, 0
	a.told++
	waiting := e.Waiting
	for r := a.queue.tail; r != nil; r = r.before {
		if r.dispatched.After(e.At) {
			a.sentSince += r.tokens
			r.since = a.told + 1
			continue
		}
		if waiting == 0 {
			break
		}
		waiting--
		a.engineWaiting += r.tokens
	}
	if known != (e.CapacityTokens > 0) {
		l.roomLocked()
	}
}

// roomLocked finds the pools of whose endpoints all capacities are known. Caller
// must hold mu.
func (l *ledger) roomLocked() {
	for _, p := range l.pools {
		p.room = true
	}
	for _, a := range l.accounts {
		if a.ready && a.engine.CapacityTokens <= 0 {
			a.pool.room = false
		}
	}
}

// waitForRoom is how many seconds a request of so many tokens waits for KV
// memory at an endpoint that holds so many. Only one that is not ready any more
// may have told no capacity: nothing is known of its room.
func (a *account) waitForRoom(held, tokens Tokens) float64 {
	if a.engine.CapacityTokens <= 0 {
		return 0
	}
	over := float64(held+tokens) - roomShare*float64(a.engine.CapacityTokens)
	return max(0, over) / float64(a.engine.CapacityTokens) * a.kind.heldSeconds()
}
