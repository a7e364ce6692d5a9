package scoring

import "time"

// Stats is the ledger at one moment, for people and metrics.
type Stats struct {
	// Endpoints are in the order of Picker.Endpoints.
	Endpoints []EndpointStats
	// Open is the number of reservations that have not ended.
	Open int
	// Paces are the learned seconds for one unit of work, by pool.
	Paces  map[string]float64
	Counts Counts
}

// EndpointStats is what one endpoint owes.
type EndpointStats struct {
	Endpoint Endpoint
	// Queued is the work booked and not yet seen finished; QueuedTime is how
	// long that takes at the pool's pace.
	Queued     Work
	QueuedTime time.Duration
	Waiting    int
	Decoding   int
}

// Stats reads the ledger; it holds the decision lock for a scan over the
// endpoints.
func (p *Picker) Stats() Stats {
	endpoints := p.Endpoints()
	l := p.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{
		Endpoints: make([]EndpointStats, 0, len(endpoints)),
		Open:      len(l.open),
		Paces:     make(map[string]float64, len(l.paces)),
		Counts:    l.count,
	}
	for _, e := range endpoints {
		a := l.accounts[e.ID]
		if a == nil {
			continue
		}
		s.Endpoints = append(s.Endpoints, EndpointStats{
			Endpoint: e, Queued: a.queued, QueuedTime: l.paceLocked(e.pool()).estimate(a.queued),
			Waiting: a.waiting, Decoding: a.decoding,
		})
	}
	for pool, pace := range l.paces {
		s.Paces[pool] = pace.perWork()
	}
	return s
}
