package fidelity

import (
	"context"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// The echo: a prompt that an engine has just computed must be shown by whoever
// reports of that engine, at least one chunk more of it than at the decision.
// What was evicted since does not matter, as long as it was shown once.

const (
	// maxPending and maxPendingTokens bound the samples of an endpoint that wait
	// for their echo, so that the token ids they keep alive are at most 1 MiB
	// and one prompt.
	maxPending       = 8
	maxPendingTokens = 256 << 10
	// settledShare: while nothing is in doubt, one prompt of so many is sampled.
	settledShare = 4
	// longestAnswer is how long after the first token a source is judged though
	// the request's end was not seen: caches take in a prompt when it is computed,
	// not when its answer ends.
	longestAnswer = 15 * time.Second
	// askTimeout bounds one question of a source that has to ask somebody.
	askTimeout = 250 * time.Millisecond
)

// looks are the times after the first token at which a sample is looked for, the
// last one again and again. Most are there at once; the rest should cost little.
var looks = []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second}

// sample is a prompt whose echo is awaited. It is guarded by watched.mu, but for
// prompt, which nobody writes to, and above, which is Probe's.
type sample struct {
	id       string // of its decision
	prompt   *scoring.Prompt
	computed time.Time
	ended    time.Time // zero while the answer runs
	due      time.Time
	look     int
	// above has, for each source, the tokens that it must show more than; -1
	// where nothing is to be proven, or has been.
	above []scoring.Tokens
}

// sample is the decision's prompt as a sample; nil where it proves nothing.
func (c *Checker) sample(w *watched, d *scoring.Decision, candidate *scoring.Candidate, ended time.Time) *sample {
	if candidate.Matches == nil || len(d.Prompt.Sequences) != 1 || d.Prompt.NoCache {
		return nil
	}
	above, proves := c.expected(w, d.Prompt, candidate)
	if !proves {
		return nil
	}
	now := c.now()
	return &sample{id: d.ID, prompt: d.Prompt, computed: now, ended: ended, due: now.Add(looks[0]), above: above}
}

// takeLocked keeps the sample, if its turn is. Caller must hold w.mu.
func (w *watched) takeLocked(s *sample) {
	w.eligible++
	if w.settledLocked() && w.eligible%settledShare != 0 || !w.roomLocked(s.prompt) {
		return
	}
	w.pending = append(w.pending, s)
}

// expected is what each source must show more than, -1 where the prompt proves
// nothing about it, and whether it proves anything at all.
func (c *Checker) expected(w *watched, p *scoring.Prompt, candidate *scoring.Candidate) (above []scoring.Tokens, proves bool) {
	q := &p.Sequences[0]
	// No cache gives an engine the prompt's last token: it is always computed.
	usable := min(q.Usable, scoring.Tokens(len(q.TokenIDs)), q.Length-1)
	above = make([]scoring.Tokens, len(c.sources))
	for s := range c.sources {
		above[s] = -1
		source := &c.sources[s]
		claim, known := claimed(candidate.Matches[0].Claims, source.Name)
		if !known && !source.wanted(candidate.Endpoint) {
			continue
		}
		if source.Keyed && p.Root(&candidate.Endpoint) != 0 {
			continue
		}
		grain := source.grain(candidate.Endpoint.ID, scoring.Tokens(w.block.Load()))
		if whole := usable - usable%grain; whole >= claim+grain {
			above[s], proves = claim, true
		}
	}
	return above, proves
}

// claimed is what the source of that name said.
func claimed(claims []scoring.Claim, source string) (cached scoring.Tokens, known bool) {
	for i := range claims {
		if claims[i].Source == source {
			return claims[i].Cached, true
		}
	}
	return 0, false
}

// settledLocked reports whether every source has proved itself and no sample is
// late. Caller must hold w.mu.
func (w *watched) settledLocked() bool {
	for s := range w.gates {
		t := &w.trials[s]
		if t.echo.results > 0 && (t.echo.bad || t.echo.fresh < enough) {
			return false
		}
	}
	for _, p := range w.pending {
		if p.look > 0 {
			return false
		}
	}
	return w.eligible > enough
}

// roomLocked reports whether one more sample may be kept. Caller must hold w.mu.
func (w *watched) roomLocked(p *scoring.Prompt) bool {
	if len(w.pending) >= maxPending {
		return false
	}
	tokens := p.Length()
	for _, s := range w.pending {
		tokens += s.prompt.Length()
	}
	return len(w.pending) == 0 || tokens <= maxPendingTokens
}

// endedLocked notes the end of a request that may be a sample. Caller must hold
// w.mu.
func (w *watched) endedLocked(id string, now time.Time) {
	for _, s := range w.pending {
		if s.id == id && s.ended.IsZero() {
			s.ended = now
			s.due = now.Add(looks[0])
		}
	}
}

