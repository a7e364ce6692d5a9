package replay

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
	"github.com/firsttoken/firsttoken/simulator/trace"
)

// foreseeing is a workload that asks, as its last request comes, when each
// engine would give it its first token.
type foreseeing struct {
	Workload
	run  *run
	last int
	told []time.Duration
}

func (f *foreseeing) Take() trace.Request {
	q := f.Workload.Take()
	if f.run.taken == f.last {
		for _, e := range f.run.endpoints {
			f.told = append(f.told, e.forecast(f.run.now, f.run.engineRequest(f.last, q)))
		}
	}
	return q
}

// TestTheOracleForeseesWhatHappens sends a random request to an engine under
// random load and compares its first token with what was foreseen there. All
// that is asked changes nothing: the others' times stay as they are.
func TestTheOracleForeseesWhatHappens(t *testing.T) {
	p := simulator.Profile{
		Token: .001, Attention: 1e-6, StepFloor: .010, StepOverhead: .001, Decode: 1e-4, DecodeContext: 1e-5, HostLoad: 1e-4,
		KVTokens: 600, HostTokens: 1500, MaxSeqs: 6, BatchTokens: 100,
	}
	idle, queued := 0, 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var all []trace.Request
		var at time.Duration
		for range 2 + rng.IntN(60) {
			at += time.Duration(rng.ExpFloat64() * float64(60*time.Millisecond))
			prompt := 1 + rng.IntN(300)
			all = append(all, trace.Request{
				At: at, Prompt: prompt, Output: 1 + rng.IntN(60), Blocks: blocks(prompt, 10, 10*rng.IntN(30), 1+rng.IntN(4), 10+len(all)),
			})
		}
		s := Setup{Policy: scoring.PolicyRoundRobin, Scoring: scoring.DefaultConfig(), BlockTokens: 10, Seed: seed}
		for range 3 {
			s.Endpoints = append(s.Endpoints, Endpoint{Profile: p})
		}
		replay := func(w Workload, look *foreseeing) *Report {
			setup := s
			r, err := newRun(&setup, w)
			if err != nil {
				t.Fatal(err)
			}
			if look != nil {
				look.run = r
			}
			for r.advance() {
				for _, e := range r.endpoints {
					if stats := e.sim.Stats(); stats.BlocksHeld > stats.Blocks || stats.Running > p.MaxSeqs {
						t.Fatalf("seed %d: %+v", seed, stats)
					}
				}
			}
			return r.finish()
		}
		blind := replay(Open(all), nil)
		look := &foreseeing{Workload: Open(all), last: len(all) - 1}
		seen := replay(look, look)
		for i := range blind.Requests {
			if blind.Requests[i] != seen.Requests[i] {
				t.Fatalf("seed %d: looking ahead changed request %d from %+v to %+v", seed, i, blind.Requests[i], seen.Requests[i])
			}
		}
		last := seen.Requests[len(all)-1]
		if got := look.told[last.Endpoint]; got != last.At+last.TTFT {
			t.Errorf("seed %d: first token at %s was foreseen at %s", seed, last.At+last.TTFT, got)
		}
		if last.TTFT < 30*time.Millisecond {
			idle++
		}
		if last.TTFT > time.Second {
			queued++
		}
	}
	if idle < 10 || queued < 10 {
		t.Errorf("%d fast, %d slow: this tests too little", idle, queued)
	}
}
