package scoring

import (
	"math"
	"time"
)

// pool is what is known of the engines of one model. It is guarded by
// ledger.mu.
type pool struct {
	fit Fit
	// restored: fit began with what was learnt before a restart.
	restored bool
	// room: the KV capacity of every ready endpoint is known.
	room bool
	// rho is the share of endpoints with a prefill under way, as it was of late,
	// and arrived the time of the last request.
	rho     float64
	arrived time.Time
	// late is how much later than backlog and work say first tokens come, in
	// seconds, in the middle: a short prefill costs the engine only its part of a
	// step, but its own first token comes with the end of the whole, after that of
	// the one under way, over a network. It is the same wherever a request goes, so
	// it is of no account in the choice.
	late float64
}

const (
	// priorLate is a step of the fit's priors, in seconds.
	priorLate = priorStepSeconds
	// lateStep is by which share of itself late moves with each first token, and
	// lateLeast what it is taken for at least then, in seconds.
	lateStep  = 0.05
	lateLeast = 1e-3
)

// missed takes in by how much a first token came later than predicted. Half of
// them should, so late follows the median, which a few that are far off do not
// move.
func (p *pool) missed(by time.Duration) {
	step := lateStep * max(p.late, lateLeast)
	if by < 0 {
		step = -step
	}
	p.late = max(0, p.late+step)
}

// kind is what is known of the engines of one kind, by label, of a model.
type kind struct {
	fit Fit
	// held is how long a request holds its KV memory after the first token, in
	// seconds; 0: no end was seen yet.
	held float64
	// output is how many tokens an answer has.
	output float64
}

// kindID names a kind of engine.
type kindID struct{ pool, label string }

// pool names the endpoints that are alike: one model.
func (e *Endpoint) pool() string {
	if len(e.Models) == 0 {
		return ""
	}
	return e.Models[0]
}

const (
	// busyMemory is over how many seconds the share of busy endpoints is taken.
	busyMemory = 30
	// maxKappa bounds the weight of a request's own work.
	maxKappa = 4
)

// arrive takes in a request, when busy of so many endpoints have a prefill under
// way.
func (p *pool) arrive(now time.Time, busy, endpoints int) {
	if dt := now.Sub(p.arrived).Seconds(); !p.arrived.IsZero() && dt > 0 {
		p.rho += (1 - math.Exp(-dt/busyMemory)) * (float64(busy)/float64(endpoints) - p.rho)
	}
	p.arrived = now
}

// kappa is how many seconds a second of own work delays those behind it, about
// rho/(1-rho) of a queue.
func (p *pool) kappa() float64 { return min(maxKappa, p.rho/(1.001-p.rho)) }

// maxPools bounds the pools, and the kinds, that are remembered though no
// endpoint of them is left. What package state keeps over a restart fits in.
const maxPools = 128
