package fidelity

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Checker is the one cache index that the picker asks: all sources, each
// believed of an endpoint for as long as it proves right there. Safe for
// concurrent use.
//
// Its methods Decided, FirstToken and Ended are told of every request, in this
// order, each before memory is: what memory believed by then is a prediction
// too, also where it did not count.
type Checker struct {
	// Set once by New.
	sources []Source
	memory  Source
	finders []Finder
	shared  func() bool // nil: never
	now     func() time.Time
	log     *slog.Logger

	mu sync.Mutex // serialises SetEndpoints
	// fleet has exactly the endpoints last given to SetEndpoints; the map is
	// never written to.
	fleet atomic.Pointer[map[scoring.EndpointID]*watched]
}

// Options are what a Checker needs besides its sources.
type Options struct {
	// Finders are asked for what else is known to be wrong.
	Finders []Finder
	// Shared, if not nil, reports whether requests that nobody books go to the
	// engines too: then what an engine counts beyond ours is no fault. It must be
	// quick and safe for concurrent use.
	Shared func() bool
	// Now is the time; required.
	Now func() time.Time
	// Log gets one line for each change of what is believed.
	Log *slog.Logger
}

// New makes a Checker over sources, in the order in which an engine would look
// in the caches that they tell of. memory speaks for the endpoints that none of
// them knows; it is believed of every one.
func New(sources []Source, memory Source, o Options) *Checker {
	c := &Checker{sources: sources, memory: memory, finders: o.Finders, shared: o.Shared, now: o.Now, log: o.Log}
	c.fleet.Store(new(map[scoring.EndpointID]*watched))
	return c
}

// SetEndpoints tells which endpoints there are. What was found out about others
// is forgotten.
func (c *Checker) SetEndpoints(endpoints []scoring.Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := *c.fleet.Load()
	fleet := make(map[scoring.EndpointID]*watched, len(endpoints))
	for _, e := range endpoints {
		w := before[e.ID]
		if w == nil {
			w = newWatched(len(c.sources))
		}
		w.endpoint.Store(&e)
		fleet[e.ID] = w
	}
	c.fleet.Store(&fleet)
}

// inOrder are the watched endpoints in the order of their ids.
func (c *Checker) inOrder() []*watched {
	fleet := *c.fleet.Load()
	list := make([]*watched, 0, len(fleet))
	for _, id := range slices.Sorted(maps.Keys(fleet)) {
		list = append(list, fleet[id])
	}
	return list
}

// watched is one life of one endpoint.
type watched struct {
	endpoint atomic.Pointer[scoring.Endpoint]
	// gates have one for each source; Match reads them.
	gates []gate
	// block is the engine's block size in tokens, as it says itself; 0: not
	// known.
	block atomic.Int64

	mu sync.Mutex // guards the following fields
	// trials have one for each source, then memory's.
	trials []trial
	// pending are prompts that sources must show soon: at most maxPending, with
	// at most maxPendingTokens.
	pending []*sample
	// eligible counts the prompts that prove something, sampled or not.
	eligible uint64
	// tried: there are results from which nothing was concluded yet.
	tried bool
	hits  hits
}

// gate is what Match has to know of one source and endpoint.
type gate struct {
	// out: the source is left out.
	out atomic.Bool
	// known: the source's last answer told of the endpoint.
	known atomic.Bool
}

// trial is what speaks for and against one source at one endpoint.
type trial struct {
	echo echo
	// over counts the windows in a row in which the engine found far less than
	// the source said.
	over verdictStreak
	// fault is the present one, kindNone where there is none. It was looked for
	// when the echo had so many fresh results.
	fault  kind
	judged int
}

func newWatched(sources int) *watched {
	return &watched{
		gates: make([]gate, sources), trials: make([]trial, sources+1),
		hits: hits{flying: make(map[string]scoring.Tokens), total: newTally(sources + 1), sum: newTally(sources + 1)},
	}
}

// leftOut reports whether source s is not believed; w may be nil.
func (w *watched) leftOut(s int) bool { return w != nil && w.gates[s].out.Load() }

// noteKnown notes whether source s told of the endpoint; w may be nil.
func (w *watched) noteKnown(s int, known bool) {
	// Every decision comes by here: the memory is written only on a change.
	if w != nil && w.gates[s].known.Load() != known {
		w.gates[s].known.Store(known)
	}
}

// of is what is watched of an endpoint; nil where it is gone.
func (c *Checker) of(id scoring.EndpointID) *watched { return (*c.fleet.Load())[id] }

// Decided notes that a request is on its way.
func (c *Checker) Decided(d *scoring.Decision) {
	if w := c.of(d.Endpoint().ID); w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.hits.flying[d.ID] = computed(d.Prompt)
	}
}

// FirstToken notes that the prompt of a streamed request has been computed, at
// the endpoint that serves it by now.
func (c *Checker) FirstToken(d *scoring.Decision, _ time.Duration) {
	c.landed(d)
	e, known := d.Reservation.Endpoint()
	if !known {
		return
	}
	for i := range d.Candidates {
		if d.Candidates[i].Endpoint.ID == e.ID {
			c.arrived(d, &d.Candidates[i], time.Time{})
			return
		}
	}
}

// Ended notes the end of a request. A complete answer that was not streamed
// proves no earlier than this that its prompt was computed.
func (c *Checker) Ended(d *scoring.Decision, outcome scoring.Outcome, served string) {
	c.landed(d)
	for i := range d.Candidates {
		candidate := &d.Candidates[i]
		if candidate.Endpoint.Address != served {
			continue
		}
		if !d.Prompt.Streamed && outcome == scoring.OutcomeComplete {
			c.arrived(d, candidate, c.now())
		} else if w := c.of(candidate.Endpoint.ID); w != nil {
			w.mu.Lock()
			w.endedLocked(d.ID, c.now())
			w.mu.Unlock()
		}
		return
	}
}

// landed notes that the request is no longer on its way.
func (c *Checker) landed(d *scoring.Decision) {
	if w := c.of(d.Endpoint().ID); w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.hits.flying, d.ID)
	}
}

// arrived notes that the prompt was computed at the candidate. ended is zero
// while the answer runs.
func (c *Checker) arrived(d *scoring.Decision, candidate *scoring.Candidate, ended time.Time) {
	w := c.of(candidate.Endpoint.ID)
	if w == nil {
		return
	}
	remembered := c.memoryOf(d.Prompt, candidate)
	taken := c.sample(w, d, candidate, ended)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hits.countLocked(c, d.Prompt, candidate, remembered)
	if taken != nil {
		w.takeLocked(taken)
	}
}

// memoryOf is how many tokens memory believed the candidate to hold: as it said
// at the decision, or where it was not asked then, as it says now.
func (c *Checker) memoryOf(p *scoring.Prompt, candidate *scoring.Candidate) scoring.Tokens {
	rows := [][]scoring.Match{candidate.Matches}
	if candidate.Matches != nil {
		if _, asked := claimed(candidate.Matches[0].Claims, c.memory.Name); !asked {
			rows = c.memory.Index.Match(p, []scoring.Endpoint{candidate.Endpoint})
		}
	}
	var n scoring.Tokens
	for _, row := range rows {
		for i := range row {
			n += row[i].Cached
		}
	}
	return n
}
