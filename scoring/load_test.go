package scoring

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// slowIndex holds the first 700 tokens of everything everywhere, at so many
// seconds a token.
type slowIndex float64

func (s slowIndex) Match(p *Prompt, endpoints []Endpoint) [][]Match {
	rows := make([][]Match, len(endpoints))
	for i := range endpoints {
		for _, q := range p.Sequences {
			n := min(700, q.Length)
			rows[i] = append(rows[i], Match{Cached: n, Spans: []Span{{End: n, SecondsPerToken: float64(s)}}})
		}
	}
	return rows
}

// TestLoadLeavesNothing: whatever was booked for loading, at a speed that moves,
// an endpoint owes exactly nothing in the end; a rest, however small, would
// decide between idle endpoints.
func TestLoadLeavesNothing(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now, slowIndex(4.7e-5))
	p.SetEndpoints([]Endpoint{{ID: 1, Address: "a", Ready: true}, {ID: 2, Address: "b", Ready: true}})
	rng := rand.New(rand.NewPCG(3, 4))
	var open []*Reservation
	for i := range 300 {
		d, err := p.Pick(fmt.Sprint(i), textPrompt(10+rng.IntN(2000), true))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, d.Reservation)
		now = now.Add(time.Duration(rng.IntN(7_000_000)))
		if i%3 == 0 {
			r := open[rng.IntN(len(open))]
			r.Computed(1+EndpointID(rng.IntN(2)), 0, 64)
			r.FirstToken()
		}
	}
	rng.Shuffle(len(open), func(i, j int) { open[i], open[j] = open[j], open[i] })
	for _, r := range open {
		r.End()
	}
	for _, e := range p.Stats().Endpoints {
		if e.QueuedArea != 0 || e.Backlog != 0 {
			t.Errorf("all ended, but %s owes %g, %s", e.Endpoint.Address, e.QueuedArea, e.Backlog)
		}
	}
}

// TestLoadTooLong: where loading is said to take longer than first tokens do,
// they do not teach that computing is free.
func TestLoadTooLong(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now, slowIndex(1e-2)) // 7 s
	p.SetEndpoints([]Endpoint{{ID: 1, Address: "a", Models: []string{"m"}, Ready: true}})
	route := func(id string) {
		d, err := p.Pick(id, textPrompt(1000, true))
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
		d.Reservation.FirstToken()
		d.Reservation.End()
	}
	route("first")
	before := p.Stats().Pools["m"].SecondsPerToken
	for i := range 100 {
		route(fmt.Sprint(i))
	}
	if after := p.Stats().Pools["m"].SecondsPerToken; before == 0 || after != before {
		t.Errorf("the fit went from %g to %g", before, after)
	}
}
