package replay

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
)

// view is what the router has heard of what engines hold: a cache source that
// hears of each change some time after it happened. It belongs to the goroutine
// of the replay.
type view struct {
	clock       func() time.Duration
	delay       time.Duration
	blockTokens int
	// hostSeconds and fetchSeconds are what the router is told that a token costs
	// to bring from the engine's own host tier, and from another's.
	hostSeconds, fetchSeconds float64
	// holders counts the host tiers that have a chunk, as heard; nil unless engines
	// read each other's.
	holders map[simulator.Key]int
	of      map[scoring.EndpointID]*heard
}

// heard is what is believed of one life of one endpoint.
type heard struct {
	blocks map[simulator.Key]int // copies in HBM
	host   map[simulator.Key]struct{}
	late   []change // not heard yet, in order; bounded by what happens within the delay
}

// change is news of one engine.
type change struct {
	due    time.Duration
	kind   simulator.BlockChangeKind
	host   bool
	keys   []simulator.Key // stored
	key    simulator.Key   // lost, or of the host tier
	gained bool            // of the host tier
}

// The places that matches name.
const (
	locationHBM  = "hbm"
	locationHost = "host"
	// locationRemote is another engine's host tier.
	locationRemote = "remote"
)

// join begins with an endpoint that holds nothing.
func (v *view) join(id scoring.EndpointID) {
	v.of[id] = &heard{blocks: make(map[simulator.Key]int), host: make(map[simulator.Key]struct{})}
}

// leave forgets an endpoint.
func (v *view) leave(id scoring.EndpointID) {
	h := v.of[id]
	for k := range h.host {
		v.lose(k)
	}
	delete(v.of, id)
}

func (v *view) lose(k simulator.Key) {
	if v.holders == nil {
		return
	}
	if v.holders[k]--; v.holders[k] == 0 {
		delete(v.holders, k)
	}
}

// tell takes in what a step changed. keys are those of a request that it names.
func (v *view) tell(id scoring.EndpointID, res *simulator.Result, keys func(simulator.ID) []simulator.Key) {
	h, due := v.of[id], v.clock()+v.delay
	for _, c := range res.Blocks {
		late := change{due: due, kind: c.Kind, key: c.Key}
		if c.Kind == simulator.BlocksStored {
			late.keys = keys(c.ID)[c.First:c.Last]
		}
		h.late = append(h.late, late)
	}
	for _, c := range res.Host {
		h.late = append(h.late, change{due: due, host: true, key: c.Key, gained: !c.Evicted})
	}
}

// hear takes in what is due.
func (v *view) hear(h *heard) {
	now, n := v.clock(), 0
	for ; n < len(h.late) && h.late[n].due <= now; n++ {
		switch c := h.late[n]; {
		case c.host && c.gained:
			h.host[c.key] = struct{}{}
			if v.holders != nil {
				v.holders[c.key]++
			}
		case c.host:
			delete(h.host, c.key)
			v.lose(c.key)
		case c.kind == simulator.BlocksStored:
			for _, k := range c.keys {
				h.blocks[k]++
			}
		case c.kind == simulator.BlockLost:
			if h.blocks[c.key]--; h.blocks[c.key] == 0 {
				delete(h.blocks, c.key)
			}
		case c.kind == simulator.CacheReset:
			clear(h.blocks)
		}
	}
	rest := copy(h.late, h.late[n:])
	clear(h.late[rest:])
	h.late = h.late[:rest]
}

// Match implements scoring.CacheIndex.
func (v *view) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	if v.holders != nil {
		for i := range endpoints { // all, since each tells what the others can fetch
			v.hear(v.of[endpoints[i].ID])
		}
	}
	matches := make([]scoring.Match, len(endpoints)) // one sequence each
	for i := range endpoints {
		h := v.of[endpoints[i].ID]
		v.hear(h)
		matches[i] = v.match(h, p.Sequences[0].Chain)
		rows[i] = matches[i : i+1 : i+1]
	}
	return rows
}

// match follows the engine: what its HBM has from the first block on, then what
// its host tier has, counted from the first block too, then what others have.
func (v *view) match(h *heard, chain []uint64) scoring.Match {
	hbm := 0
	for hbm < len(chain) && h.blocks[simulator.Key(chain[hbm])] > 0 {
		hbm++
	}
	host := 0
	for host < len(chain) {
		if _, ok := h.host[simulator.Key(chain[host])]; !ok {
			break
		}
		host++
	}
	far := host
	for far < len(chain) && v.holders[simulator.Key(chain[far])] > 0 {
		far++
	}
	var m scoring.Match
	add := func(blocks int, location string, seconds float64) {
		if end := scoring.Tokens(blocks * v.blockTokens); end > m.Cached {
			m.Cached = end
			m.Spans = append(m.Spans, scoring.Span{End: end, Location: location, SecondsPerToken: seconds, Remote: location == locationRemote})
		}
	}
	add(hbm, locationHBM, 0)
	add(host, locationHost, v.hostSeconds)
	add(far, locationRemote, v.fetchSeconds)
	return m
}
