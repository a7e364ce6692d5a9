package replay

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator/baseline"
)

// router is the service's scoring code on the virtual clock: one Picker, or
// several where replicas share no ledger.
type router struct {
	run     *run
	pickers []*scoring.Picker
	// memories are the own memory of each picker; empty where engines tell.
	memories []*routed.Memory
	turn     int     // of the replicas
	asked    *flight // is being routed
	held     int     // requests
	// latest are the times by which those held, and some that no longer are, have
	// to be let go, in order; bounded by what comes within that time.
	latest []deadline
}

// deadline is when a held request has to be let go.
type deadline struct {
	at   time.Duration
	held *scoring.Held
}

// routing is what the router knows of one request.
type routing struct {
	replica  int
	routed   int // times
	decision *scoring.Decision
}

// epoch is when the virtual clock shows 0. It could be any time but the zero one.
var epoch = time.Unix(1_000_000_000, 0)

func newRouter(r *run) (*router, error) {
	o := &router{run: r}
	clock := func() time.Time { return epoch.Add(r.now) }
	n := 1
	if !r.setup.Ledger {
		n = r.setup.Replicas
	}
	cfg := r.setup.Scoring
	policy := baseline.New(r.setup.Policy, o.forecast)
	if policy == nil {
		cfg.Policy = r.setup.Policy
	}
	if err := cfg.Validate("scoring"); err != nil {
		return nil, err
	}
	for i := range n {
		var truth scoring.CacheIndex = r.view
		if r.setup.Truth == Routed {
			m := routed.New(routed.DefaultConfig(), slog.New(slog.DiscardHandler))
			o.memories = append(o.memories, m)
			truth = m
		}
		rng := rand.New(rand.NewPCG(r.setup.Seed, uint64(2+i))) //nolint:gosec // a simulation is to be repeatable
		if policy != nil {
			o.pickers = append(o.pickers, scoring.NewPickerWith(cfg, r.setup.Policy, policy, clock, rng, truth))
			continue
		}
		p, err := scoring.NewPicker(cfg, clock, rng, truth)
		if err != nil {
			return nil, err
		}
		o.pickers = append(o.pickers, p)
	}
	return o, nil
}

// publish tells the router which endpoints there are.
func (o *router) publish(endpoints []*endpoint) {
	var present []scoring.Endpoint
	for _, e := range endpoints {
		if e.up {
			name := fmt.Sprintf("endpoint-%d", e.index)
			present = append(present, scoring.Endpoint{ID: e.id, Name: name, Address: name, Kind: e.setup.Kind, Ready: true})
		}
	}
	for i, p := range o.pickers {
		p.SetEndpoints(slices.Clone(present))
		if o.memories != nil {
			o.memories[i].SetEndpoints(present)
		}
		for _, e := range endpoints {
			if !e.up {
				continue
			}
			p.SetEngine(e.id, scoring.Engine{CapacityTokens: scoring.Tokens(e.setup.Profile.KVTokens)})
			if o.memories != nil {
				o.memories[i].Observe(e.id, counters.Reading{
					CapacityTokens: scoring.Tokens(e.setup.Profile.KVTokens), HostTokens: scoring.Tokens(e.setup.Profile.HostTokens),
					BlockSize: scoring.Tokens(o.run.setup.BlockTokens),
				}, false)
			}
		}
	}
}

// route finds an endpoint for a request and sends it there, or holds it.
func (o *router) route(f *flight) {
	f.replica = o.turn % len(o.pickers)
	o.turn++
	id := strconv.Itoa(f.n) + "." + strconv.Itoa(f.routed)
	f.routed++
	o.asked = f
	p := o.pickers[f.replica]
	d, held, err := p.Offer(id, f.prompt, func(d *scoring.Decision, err error) {
		o.held--
		o.answered(f, d, err)
	})
	if held != nil {
		o.held++
		o.latest = append(o.latest, deadline{o.run.now + p.MaxHold(), held})
		return
	}
	o.answered(f, d, err)
}

// answered sends a request to its endpoint, if it has one.
func (o *router) answered(f *flight, d *scoring.Decision, err error) {
	if err != nil {
		o.run.drop(f)
		return
	}
	f.decision = d
	f.estimate = o.run.now - f.request.At + d.Estimate()
	if o.memories != nil {
		o.memories[f.replica].Decided(d)
	}
	o.run.send(f, o.endpoint(d.Endpoint().ID))
}

func (o *router) endpoint(id scoring.EndpointID) *endpoint {
	i := slices.IndexFunc(o.run.endpoints, func(e *endpoint) bool { return e.up && e.id == id })
	return o.run.endpoints[i]
}

func (o *router) firstToken(f *flight) {
	ttft, first := f.decision.Reservation.FirstToken()
	if first && o.memories != nil {
		o.memories[f.replica].FirstToken(f.decision, ttft)
	}
}

// end closes the booking of a request, where it has one.
func (o *router) end(f *flight) {
	if f.decision != nil {
		f.decision.Reservation.End()
		f.decision = nil
	}
}

// forecast is what the oracle asks: seconds to the first token.
func (o *router) forecast(id scoring.EndpointID) float64 {
	r := o.run
	return (o.endpoint(id).forecast(r.now, o.asked.engine) - r.now).Seconds()
}

// nextRelease is when a held request may have to be let go; never: nobody is
// held.
func (o *router) nextRelease() time.Duration {
	if o.held == 0 {
		return never
	}
	next := o.latest[0].at
	for _, p := range o.pickers {
		if at, ok := p.NextRelease(); ok {
			next = min(next, at.Sub(epoch))
		}
	}
	return next
}

// release lets go what time alone lets go by now.
func (o *router) release() {
	if o.nextRelease() > o.run.now {
		return
	}
	for _, p := range o.pickers {
		p.Expire()
	}
	for len(o.latest) > 0 && o.latest[0].at <= o.run.now {
		o.latest[0].held.Dispatch() // or it was let go before
		o.latest = o.latest[1:]
	}
}
