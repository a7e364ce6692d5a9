// Package routed remembers which prompts this process sent to which endpoint.
// It is the cache source that needs nothing from an engine: what was computed
// there is believed to be held until the engine's memory must be full.
package routed

import (
	"log/slog"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// The names under which matches of this source are reported: what should be on
// the engine's GPU, and what in its host's memory.
const (
	Location     = "routed"
	LocationHost = "routed_host"
)

// block is the number of tokens that are remembered as one: four blocks of
// vLLM's default. Smaller ones cost more memory than the last tokens of a
// prefix are worth.
const block = 64

// Memory is a cache source fed by our own decisions. Per endpoint it keeps the
// blocks of the prompts routed there, least recently routed out first, up to
// what the engine says that it holds. Safe for concurrent use.
//
// Cost: simulated against exact knowledge it loses 0 to 2 % of mean time to
// first token where engines have a host tier, 0 to 8 % without. A capacity
// taken as 0.8 of the true one costs 0 to 11 %, half of it 3 to 29 %, twice
// 3 to 10 %: when unsure it is guessed high.
type Memory struct {
	cfg Config       // set once
	log *slog.Logger // set once

	mu sync.RWMutex // guards endpoints, not what they hold
	// endpoints has exactly the endpoints last given to SetEndpoints.
	endpoints map[scoring.EndpointID]*held
}

// New makes a Memory that believes each endpoint to hold what cfg says, until
// Observe is told what the engine says.
func New(cfg Config, log *slog.Logger) *Memory {
	return &Memory{cfg: cfg, log: log, endpoints: make(map[scoring.EndpointID]*held)}
}

// SetEndpoints forgets what was routed to endpoints that are gone: a new life
// of an address begins with an empty cache. So may one that is ready again; an
// engine whose counters are read tells whether it is the same as before, any
// other is taken for a new one.
func (m *Memory) SetEndpoints(endpoints []scoring.Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	present := make(map[scoring.EndpointID]*held, len(endpoints))
	for _, e := range endpoints {
		h := m.endpoints[e.ID]
		if h == nil {
			h = newHeld(e.Name, m.cfg)
		}
		h.setReady(e.Ready)
		present[e.ID] = h
	}
	m.endpoints = present
}

// Forget empties what is believed of an endpoint.
func (m *Memory) Forget(id scoring.EndpointID) {
	if h := m.of(id); h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.forgetLocked()
	}
}

// Observe takes in what an engine says of itself; it is a counters.Observer.
func (m *Memory) Observe(id scoring.EndpointID, r counters.Reading, restarted bool) {
	h := m.of(id)
	if h == nil {
		return
	}
	before, now := h.observe(&r, restarted)
	switch {
	case now < before:
		m.log.Warn("engine finds clearly less in its cache than was routed to it; believing less of that",
			"endpoint", h.name, "believed_share", now, "likely", "its cache is smaller than it says, others use it too, or it reuses nothing")
	case now > before:
		m.log.Info("engine finds more in its cache than was believed; believing more of what was routed to it", "endpoint", h.name, "believed_share", now)
	}
}

// Match implements scoring.CacheIndex. It knows every endpoint.
func (m *Memory) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	known := make([]*held, len(endpoints))
	for i := range endpoints {
		if known[i] = m.of(endpoints[i].ID); known[i] != nil {
			rows[i] = make([]scoring.Match, len(p.Sequences))
		}
	}
	for s := range p.Sequences {
		var chain []uint64
		var root uint64
		for i := range endpoints {
			if known[i] == nil {
				continue
			}
			if r := p.Root(&endpoints[i]); chain == nil || r != root {
				chain, root = chainOf(p, s, r), r
			}
			rows[i][s] = known[i].match(chain, p.Sequences[s].Length)
		}
	}
	return rows
}

// Decided notes that a prompt is on its way to an endpoint. Its blocks take
// their place in the order of routing; they count as held from the first token.
func (m *Memory) Decided(d *scoring.Decision) {
	e := d.Endpoint()
	if h := m.of(e.ID); h != nil {
		h.decided(d.Reservation, d.Prompt, d.Prompt.Root(&e))
	}
}

// FirstToken notes that the prompt has been computed, at the endpoint that
// serves the request by now.
func (m *Memory) FirstToken(d *scoring.Decision, _ time.Duration) {
	e, known := d.Reservation.Endpoint()
	m.settle(d, known && e.ID == d.Endpoint().ID)
	if known {
		m.computed(&e, d.Prompt)
	}
}

// Ended notes the end of a request. A complete answer proves that the prompt
// was computed at served, also where no first token could be seen.
func (m *Memory) Ended(d *scoring.Decision, outcome scoring.Outcome, served string) {
	whole := outcome == scoring.OutcomeComplete && !d.Prompt.Streamed
	m.settle(d, whole && served == d.Endpoint().Address)
	if !whole {
		return
	}
	for i := range d.Candidates {
		if e := &d.Candidates[i].Endpoint; e.Address == served {
			m.computed(e, d.Prompt)
		}
	}
}

// settle closes what was predicted for a request when it was decided.
func (m *Memory) settle(d *scoring.Decision, servedThere bool) {
	if h := m.of(d.Endpoint().ID); h != nil {
		h.settle(d.Reservation, servedThere)
	}
}

func (m *Memory) computed(e *scoring.Endpoint, p *scoring.Prompt) {
	if h := m.of(e.ID); h != nil {
		h.computed(p, p.Root(e))
	}
}

func (m *Memory) of(id scoring.EndpointID) *held {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.endpoints[id]
}

// chainOf has the keys of the whole blocks of a sequence, which nobody writes to.
func chainOf(p *scoring.Prompt, sequence int, root uint64) []uint64 {
	s := &p.Sequences[sequence]
	chain := s.Chain
	if p.BlockTokens != block {
		ids := s.TokenIDs[:min(len(s.TokenIDs), int(s.Usable))]
		chain = make([]uint64, 0, len(ids)/block)
		var prev uint64
		for end := block; end <= len(ids); end += block {
			prev = scoring.ChainBlock(prev, ids[end-block:end])
			chain = append(chain, prev)
		}
	}
	if root == 0 {
		return chain
	}
	keys := make([]uint64, len(chain))
	for i, h := range chain {
		keys[i] = scoring.BlockKey(root, h)
	}
	return keys
}

// chainsOf has chainOf of each sequence. Where it has to hash, that takes longer
// than all that is done with it, so nobody holds a lock meanwhile.
func chainsOf(p *scoring.Prompt, root uint64) [][]uint64 {
	chains := make([][]uint64, len(p.Sequences))
	for s := range p.Sequences {
		chains[s] = chainOf(p, s, root)
	}
	return chains
}
