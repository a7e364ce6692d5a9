package main

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/scoring"
)

// readCounters makes the reader of the engines' own counters, if it is wanted.
// It calls engines as their probes do.
func (s *service) readCounters(registry prometheus.Registerer, observers ...counters.Observer) {
	if !s.cfg.Counters.Enabled {
		return
	}
	s.counters = counters.New(s.cfg.Counters, s.watcher.Get, s.log, observers...)
	counters.NewMetrics(registry, s.counters)
}

// counted is what each engine says of itself, by endpoint.
func (s *service) counted() map[scoring.EndpointID]*counters.Status {
	if s.counters == nil {
		return nil
	}
	rows := make(map[scoring.EndpointID]*counters.Status)
	for _, row := range s.counters.Status() {
		rows[row.Endpoint] = &row
	}
	return rows
}

// findSeveral says that an endpoint is more than one engine.
func (s *service) findSeveral(id scoring.EndpointID) []fidelity.Finding {
	if s.counters == nil {
		return nil
	}
	several := slices.ContainsFunc(s.counters.Status(), func(row counters.Status) bool {
		return row.Endpoint == id && row.Reading != nil && row.Reading.Several
	})
	if !several {
		return nil
	}
	return []fidelity.Finding{{
		Fault: "several engine processes answer behind this address, so nobody knows which of them has what cached; neither their restarts nor their counts are believed",
		Fix:   "give each engine an entry of its own in endpoints: the addresses of the engines, or a name that resolves to all of them, not that of a load balancer or Service",
	}}
}
