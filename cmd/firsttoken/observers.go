package main

import (
	"time"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// observers tells each of them, in order, what becomes of every decision.
type observers []extproc.Observer

// Decided implements extproc.Observer.
func (o observers) Decided(d *scoring.Decision) {
	for _, each := range o {
		each.Decided(d)
	}
}

// FirstToken implements extproc.Observer.
func (o observers) FirstToken(d *scoring.Decision, ttft time.Duration) {
	for _, each := range o {
		each.FirstToken(d, ttft)
	}
}

// Ended implements extproc.Observer.
func (o observers) Ended(d *scoring.Decision, outcome scoring.Outcome, served string) {
	for _, each := range o {
		each.Ended(d, outcome, served)
	}
}
