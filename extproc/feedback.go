package extproc

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// What Envoy tells of a request comes by its stream and by the access log, in
// any order and often twice. All of it passes through these three, which act
// on what is new.

// served takes in which address answers, empty where it is not known. A
// request that was booked elsewhere was retried: its booking moves, and the
// endpoint that lost it is looked at.
func (s *Server) served(r *scoring.Reservation, address string) {
	booked, known := r.Endpoint()
	if !r.Served(address) {
		return
	}
	s.metrics.moved.Inc()
	if known {
		s.suspect(booked.Address)
	}
}

// suspect asks for a probe of the endpoint at address.
func (s *Server) suspect(address string) {
	if s.probe != nil && address != "" {
		s.probe(address)
	}
}

// firstToken takes in the first chunk of a good answer's body.
func (s *Server) firstToken(r *scoring.Reservation) {
	d := r.Decision() // with its token ids, which it keeps no longer than this
	ttft, first := r.FirstToken()
	if at, known := r.Endpoint(); known {
		s.heard(at.Address)
	}
	if !first {
		return
	}
	if t := s.followed.find(d.ID); t != nil {
		t.answered() // where Envoy shows no tries
	}
	total := ttft
	if received := d.Prompt.Received; !received.IsZero() {
		total = time.Since(received)
	}
	s.metrics.ttft.Observe(total.Seconds())
	s.metrics.arms.firstToken(d.Arm, total)
	if estimate, known := r.Estimate(); known {
		s.metrics.estimated(d, estimate, ttft)
	}
	if s.observer != nil {
		s.observer.FirstToken(d, ttft)
	}
}

// end takes in that the request is over.
func (s *Server) end(r *scoring.Reservation, outcome scoring.Outcome) {
	at, _ := r.Endpoint()
	if !r.End() {
		return
	}
	s.metrics.ended.WithLabelValues(string(outcome)).Inc()
	s.metrics.arms.ended(r.Decision().Arm, outcome)
	if s.observer != nil {
		s.observer.Ended(r.Decision(), outcome, at.Address)
	}
}
