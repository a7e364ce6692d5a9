package scoring

import "time"

// Stats is the ledger at one moment, for people and metrics.
type Stats struct {
	// Endpoints are in the order of Picker.Endpoints.
	Endpoints []EndpointStats
	// Open is the number of reservations that have not ended.
	Open int
	// Pools are what was learned, by the pool's model.
	Pools  map[string]PoolStats
	Counts Counts
}

// PoolStats is what was learned of the engines of one model.
type PoolStats struct {
	// SecondsPerToken and SecondsPerStep are the present fit, see Fit.
	SecondsPerToken, SecondsPerStep float64
	// Busy is the share of endpoints with a prefill under way, of late.
	Busy float64
	// KVRoom: the KV capacity of every ready endpoint is known, so that requests
	// can be kept from full ones.
	KVRoom bool
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
	// HeldTokens is the KV memory of the requests in flight there.
	HeldTokens Tokens
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
		Pools:     make(map[string]PoolStats, len(l.pools)),
		Counts:    l.count,
	}
	for _, e := range endpoints {
		a := l.accounts[e.ID]
		if a == nil {
			continue
		}
		at := l.occupancyLocked(a, now)
		s.Endpoints = append(s.Endpoints, EndpointStats{
			Endpoint: e, QueuedArea: a.area, Backlog: a.backlog(now), Waiting: a.waiting,
			Decoding: at.decoding, HeldTokens: at.held, DecodingFrom: at.from,
		})
	}
	for id, pool := range l.pools {
		s.Pools[id] = PoolStats{
			SecondsPerToken: pool.fit.SecondsPerToken(), SecondsPerStep: pool.fit.SecondsPerStep(),
			Busy: pool.rho, KVRoom: l.cfg.KVRoom && pool.room,
		}
	}
	return s
}
