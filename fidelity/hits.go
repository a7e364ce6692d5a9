package fidelity

import (
	"time"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// The hits: what sources said of the prompts that went to an endpoint, against
// what the engine itself counted as found in its caches. Both are summed over
// a window of requests, because an engine counts tokens, not requests.

const (
	// windowRequests close a window: enough that a single odd prompt is not
	// most of it, few enough that two windows of three engines are less than a
	// hundred requests.
	windowRequests = 16
	// windowAge lets a window go that is too old to say anything of now.
	windowAge = 10 * time.Minute
	// windowsBad is how many windows in a row a source must promise too much
	// before it is left out, and how many it must not before it is back.
	windowsBad = 2
)

// hits compares predictions with an engine's counters. Guarded by watched.mu.
type hits struct {
	// flying are the prompt tokens of requests sent and not yet seen computed,
	// by decision id; bounded as bookings are, all of which end by age.
	flying map[string]scoring.Tokens
	// since is the reading that the window began with; nil before the first.
	since *counters.Reading
	// unsure are the tokens that were flying when the window began.
	unsure scoring.Tokens
	// sum is what was predicted in the window, total since the endpoint is
	// watched; last is the window judged last, nil before the first.
	sum, total tally
	counted    scoring.Tokens // since the endpoint is watched
	last       *window
	// suspicion is the row of windows with the same fault of the endpoint as a
	// whole; found is the one that is sure, told the one that was logged.
	suspicion, found, told kind
	suspected              int
}

// tally is what was predicted of a number of requests.
type tally struct {
	requests int
	prompt   scoring.Tokens // of them, each copy counted
	copies   scoring.Tokens // of second and later answers to one prompt
	// particular are the prompt tokens with a salt or for an adapter, uncached
	// those that the engine was asked to compute whatever it holds, guessed those
	// of prompts of which only the length is known, roughly.
	particular, uncached, guessed scoring.Tokens
	// blind are requests whose prompts are not known at all.
	blind int
	// said has the cached tokens by each source, then memory's; used are those that the decision was made with.
	said []scoring.Tokens
	used scoring.Tokens
}

func newTally(sources int) tally { return tally{said: make([]scoring.Tokens, sources)} }

func (t *tally) add(other *tally) {
	t.requests += other.requests
	t.prompt += other.prompt
	t.copies += other.copies
	t.particular += other.particular
	t.uncached += other.uncached
	t.guessed += other.guessed
	t.blind += other.blind
	t.used += other.used
	for i, n := range other.said {
		t.said[i] += n
	}
}

// window is a tally, and what the engine counted meanwhile.
type window struct {
	tally
	from, until time.Time
	// engine are the prompt tokens that the engine computed or found, counted
	// those found.
	engine, counted scoring.Tokens
	// asked is false where the engine looked nothing up in its own cache.
	asked bool
	// unsure are the tokens on their way when the window began or ended.
	unsure scoring.Tokens
}

// computed are the prompt tokens that an engine counts for p: it takes every
// copy for a request of its own.
func computed(p *scoring.Prompt) scoring.Tokens {
	var n scoring.Tokens
	for i := range p.Sequences {
		n += p.Sequences[i].Length * scoring.Tokens(max(1, p.Sequences[i].Copies))
	}
	return n
}

// countLocked takes in what was said of a prompt that has been computed at the
// candidate; remembered is what memory believed. Caller must hold
// watched.mu.
func (h *hits) countLocked(c *Checker, p *scoring.Prompt, candidate *scoring.Candidate, remembered scoring.Tokens) {
	one := newTally(len(c.sources) + 1)
	one.requests = 1
	one.prompt = computed(p)
	one.copies = one.prompt - p.Length()
	switch {
	case len(p.Sequences) == 0:
		one.blind = 1
	case candidate.Matches == nil:
		one.guessed = one.prompt
	}
	if p.Root(&candidate.Endpoint) != 0 {
		one.particular = one.prompt
	}
	if p.NoCache {
		one.uncached = one.prompt
	} else {
		for q := range candidate.Matches {
			m := &candidate.Matches[q]
			one.used += m.Cached
			for s := range c.sources {
				cached, _ := claimed(m.Claims, c.sources[s].Name)
				one.said[s] += cached
			}
		}
		one.said[len(c.sources)] = remembered
	}
	h.sum.add(&one)
	h.total.add(&one)
}

// Counted takes in what an engine counted; restarted says that it has begun
// anew since its last reading. It is a counters.Observer.
func (c *Checker) Counted(id scoring.EndpointID, r counters.Reading, restarted bool) {
	w := c.of(id)
	if w == nil {
		return
	}
	w.block.Store(int64(r.BlockSize))
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &w.hits
	before := h.since
	switch {
	case before == nil || restarted || r.CacheResets != before.CacheResets:
		if restarted || before != nil {
			// What was computed by then nobody can show any more.
			w.pending = nil
		}
		h.beginLocked(&r)
		return
	case r.At.Sub(before.At) > windowAge, !tellHits(before, &r):
		h.beginLocked(&r)
		return
	case h.sum.requests < windowRequests:
		return
	}
	now := h.closeLocked(&r)
	// With much on its way, it is not known which requests were counted.
	if now.unsure*4 > now.prompt {
		return
	}
	h.last, h.counted = now, h.counted+now.counted
	h.beginLocked(&r)
	w.tried = true
	c.judgeLocked(w, now, &r)
}

// tellHits reports whether both readings tell what was found.
func tellHits(before, now *counters.Reading) bool {
	return before.Counted && now.Counted || before.CachedBySource != nil && now.CachedBySource != nil
}

// beginLocked begins a window at r. Caller must hold watched.mu.
func (h *hits) beginLocked(r *counters.Reading) {
	h.since, h.sum, h.unsure = r, newTally(len(h.sum.said)), h.flyingLocked()
}

func (h *hits) flyingLocked() scoring.Tokens {
	var n scoring.Tokens
	for _, tokens := range h.flying {
		n += tokens
	}
	return n
}

// closeLocked is the window that ends at r. Caller must hold watched.mu.
func (h *hits) closeLocked(r *counters.Reading) *window {
	before := h.since
	w := &window{
		tally: h.sum, from: before.At, until: r.At, unsure: h.unsure + h.flyingLocked(),
		engine: grown(before.PromptTokens, r.PromptTokens), asked: true,
	}
	queries := grown(before.PrefixQueries, r.PrefixQueries)
	switch {
	case r.CachedBySource != nil && before.CachedBySource != nil:
		for source, n := range r.CachedBySource {
			w.counted += grown(before.CachedBySource[source], n)
		}
	default:
		w.counted = grown(before.PrefixHits, r.PrefixHits) + grown(before.ExternalHits, r.ExternalHits)
		// A request that finds no room is looked up again at every step.
		if w.engine > 0 && queries > w.engine {
			w.counted = scoring.Tokens(float64(w.counted) * float64(w.engine) / float64(queries))
		}
	}
	if w.engine == 0 {
		w.engine = queries
	}
	if r.Counted {
		w.asked = queries > 0
	}
	return w
}

func grown(before, now uint64) scoring.Tokens {
	if now < before {
		return 0
	}
	return scoring.Tokens(now - before) //nolint:gosec // tokens that one engine computed
}

// verdictStreak says bad or good after some results in a row that are.
type verdictStreak struct {
	bad bool
	run int // results in a row that speak against bad as it is
}

func (v *verdictStreak) add(bad bool) {
	if bad == v.bad {
		v.run = 0
		return
	}
	if v.run++; v.run >= windowsBad {
		v.bad, v.run = bad, 0
	}
}

// slack is what prediction and count may differ by though all is well: half of
// the larger, and a twentieth of all tokens that were asked for, since blocks
// and chunks end at different places.
func (w *window) slack(larger scoring.Tokens) scoring.Tokens {
	return max(larger/2, w.prompt/20)
}

// judgeLocked draws conclusions from a window. Caller must hold watched.mu.
func (c *Checker) judgeLocked(w *watched, now *window, r *counters.Reading) {
	memory := len(c.sources)
	// An engine with ranks finds a prefix only in the rank that has it.
	ranks := scoring.Tokens(max(1, r.Ranks))
	wrong := func(s int) scoring.Tokens { return max(0, now.said[s]/ranks-now.counted) }
	best := now.used
	for s := range w.trials {
		best = max(best, now.said[s])
		over := wrong(s) > now.slack(now.said[s]/ranks)
		if s != memory {
			// What memory is no better at is no reason to leave a source out.
			over = over && wrong(memory)*2 < wrong(s)
		}
		w.trials[s].over.add(over)
	}
	if !c.reportedLocked(w) {
		// Nobody told of the answers, which engines find in the next turn.
		best = now.prompt
	}
	h := &w.hits
	found := suspect(now, best, r)
	if (found == kindBypass || found == kindLonger || found == kindUnder) && c.shared != nil && c.shared() {
		found = kindNone // what others send and find looks like any of these
	}
	if found != h.suspicion {
		h.suspicion, h.suspected = found, 0
	}
	if h.suspected++; h.suspected >= windowsBad {
		h.found = found
	}
}

// reportedLocked reports whether a source counts that tells of all that the
// engine holds, not of prompts alone. Caller must hold watched.mu.
func (c *Checker) reportedLocked(w *watched) bool {
	for s := range c.sources {
		if !c.sources[s].Keyed && w.gates[s].known.Load() && !w.gates[s].out.Load() {
			return true
		}
	}
	return false
}

// suspect is what a window says of the endpoint as a whole. best is the most
// that anybody said to be cached.
func suspect(now *window, best scoring.Tokens, r *counters.Reading) kind {
	switch {
	case r.PrefixCaching == counters.SwitchOff, !now.asked && now.engine > 0 && now.prompt > now.uncached:
		return kindOff
	case now.blind > 0:
		// Whose tokens the engine counted is not known.
		return kindNone
	}
	unsure, ranks := now.unsure+now.guessed, scoring.Tokens(max(1, r.Ranks))
	switch {
	case now.engine > now.prompt+now.prompt/4+unsure:
		return kindBypass
	case now.engine > now.prompt+now.prompt/lengthShare+unsure:
		return kindLonger
	case now.engine > 0 && now.prompt > now.engine+now.engine/lengthShare+unsure:
		return kindShorter
	case now.counted > best+now.copies+unsure && now.counted-best-now.copies-unsure > now.slack(now.counted):
		return kindUnder
	case now.used/ranks > now.counted+unsure && now.used/ranks-now.counted-unsure > now.slack(now.used/ranks):
		return kindOver
	}
	return kindNone
}

// lengthShare: a fiftieth more or less tokens than ours are not ours.
const lengthShare = 50
