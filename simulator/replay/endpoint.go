package replay

import (
	"math"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
)

// endpoint is one engine on the virtual clock.
type endpoint struct {
	setup Endpoint           // set once
	index int                // set once; its place among the endpoints
	id    scoring.EndpointID // of its present life
	up    bool

	sim *simulator.Engine
	// at is what time sim has come to, where no step is under way.
	at time.Duration
	// next is when the step under way ends, or the last of several of which
	// there is nothing to tell; never where the engine is idle.
	next time.Duration
	doing
	// busy is how long it has computed up to busyUntil, all told.
	busy, busyUntil time.Duration
}

// doing is what an engine does.
type doing uint8

const (
	idle     doing = iota // nothing
	stepping              // a step that Complete ends
	coasting              // steps that nobody needs to look at, until endpoint.next
)

const never = time.Duration(math.MaxInt64)

// begin starts what an engine that stands still has to do at now.
func (e *endpoint) begin(now time.Duration) {
	e.at = now
	if took, steps := e.sim.Coast(never-now, true); steps > 0 {
		e.doing, e.next = coasting, now+took
		return
	}
	e.step()
}

// step starts one step at the time that sim has come to.
func (e *endpoint) step() {
	took, ok := e.sim.Schedule()
	if !ok {
		e.doing, e.next = idle, never
		return
	}
	e.doing, e.next = stepping, e.at+took
	e.work(e.next)
}

// work counts as busy until then.
func (e *endpoint) work(until time.Duration) {
	e.busy += until - e.at
	e.busyUntil = until
}

// busyAt is how long the engine has computed by now, which it has come to.
func (e *endpoint) busyAt(now time.Duration) time.Duration {
	switch {
	case e.doing == coasting:
		return e.busy + now - e.at
	case e.busyUntil > now:
		return e.busy - (e.busyUntil - now)
	}
	return e.busy
}

// complete ends the step that ends now, or the last of several of which there is
// nothing to tell, and begins the next: an engine waits for nobody. So whoever
// comes now, or because of what is told, waits for the one after that.
func (e *endpoint) complete() (res simulator.Result) {
	if e.doing == coasting {
		e.coast(e.next)
	} else {
		res = e.sim.Complete()
	}
	e.begin(e.next)
	return res
}

// coast brings sim from coasting to the end of the last step that is over by now.
func (e *endpoint) coast(now time.Duration) {
	took, _ := e.sim.Coast(now-e.at, false)
	e.work(e.at + took)
	e.at += took
}

// settle brings sim from coasting to the step that is under way now, so that it
// can be given a request.
func (e *endpoint) settle(now time.Duration) {
	if e.doing == coasting {
		e.coast(now)
		e.step()
	}
}

// forecast is when a request that was sent there now would get its first token,
// if nothing came after it; never where the engine cannot hold it.
func (e *endpoint) forecast(now time.Duration, r simulator.Request) time.Duration {
	e.settle(now)
	sim := e.sim.Ahead()
	if sim.Add(r) != nil {
		return never
	}
	at := now
	if e.doing == stepping {
		at = e.next
		sim.Complete() // r cannot be in it
	}
	for {
		took, _ := sim.Coast(never-at, false)
		at += took
		took, ok := sim.Schedule()
		if !ok {
			return never
		}
		at += took
		for _, o := range sim.Complete().Outputs {
			if o.ID == r.ID && o.First {
				return at
			}
		}
	}
}
