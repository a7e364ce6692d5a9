package main

import (
	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// capacity is a counters.Observer: what an engine says that its GPUs hold bounds
// what is believed of its events.
func (s *service) capacity(id scoring.EndpointID, r counters.Reading, _ bool) {
	if s.events != nil {
		s.events.SetCapacity(id, r.CapacityTokens)
	}
}
