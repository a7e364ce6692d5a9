package kvevents

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Decided begins to follow a prompt that was sent to an engine with events: its
// blocks are its prefill's progress. Together with FirstToken and Ended it makes
// a Subscriber an observer of decisions.
func (s *Subscriber) Decided(d *scoring.Decision) {
	if p := s.index.progress(d.Endpoint().ID); p != nil {
		p.await(d)
	}
}

// FirstToken ends it.
func (s *Subscriber) FirstToken(d *scoring.Decision, _ time.Duration) { s.forget(d) }

// Ended ends it, however the request went.
func (s *Subscriber) Ended(d *scoring.Decision, _ scoring.Outcome, _ string) { s.forget(d) }

func (s *Subscriber) forget(d *scoring.Decision) {
	if p := s.index.progress(d.Endpoint().ID); p != nil {
		p.forget(d.ID)
	}
}
