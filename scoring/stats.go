package scoring

import (
	"maps"
	"time"
)

// Stats is the ledger at one moment, for people and metrics.
type Stats struct {
	// Endpoints are in the order of Picker.Endpoints.
	Endpoints []EndpointStats
	// Open is the number of reservations that have not ended, Held that of requests
	// that wait and are booked nowhere.
	Open, Held int
	// Pools are what was learned, by the pool's model: of those with endpoints,
	// and of those without that were taught anything.
	Pools  map[string]PoolStats
	Counts Counts
	// OptimisticRefused is how many requests' blocks were not counted as under
	// way because too many were.
	OptimisticRefused uint64
}

// PoolStats is what was learned of the engines of one model.
type PoolStats struct {
	// SecondsPerToken and SecondsPerStep are the present fit, see Fit.
	SecondsPerToken, SecondsPerStep float64
	// Groups is the number of groups of first tokens that taught them, those
	// before a restart too, where Restored.
	Groups   uint64
	Restored bool
	// Busy is the share of endpoints with a prefill under way, of late, and Kappa
	// what follows from it.
	Busy, Kappa float64
	// Late is by how many seconds first tokens came later than backlog, KV wait
	// and work, in the middle.
	Late float64
	// KVRoom: the KV capacity of every ready endpoint is known, so that requests
	// can be kept from full ones. NoCapacity names those of which it is not.
	KVRoom     bool
	NoCapacity []string
	// Kinds are what was learned of each kind of engine, by label.
	Kinds map[string]KindStats
}

// KindStats is what was learned of one kind of engine of a model.
type KindStats struct {
	// SecondsPerToken, SecondsPerStep and Groups are as in PoolStats, of this kind.
	SecondsPerToken, SecondsPerStep float64
	Groups                          uint64
	// HeldSeconds is how long requests hold KV memory after their first token,
	// OutputTokens how many tokens their answers have.
	HeldSeconds, OutputTokens float64
}

// EndpointStats is what one endpoint owes.
type EndpointStats struct {
	Endpoint Endpoint
	// QueuedArea is the work booked and not yet seen finished, in the trapezoid's
	// unit; Backlog how long that takes.
	QueuedArea Work
	Backlog    time.Duration
	Waiting    int
	Decoding   int
	// Chosen is how many requests it was chosen for since it is in the list.
	Chosen uint64
	// HeldTokens is the KV memory of the requests in flight there, of
	// CapacityTokens; 0: not known.
	HeldTokens, CapacityTokens Tokens
	// OptimisticBlocks are blocks that requests under way or just over brought
	// there, one that several brought as often.
	OptimisticBlocks int
	// DecodingFrom says where Decoding and HeldTokens come from.
	DecodingFrom DecodingSource
}

// Stats reads the ledger; it holds the decision lock for a scan over the
// endpoints.
func (p *Picker) Stats() Stats {
	endpoints := p.Endpoints()
	l := p.ledger
	now := l.lock()
	defer l.unlock()
	s := Stats{
		Endpoints: make([]EndpointStats, 0, len(endpoints)),
		Open:      len(l.open),
		Held:      l.held.count,
		Pools:     make(map[string]PoolStats, len(l.pools)),
		Counts:    l.count,

		OptimisticRefused: l.underWay.refused,
	}
	for id, pool := range l.pools {
		s.Pools[id] = PoolStats{
			SecondsPerToken: pool.fit.SecondsPerToken(), SecondsPerStep: pool.fit.SecondsPerStep(),
			Groups: pool.fit.Groups, Restored: pool.restored, Busy: pool.rho, Kappa: pool.kappa(), Late: pool.late,
			KVRoom: l.cfg.KVRoom && pool.room, Kinds: make(map[string]KindStats),
		}
	}
	for id, k := range l.kinds {
		if pool, ok := s.Pools[id.pool]; ok {
			pool.Kinds[id.label] = KindStats{
				SecondsPerToken: k.fit.SecondsPerToken(), SecondsPerStep: k.fit.SecondsPerStep(), Groups: k.fit.Groups,
				HeldSeconds: k.heldSeconds(), OutputTokens: k.output,
			}
		}
	}
	present := make(map[string]bool)
	for _, e := range endpoints {
		present[e.pool()] = true
		a := l.accounts[e.ID]
		if a == nil {
			continue
		}
		at := l.occupancyLocked(a, now)
		s.Endpoints = append(s.Endpoints, EndpointStats{
			Endpoint: e, QueuedArea: a.area, Backlog: a.backlog(now), Waiting: a.waiting,
			Decoding: at.decoding, HeldTokens: at.held, CapacityTokens: a.engine.CapacityTokens, DecodingFrom: at.from,
			OptimisticBlocks: l.underWay.held[a.slot], Chosen: a.chosen,
		})
		if a.ready && a.engine.CapacityTokens <= 0 {
			pool := s.Pools[e.pool()]
			pool.NoCapacity = append(pool.NoCapacity, e.Name)
			s.Pools[e.pool()] = pool
		}
	}
	// An endpoint whose models are not known yet opens a pool that nobody wants
	// to see once they are.
	maps.DeleteFunc(s.Pools, func(id string, p PoolStats) bool { return p.Groups == 0 && !present[id] })
	return s
}
