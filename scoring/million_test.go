package scoring

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// randomEvents plays so many events, late, double and misordered ones among them,
// with retries, endpoints that come and go, and bookings of which nobody tells
// anything any more. It calls check now and then, and ends all in the end.
func randomEvents(t *testing.T, seed uint64, events int, check func(*ledger)) *Picker {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 9))
	now := time.Unix(0, 0)
	cfg := DefaultConfig()
	cfg.Policy, cfg.DecodingAge = PolicyTTFT, time.Second
	p, err := NewPicker(cfg, func() time.Time { return now }, rng)
	if err != nil {
		t.Fatal(err)
	}
	addresses := []string{"a", "b", "c", "elsewhere"}
	endpoints := make([]Endpoint, 3)
	for i := range endpoints {
		endpoints[i] = Endpoint{ID: EndpointID(i + 1), Address: addresses[i], Ready: true}
	}
	nextID := EndpointID(len(endpoints))
	p.SetEndpoints(endpoints)
	prompts := make([]*Prompt, 64)
	for i := range prompts {
		n := rng.IntN(4)
		prompts[i] = &Prompt{Streamed: i%3 > 0, BlockTokens: 64, NoCache: i == 7}
		var prev uint64
		var chain []uint64
		for j := range n {
			prev = ChainBlock(prev, []uint32{uint32(i % (j + 2))})
			chain = append(chain, prev)
		}
		prompts[i].Sequences = []Sequence{{Length: Tokens(64*n + 1), Usable: Tokens(64 * n), Copies: 1 + i%2, Chain: chain}}
	}
	var open [64]*Reservation
	for n := range events {
		now = now.Add(time.Duration(rng.IntN(2_000_000)))
		r := open[rng.IntN(len(open))]
		kind := rng.IntN(16)
		if r == nil {
			kind = 0
		}
		at := endpoints[rng.IntN(len(endpoints))]
		switch kind {
		case 0, 1:
			d, err := p.Pick(strconv.Itoa(n), prompts[rng.IntN(len(prompts))])
			if err != nil {
				t.Fatal(err)
			}
			// Who is dropped here is never told of again: his age ends him.
			open[rng.IntN(len(open))] = d.Reservation
		case 2, 3:
			r.Sent()
		case 4, 5, 6:
			r.FirstToken()
		case 7, 8, 9:
			r.End()
		case 10:
			r.Computed(at.ID, 0, Tokens(rng.IntN(200)))
		case 11:
			r.Prefilled(at.ID)
		case 12:
			r.Served(addresses[rng.IntN(len(addresses))])
		case 13:
			p.Expire()
		case 14:
			p.SetEngine(at.ID, Engine{At: now, CapacityTokens: Tokens(rng.IntN(3) * 5000), Running: rng.IntN(9), Waiting: rng.IntN(3), Usage: rng.Float64()})
		case 15:
			if rng.IntN(1000) == 0 {
				nextID++
				endpoints = append([]Endpoint(nil), endpoints...)
				endpoints[rng.IntN(len(endpoints))].ID = nextID
				p.SetEndpoints(endpoints)
			}
		}
		if n%100_000 == 0 {
			check(p.ledger)
		}
	}
	check(p.ledger)
	for _, r := range open {
		if r != nil {
			r.End()
		}
	}
	// A first token that is predicted, then an end by age, then what lingers.
	for range 3 {
		now = now.Add(time.Hour)
		p.Expire()
	}
	return p
}

