package scoring

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Between two readings of an engine's counters it holds what they said and what
// was sent since and is still there, whatever happens in which order: compared
// with a list of all requests.
func TestHeldSinceTheLastReading(t *testing.T) {
	type sent struct {
		r      *Reservation
		tokens Tokens
		at     int // index of the endpoint
		when   time.Time
		ended  bool
	}
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 3))
		now := time.Unix(1000, 0)
		p := newTestPicker(t, &now)
		endpoints := []Endpoint{{ID: 1, Name: "a", Address: "a", Ready: true}, {ID: 2, Name: "b", Address: "b", Ready: true}}
		p.SetEndpoints(endpoints)
		read := make([]time.Time, 2)
		reading := func(i int) {
			read[i] = now
			now = now.Add(time.Millisecond)
			p.SetEngine(endpoints[i].ID, Engine{At: read[i], CapacityTokens: 100_000, Running: 100, Usage: 0.25})
		}
		reading(0)
		reading(1)
		var all []*sent
		for step := range 300 {
			now = now.Add(time.Duration(1+rng.IntN(20)) * time.Millisecond)
			switch rng.IntN(8) {
			case 0:
				reading(rng.IntN(2))
			case 1, 2, 3:
				n := 1 + rng.IntN(3000)
				d, err := p.Pick(fmt.Sprint(step), textPrompt(n, true))
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, &sent{d.Reservation, Tokens(n), int(d.Endpoint().ID - 1), now, false})
			default:
				if len(all) == 0 {
					continue
				}
				switch s := all[rng.IntN(len(all))]; rng.IntN(4) {
				case 0:
					s.r.Sent()
				case 1:
					if !s.ended {
						s.r.FirstToken()
					}
				case 2:
					// Only before the first token: an end after it says that ends are told.
					if s.r.state == queued && s.r.End() {
						s.ended = true
					}
				case 3:
					if to := 1 - s.at; s.r.state == queued && s.r.Served(endpoints[to].Address) {
						s.at, s.when = to, now
					}
				}
			}
			stats := p.Stats()
			for i, e := range stats.Endpoints {
				want := Tokens(25_000)
				for _, s := range all {
					if s.at == i && !s.ended && s.when.After(read[i]) {
						want += s.tokens
					}
				}
				if e.DecodingFrom != DecodingFromEngine || e.HeldTokens != want {
					t.Fatalf("seed %d, step %d: %s holds %d tokens by %s, want %d", seed, step, e.Endpoint.Name, e.HeldTokens, e.DecodingFrom, want)
				}
			}
		}
	}
}

// Answers as long as the engine counts them make the mean that requests are
// taken to grow by; the counts of another life say nothing.
func TestAnswerLengthFromTheEngine(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now)
	p.SetEndpoints([]Endpoint{{ID: 1, Models: []string{"m"}, Ready: true}})
	length := func() float64 { return p.Stats().Pools["m"].Kinds[""].OutputTokens }
	count := func(answers, tokens uint64) {
		now = now.Add(time.Second)
		p.SetEngine(1, Engine{At: now, CapacityTokens: 1000, Answers: answers, AnswerTokens: tokens})
	}
	if length() != firstOutput {
		t.Fatalf("answers are taken to have %v tokens before any", length())
	}
	count(1000, 10)
	if length() != firstOutput {
		t.Errorf("what came before the first reading counts: %v", length())
	}
	count(1001, 1010)
	if want := firstOutput + answerMemory*(1000-firstOutput); math.Abs(length()-want) > 1e-9 {
		t.Errorf("one answer of 1000 tokens: %v, want %v", length(), want)
	}
	count(1, 1)
	if got := length(); got != firstOutput+answerMemory*(1000-firstOutput) {
		t.Errorf("after a restart: %v", got)
	}
	count(1001, 1_000_001)
	if got := length(); math.Abs(got-1000) > 1 {
		t.Errorf("after 1000 answers of 1000 tokens: %v", got)
	}
}

// An endpoint may turn out not to be ready between the look at the list and the
// choice. Its capacity, not known, keeps room from being looked at no more then,
// and must not become a number that is none.
func TestRoomOfAnEndpointThatIsNoLongerReady(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now)
	endpoints := []Endpoint{{ID: 1, Address: "a", Ready: true}, {ID: 2, Address: "b", Ready: true}}
	sick := slices.Clone(endpoints)
	sick[0].Ready = false
	for name, prompt := range map[string]*Prompt{"a prompt": textPrompt(100, true), "none": {Source: TokensNone}} {
		p.SetEndpoints(endpoints)
		p.SetEngine(2, Engine{CapacityTokens: 1000})
		d, err := p.prepare(name, prompt)
		if err != nil {
			t.Fatal(err)
		}
		p.SetEndpoints(sick)
		if err := p.ledger.reserve(d); err != nil {
			t.Fatal(err)
		}
		if !p.Stats().Pools[""].KVRoom {
			t.Fatal("room is not looked at")
		}
		for _, c := range d.Candidates {
			if c.KVWait != 0 || math.IsNaN(c.Cost) || c.Estimate < 0 {
				t.Errorf("%s at %s waits %g s for room, cost %g, estimate %s", name, c.Endpoint.Address, c.KVWait, c.Cost, c.Estimate)
			}
		}
		d.Reservation.End()
	}
}
