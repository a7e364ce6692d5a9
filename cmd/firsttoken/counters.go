package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/counters"
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