// TestNoBookingIsLost: after ten million events, all ended, nothing is owed
// anywhere, and on the way what each endpoint owes is what its open bookings are.
// Without CI it is a twentieth, as they take a minute under the race detector.
func TestNoBookingIsLost(t *testing.T) {
	events := 500_000
	if os.Getenv("CI") != "" {
		events = 10_000_000
	}
	p := randomEvents(t, 1, events, func(l *ledger) {
		l.mu.Lock()
		defer l.mu.Unlock()
		type sums struct {
			waiting, decoding, fresh      int
			area                          Work
			work                          time.Duration
			uncached, prompts, decoded, f Tokens
		}
		want := make(map[*account]*sums)
		for _, a := range l.accounts {
			want[a] = &sums{}
		}
		for _, r := range l.open {
			s := want[r.account]
			switch {
			case r.account == nil:
			case s == nil:
				t.Fatal("a booking is with an endpoint that is gone")
			case r.state == queued:
				s.waiting++
				s.area += r.leftArea
				s.work += r.left
				s.uncached += r.candidate.Uncached
				s.prompts += r.tokens
			case r.state == decoding:
				s.decoding++
				s.decoded += r.tokens
				if r.isFresh {
					s.fresh++
					s.f += r.tokens
				}
			}
		}
		for a, w := range want {
			queue, decoded := 0, 0
			for r := a.queue.head; r != nil; r = r.after {
				queue++
			}
			for r := a.decoded.head; r != nil; r = r.after {
				decoded++
			}
			got := sums{a.waiting, a.decoding, a.freshCount, a.area, a.work, a.uncached, a.promptTokens, a.decodingTokens, a.freshTokens}
			if got != *w || queue != w.waiting || decoded != w.decoding {
				t.Fatalf("an endpoint owes %+v (%d and %d in line), its bookings are %+v", got, queue, decoded, *w)
			}
		}
		if n := len(l.open); n > 50_000 || l.due.Len() > 2*n+deadlinesSlack || len(l.underWay.entries) > 1000 {
			t.Fatalf("%d open, %d deadlines, %d blocks: something grows", n, l.due.Len(), len(l.underWay.entries))
		}
	})
	l := p.ledger
	if l.due.Len() > deadlinesSlack || len(l.open) != 0 || len(l.grouping) != 0 {
		t.Errorf("all ended, but %d deadlines, %d bookings, %d groups are left", l.due.Len(), len(l.open), len(l.grouping))
	}
	if l.underWay.bytes != 0 || len(l.underWay.blocks) != 0 || len(l.underWay.leaving) != 0 {
		t.Errorf("all ended, but %d bytes, %d blocks, %d holds are under way", l.underWay.bytes, len(l.underWay.blocks), len(l.underWay.leaving))
	}
	for _, e := range p.Stats().Endpoints {
		if e.QueuedArea != 0 || e.Backlog != 0 || e.Waiting != 0 || e.Decoding != 0 {
			t.Errorf("all ended, but %+v", e)
		}
	}
}

// TestRoomThatIsThereChangesNothing: where nobody has to wait for KV memory, each
// cost is the same to the last bit as without it.
func TestRoomThatIsThereChangesNothing(t *testing.T) {
	history := func(room bool) (costs []float64) {
		rng := rand.New(rand.NewPCG(2, 2))
		now := time.Unix(0, 0)
		cfg := DefaultConfig()
		cfg.Policy, cfg.KVRoom = PolicyTTFT, room
		p, err := NewPicker(cfg, func() time.Time { return now }, rand.New(rand.NewPCG(3, 3)), fakeIndex{"a": 700})
		if err != nil {
			t.Fatal(err)
		}
		p.SetEndpoints([]Endpoint{{ID: 1, Address: "a", Ready: true}, {ID: 2, Address: "b", Ready: true}, {ID: 3, Address: "c", Ready: true}})
		for id := range EndpointID(3) {
			p.SetEngine(id+1, Engine{CapacityTokens: 100_000_000})
		}
		var open []*Reservation
		for i := range 5000 {
			now = now.Add(time.Duration(rng.IntN(100_000_000)))
			if rng.IntN(2) == 0 || len(open) == 0 {
				d, err := p.Pick(strconv.Itoa(i), textPrompt(1+rng.IntN(4000), true))
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range d.Candidates {
					if c.KVWait != 0 {
						t.Fatalf("somebody waits %g s for room", c.KVWait)
					}
					costs = append(costs, c.Cost, float64(c.Endpoint.ID))
				}
				open = append(open, d.Reservation)
				continue
			}
			j := rng.IntN(len(open))
			if _, first := open[j].FirstToken(); !first {
				open[j].End()
				open = append(open[:j], open[j+1:]...)
			}
		}
		return costs
	}
	with, without := history(true), history(false)
	if len(with) != len(without) {
		t.Fatalf("%d costs with room, %d without", len(with), len(without))
	}
	for i := range with {
		if with[i] != without[i] {
			t.Fatalf("cost %d is %v with room, %v without", i, with[i], without[i])
		}
	}
}

// TestRateTwin compares the buckets with the times of all requests.
func TestRateTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	var w rate
	var all []int64 // seconds
	now := time.Unix(1_000_000_000, 0)
	for range 20_000 {
		now = now.Add(time.Duration(rng.ExpFloat64() * float64(2*time.Second)))
		if rng.IntN(200) == 0 {
			now = now.Add(time.Duration(rng.IntN(300)) * time.Second)
		}
		if rng.IntN(3) > 0 {
			w.add(now)
			all = append(all, now.Unix())
		}
		n := 0
		for _, at := range all {
			if now.Unix()-at < 60 {
				n++
			}
		}
		if got, want := w.perSecond(now), float64(n)/60; got != want {
			t.Fatalf("%g requests a second, want %g", got, want)
		}
		for len(all) > 0 && now.Unix()-all[0] >= 60 {
			all = all[1:]
		}
	}
}
