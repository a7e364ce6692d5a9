package baseline_test

import (
	"math"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator/baseline"
)

// TestCosts works out every policy's costs for a prompt of 1000 tokens by hand.
func TestCosts(t *testing.T) {
	prompt := &scoring.Prompt{Sequences: []scoring.Sequence{{Length: 1000, Copies: 1}}}
	candidates := []scoring.Candidate{
		// Holds nothing; 2000 tokens queued.
		{Uncached: 1000, QueuedTokens: 2000, Waiting: 1, Decoding: 2, HeldTokens: 5000, Backlog: 1, Work: .5},
		// Holds 800 of it; 4000 queued.
		{Uncached: 200, Cached: 800, QueuedTokens: 4000, Waiting: 3, HeldTokens: 4000, Backlog: 2, Work: .1},
		// Holds 799; nothing queued, and much decoded.
		{Uncached: 201, Cached: 799, Decoding: 9, HeldTokens: 50_000, Backlog: 0, Work: .1},
	}
	for i := range candidates {
		candidates[i].Endpoint.ID = scoring.EndpointID(10 + i)
	}
	inf := math.Inf(1)
	for _, c := range []struct {
		id   string
		cost [3]float64
	}{
		{baseline.Uncached, [3]float64{3000, 4200, 201}},
		{baseline.LMetric, [3]float64{3000 * 4, 4200 * 4, 201 * 10}},
		{baseline.LLMDAffinity, [3]float64{inf, 4000, inf}},
		{baseline.Dynamo, [3]float64{8000, 8200, 50_201}},
		{baseline.Oracle, [3]float64{100, 121, 144}},
	} {
		p := baseline.New(c.id, func(id scoring.EndpointID) float64 { return float64(id * id) })
		p.Rank(prompt, scoring.Pool{}, candidates)
		for i := range candidates {
			if got := candidates[i].Cost; got != c.cost[i] {
				t.Errorf("%s: candidate %d costs %g, want %g", c.id, i, got, c.cost[i])
			}
		}
	}
	if baseline.New("nobody", nil) != nil {
		t.Error("there is a policy named nobody")
	}
}

// TestAffinityEnds where keeping to the prefix costs more than 5 s, and where
// nobody has it.
func TestAffinityEnds(t *testing.T) {
	prompt := &scoring.Prompt{Sequences: []scoring.Sequence{{Length: 100, Copies: 1}}}
	for _, c := range []struct {
		name    string
		backlog float64
		cached  scoring.Tokens
		kept    bool
	}{
		{"5 s worse", 5, 80, true},
		{"more than 5 s worse", 5.01, 80, false},
		{"not enough held", 0, 79, false},
	} {
		candidates := []scoring.Candidate{{QueuedTokens: 7}, {QueuedTokens: 9, Cached: c.cached, Backlog: c.backlog}}
		baseline.New(baseline.LLMDAffinity, nil).Rank(prompt, scoring.Pool{}, candidates)
		if kept := candidates[1].Cost < candidates[0].Cost; kept != c.kept {
			t.Errorf("%s: kept to the prefix is %t, costs %g and %g", c.name, kept, candidates[0].Cost, candidates[1].Cost)
		}
	}
}
