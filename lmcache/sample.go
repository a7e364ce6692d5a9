package lmcache

import (
	"slices"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Bounds on the prompts that are kept to look for their keys.
const (
	// maxWaiting is how many prompts wait for their keys at once.
	maxWaiting = 64
	// maxSampleTokens is the longest beginning of a prompt that is kept: three
	// chunks of the largest size.
	maxSampleTokens = 3 * maxChunkSize
)

// Between two samples of one endpoint.
const (
	// eagerly while it is not known whether its keys match; doubled with every
	// prompt whose keys are not found, up to settledGap.
	eagerGap = 200 * time.Millisecond
	// now and then once they do.
	settledGap = 10 * time.Second
)

// looks are how long after the first token a prompt's keys are looked for:
// LMCache reports within tens of milliseconds, later on a busy engine, and may
// evict after some time.
var looks = []time.Duration{300 * time.Millisecond, time.Second, 3 * time.Second, 8 * time.Second}

// sample is a prompt that an endpoint has computed.
type sample struct {
	endpoint scoring.EndpointID
	model    string
	tokens   []uint32
	whole    bool // tokens are all of the prompt
	computed time.Time
	look     int // how often its keys were looked for
}

// intake takes samples and keeps them until they are due.
type intake struct {
	mu      sync.Mutex // guards the following fields
	waiting []*sample  // at most maxWaiting
	// asked is what was asked for of each endpoint; the Detector forgets those
	// that are gone.
	asked map[scoring.EndpointID]asked
}

// asked says when the next sample of an endpoint is wanted.
type asked struct {
	gap  time.Duration
	next time.Time
}

// offer takes a prompt in if its endpoint's next sample is due.
func (in *intake) offer(id scoring.EndpointID, p *scoring.Prompt, now time.Time) {
	s := longestSequence(p)
	if s == nil {
		return
	}
	in.mu.Lock()
	a, known := in.asked[id]
	full := len(in.waiting) >= maxWaiting
	if !full && !now.Before(a.next) {
		if !known {
			a.gap = eagerGap
		}
		a.next = now.Add(a.gap)
		in.asked[id] = a
	} else {
		full = true
	}
	in.mu.Unlock()
	if full {
		return
	}
	tokens := s.TokenIDs[:min(len(s.TokenIDs), int(s.Usable), maxSampleTokens)]
	in.put(&sample{
		endpoint: id, model: p.Model, tokens: slices.Clone(tokens),
		whole: len(tokens) == int(s.Length), computed: now,
	})
}

// longestSequence is the one with the most token ids to compare; nil where
// nothing can be compared.
func longestSequence(p *scoring.Prompt) *scoring.Sequence {
	var longest *scoring.Sequence
	if p.NoCache {
		return nil
	}
	for i := range p.Sequences {
		if s := &p.Sequences[i]; s.Usable > 0 && len(s.TokenIDs) > 0 && (longest == nil || s.Usable > longest.Usable) {
			longest = s
		}
	}
	return longest
}

// put keeps a sample for its next look; without room it is dropped.
func (in *intake) put(s *sample) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.waiting) < maxWaiting {
		in.waiting = append(in.waiting, s)
	}
}

// due takes out the samples to look for now.
func (in *intake) due(now time.Time) []*sample {
	in.mu.Lock()
	defer in.mu.Unlock()
	var due []*sample
	in.waiting = slices.DeleteFunc(in.waiting, func(s *sample) bool {
		ready := !now.Before(s.computed.Add(looks[s.look]))
		if ready {
			due = append(due, s)
		}
		return ready
	})
	return due
}

// ask sets how often samples of the endpoint are wanted.
func (in *intake) ask(id scoring.EndpointID, gap time.Duration) {
	in.mu.Lock()
	defer in.mu.Unlock()
	a := in.asked[id]
	if gap < a.gap {
		a.next = time.Time{}
	}
	a.gap = gap
	in.asked[id] = a
}

// keep forgets all endpoints but those present.
func (in *intake) keep(present []scoring.Endpoint) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for id := range in.asked {
		if !slices.ContainsFunc(present, func(e scoring.Endpoint) bool { return e.ID == id }) {
			delete(in.asked, id)
		}
	}
}