// Probe looks for the samples whose time has come, and judges the sources by
// what they show. Call it some times a second, never two at a time; it takes
// as long as sources that ask somebody do, at most until ctx ends.
func (c *Checker) Probe(ctx context.Context) {
	mute := make([]bool, len(c.sources))
	for _, w := range c.inOrder() {
		e := *w.endpoint.Load()
		for _, s := range w.due(c.now()) {
			for i := range c.sources {
				if s.above[i] < 0 || mute[i] {
					continue
				}
				shown, known, answered := c.look(ctx, i, s.prompt, e)
				// One that does not answer is not asked for every sample.
				mute[i] = !answered
				w.looked(c, i, s, shown, known)
			}
			w.next(c, s)
		}
		c.conclude(w)
	}
}

// due are the samples to look for now.
func (w *watched) due(now time.Time) []*sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	var due []*sample
	for _, s := range w.pending {
		if !s.due.After(now) {
			due = append(due, s)
		}
	}
	return due
}

// look is what source i shows of the prompt now; answered is false where it had
// to ask and got no answer in time.
func (c *Checker) look(ctx context.Context, i int, p *scoring.Prompt, e scoring.Endpoint) (shown scoring.Tokens, known, answered bool) {
	source := &c.sources[i]
	if source.Ask != nil {
		bounded, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		done := source.Ask(bounded, p)
		defer done()
		answered = bounded.Err() == nil
	} else {
		answered = true
	}
	row := source.Index.Match(p, []scoring.Endpoint{e})[0]
	if row == nil {
		return 0, false, answered
	}
	return row[0].Cached, true, true
}

// looked notes what source i showed of a sample.
func (w *watched) looked(c *Checker, i int, s *sample, shown scoring.Tokens, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	source, now := &c.sources[i], c.now()
	switch {
	case !slices.Contains(w.pending, s):
		// The engine was restarted meanwhile, so it proves nothing.
	case shown > s.above[i]:
		w.trials[i].echo.add(true, known, now)
		w.tried = true
	case now.Before(s.until(source)):
		return
	default:
		w.trials[i].echo.add(false, known, now)
		w.tried = true
	}
	s.above[i] = -1
}

// until is when the source has had time enough to show the sample.
func (s *sample) until(source *Source) time.Time {
	switch {
	case !source.AfterEnd:
		return s.computed.Add(source.Settle)
	case s.ended.IsZero():
		return s.computed.Add(longestAnswer + source.Settle)
	}
	return s.ended.Add(source.Settle)
}

// next sets when to look again, or lets the sample go where nothing is left to
// be proven.
func (w *watched) next(c *Checker, s *sample) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var last time.Time
	for i := range c.sources {
		if s.above[i] >= 0 {
			if until := s.until(&c.sources[i]); until.After(last) {
				last = until
			}
		}
	}
	now := c.now()
	if last.IsZero() {
		w.pending = slices.DeleteFunc(w.pending, func(p *sample) bool { return p == s })
		return
	}
	s.look++
	s.due = now.Add(looks[min(s.look, len(looks)-1)])
	for i := range c.sources {
		if s.above[i] < 0 {
			continue
		}
		// Never later than the moment of judgement.
		if until := s.until(&c.sources[i]); until.Before(s.due) {
			s.due = until
		}
	}
}

// Numbers of the verdict. A source that is right misses a sample now and then:
// evicted at once, reported late, the very first after an engine's start. With
// one in ten missed, five or more of eight are so in 1 of 2,500 cases; one that
// is wrong misses all eight. What is out comes back when it shows six of eight,
// which one that is wrong never does.
const (
	remembered = 16 // results that count
	enough     = 8  // results before anything is said
	enoughBack = 6  // of them shown, before a source is believed again
)

// echo is the row of a source's last results at one endpoint.
type echo struct {
	shown [remembered]bool
	// results is the number of them ever, fresh those since the verdict changed.
	results, fresh int
	// missed is when the present row of misses began; zero after a hit.
	missed time.Time
	// unknown: the last miss was an answer that knew nothing of the endpoint.
	unknown bool
	bad     bool
	// asked and hit are totals.
	asked, hit uint64
}

// add takes in one result. now is when it was had.
func (e *echo) add(shown, known bool, now time.Time) {
	e.shown[e.results%remembered] = shown
	e.results++
	e.fresh++
	e.asked++
	switch {
	case shown:
		e.hit++
		e.missed, e.unknown = time.Time{}, false
	default:
		if e.missed.IsZero() {
			e.missed = now
		}
		e.unknown = !known
	}
	hits, n := e.last(min(e.fresh, remembered))
	switch {
	case !e.bad && n >= enough && (n-hits)*2 > n:
		e.bad, e.fresh = true, 0
	case e.bad:
		if hits, n = e.last(min(e.fresh, enough)); n == enough && hits >= enoughBack {
			e.bad, e.fresh = false, 0
		}
	}
}

// last counts the hits among the last n results, or all there are.
func (e *echo) last(n int) (hits, of int) {
	of = min(n, e.results, remembered)
	for i := range of {
		if e.shown[(e.results-1-i)%remembered] {
			hits++
		}
	}
	return hits, of
}
