package routed

import (
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// prefixFleet is a Picker that routes by prefixaware over a Memory.
func prefixFleet(t *testing.T, cfg scoring.Config) *fleet {
	t.Helper()
	cfg.Policy = scoring.PolicyPrefix
	m := New(Config{CapacityTokens: 100_000}, slog.New(slog.DiscardHandler))
	now := time.Unix(0, 0)
	p, err := scoring.NewPicker(cfg, func() time.Time { return now }, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	p.RememberBy(m)
	f := &fleet{t: t, memory: m, picker: p}
	f.endpoints(1, 2)
	return f
}

// ask routes a prompt and ends it.
func (f *fleet) ask(p *scoring.Prompt) scoring.EndpointID {
	f.t.Helper()
	d := f.route(p)
	f.firstToken(d)
	d.Reservation.End()
	f.memory.Ended(d, scoring.OutcomeComplete, d.Endpoint().Address)
	return d.Endpoint().ID
}

// The growing prompts of a conversation stay on one endpoint, whatever else is
// sent there; different ones spread over both.
func TestPrefixAwareKeepsConversations(t *testing.T) {
	f := prefixFleet(t, scoring.DefaultConfig())
	homes, taken := make(map[int]scoring.EndpointID), make(map[scoring.EndpointID]int)
	for length := 4 * block; length < 20*block; length += block {
		for c := range 20 {
			at := f.ask(prompt(c, length+c))
			if homes[c] == 0 {
				homes[c] = at
				taken[at]++
			}
			if at != homes[c] {
				t.Fatalf("conversation %d was at %d, with %d tokens it is at %d", c, homes[c], length+c, at)
			}
		}
	}
	if taken[1] == 0 || taken[2] == 0 {
		t.Errorf("conversations by endpoint: %v", taken)
	}
}

// A match below the minimum goes where fewest were sent, and is remembered; the
// next prompt that shares enough with it sticks there, against the rate.
func TestPrefixAwareMinimum(t *testing.T) {
	cfg := scoring.DefaultConfig()
	cfg.PrefixAwareMinMatch = 3 * block
	f := prefixFleet(t, cfg)
	began := f.ask(prompt(1, 2*block))
	short := f.ask(prompt(1, 4*block)) // shares two blocks
	if short == began {
		t.Errorf("a short match stuck to %d", began)
	}
	for range 5 {
		if at := f.ask(prompt(1, 5*block)); at != short {
			t.Errorf("a match of four blocks left %d for %d", short, at)
		}
	}
}

// An engine that was restarted holds nothing: its conversations go anywhere, and one
// that is gone is no holder.
func TestPrefixAwareNoticesRestarts(t *testing.T) {
	f := prefixFleet(t, scoring.DefaultConfig())
	moved := 0
	for i := range 20 {
		c := 100 + i
		home := f.ask(prompt(c, 10*block))
		f.memory.Observe(home, counters.Reading{CapacityTokens: 100_000}, true)
		d := f.route(prompt(c, 10*block))
		if d.Reason != scoring.ReasonChance || d.Candidates[0].Routed != 0 || d.Candidates[1].Routed != 0 {
			t.Fatalf("restarted, but %s by %d and %d tokens", d.Reason, d.Candidates[0].Routed, d.Candidates[1].Routed)
		}
		if d.Endpoint().ID != home {
			moved++
		}
		d.Reservation.End()
	}
	if moved == 0 {
		t.Error("every conversation went back to where it was")
	}
	home := f.ask(prompt(2, 10*block))
	f.endpoints(int(3 - home))
	if at := f.ask(prompt(2, 10*block)); at == home {
		t.Errorf("%d is gone and was chosen", at)
	}
}
