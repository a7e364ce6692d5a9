package main

import (
	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// capacity is a counters.Observer: what an engine says that its GPUs hold bounds
// what is believed of its events, and what may be sent there; how many requests
// it works on stands in where nobody tells of their ends. After a restart nothing
// is taken off the books: whoever lost its connection tells of each request.
func (s *service) capacity(id scoring.EndpointID, r counters.Reading, _ bool) {
	if s.events != nil {
		s.events.SetCapacity(id, r.CapacityTokens)
	}
	if r.Several {
		// Of an unknown number of engines each told its own.
		s.picker.SetEngine(id, scoring.Engine{})
		return
	}
	s.picker.SetEngine(id, scoring.Engine{
		At: r.At, CapacityTokens: r.CapacityTokens, Running: r.Running, Waiting: r.Waiting, Usage: r.Usage,
		Answers: r.Answers, AnswerTokens: r.AnswerTokens,
	})
}
