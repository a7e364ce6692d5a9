package scoring

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// loadAwareChoice is loadAware word for word, as its description says it: the
// address with the greatest score, among equals the first.
func loadAwareChoice(beta float64, prompt Tokens, candidates []Candidate) string {
	type scored struct {
		address string
		score   float64
	}
	sum := 0.0
	for _, c := range candidates {
		sum += float64(c.Waiting + c.Decoding)
	}
	mean := sum / float64(len(candidates))
	var all []scored
	for _, c := range candidates {
		benefit := math.Min(float64(c.Cached)/float64(prompt), 1)
		all = append(all, scored{c.Endpoint.Address, benefit - beta*(float64(c.Waiting+c.Decoding)-mean)/math.Max(1, mean)})
	}
	slices.SortFunc(all, func(a, b scored) int { return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.address, b.address)) })
	return all[0].address
}

// first is the only best of ranked candidates.
func first(t *testing.T, candidates []Candidate) string {
	t.Helper()
	best := slices.MinFunc(candidates, func(a, b Candidate) int { return cmp.Or(cmp.Compare(a.Cost, b.Cost), cmp.Compare(a.Tie, b.Tie)) })
	for _, c := range candidates {
		if c.Cost == best.Cost && c.Tie == best.Tie && c.Endpoint.ID != best.Endpoint.ID {
			t.Fatalf("%s and %s are equal", c.Endpoint.Address, best.Endpoint.Address)
		}
	}
	return best.Endpoint.Address
}

// loadAware against its description, over random fleets; where every load is ten
// times as large the choice is the same, above a mean of one request.
func TestLoadAwareTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 5000 {
		beta := []float64{0, 0.01, 0.5, 1, 2}[rng.IntN(5)]
		candidates := fleetOf(1 + rng.IntN(6))
		rng.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
		for i := range candidates {
			candidates[i].Cached = Tokens(rng.IntN(5) * 300) // beyond the prompt, too
			candidates[i].Waiting, candidates[i].Decoding = 1+rng.IntN(4), rng.IntN(4)
		}
		candidates[0].Cached = max(candidates[0].Cached, 1)
		prompt := &Prompt{Sequences: []Sequence{{Length: 1000, Copies: 1}}}
		loadAware{beta}.Rank(prompt, Pool{}, candidates)
		chosen := first(t, candidates)
		if want := loadAwareChoice(beta, 1000, candidates); chosen != want {
			t.Fatalf("beta %g: %s, want %s: %+v", beta, chosen, want, candidates)
		}
		for i := range candidates {
			candidates[i].Waiting *= 10
			candidates[i].Decoding *= 10
		}
		scores := make(map[float64]bool)
		for i := range candidates {
			scores[math.Round(candidates[i].Cost*1e9)] = true
		}
		loadAware{beta}.Rank(prompt, Pool{}, candidates)
		if got := first(t, candidates); got != chosen && len(scores) == len(candidates) {
			t.Fatalf("beta %g: %s, with all loads ten times as large %s", beta, chosen, got)
		}
	}
}

// All that production-stack's router is known to do by loadaware, candidate by
// candidate: cached tokens of a prompt of 1000, and requests in flight.
func TestLoadAwareCases(t *testing.T) {
	type engine struct {
		cached            Tokens
		prefill, decoding int
	}
	for _, c := range []struct {
		name    string
		beta    float64
		engines []engine
		want    int
	}{
		{"all idle: the warmest", 1, []engine{{300, 0, 0}, {900, 0, 0}, {0, 0, 0}}, 1},
		{"all as warm: the least loaded", 1, []engine{{500, 2, 0}, {500, 0, 1}, {500, 3, 3}}, 1},
		{"warm but loaded loses to cold but idle", 1, []engine{{999, 8, 0}, {0, 0, 0}}, 1},
		{"with a small beta it wins", 0.01, []engine{{999, 8, 0}, {0, 0, 0}}, 0},
		{"beta 0: the cache only", 0, []engine{{10, 100, 100}, {9, 0, 0}}, 0},
		{"a nearly idle fleet shows no imbalance", 0.5, []engine{{999, 1, 0}, {0, 0, 0}}, 0}, // by the mean alone: 0.499 and 0.5
		{"benefit is at most one prompt", 1, []engine{{4000, 3, 0}, {1000, 2, 0}}, 1},
		{"equal: the first address", 1, []engine{{500, 1, 0}, {500, 0, 1}}, 0},
		{"the load counts prefill and decode", 1, []engine{{500, 1, 4}, {500, 2, 2}}, 1},
	} {
		candidates := fleetOf(len(c.engines))
		for i, e := range c.engines {
			candidates[i].Cached, candidates[i].Waiting, candidates[i].Decoding = e.cached, e.prefill, e.decoding
		}
		loadAware{c.beta}.Rank(&Prompt{Sequences: []Sequence{{Length: 1000, Copies: 1}}}, Pool{}, candidates)
		if got := first(t, candidates); got != candidates[c.want].Endpoint.Address {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

// Turns over random sets of endpoints: of each set's requests no endpoint gets more
// than one more than another, though sets take turns and their order changes.
func TestRoundRobinIsEven(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	cfg := DefaultConfig()
	cfg.Policy = PolicyRoundRobin
	for _, n := range []int{1, 2, 17, 300} {
		now := time.Unix(0, 0)
		p, err := NewPicker(cfg, func() time.Time { return now }, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		var endpoints []Endpoint
		models := []string{"one", "other"}
		for i := range 2 * n {
			endpoints = append(endpoints, Endpoint{ID: EndpointID(i + 1), Address: fmt.Sprint(i), Models: models[i%2 : i%2+1], Ready: true})
		}
		counts := map[string]map[EndpointID]int{"one": {}, "other": {}}
		for i := range 10 * n {
			if i%50 == 0 {
				rng.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
				p.SetEndpoints(slices.Clone(endpoints))
			}
			model := models[rng.IntN(2)]
			d, err := p.Pick(fmt.Sprint(i), &Prompt{Model: model})
			if err != nil {
				t.Fatal(err)
			}
			counts[model][d.Endpoint().ID]++
			d.Reservation.End()
			least, most := math.MaxInt, 0
			for _, e := range endpoints {
				if e.Models[0] == model {
					least, most = min(least, counts[model][e.ID]), max(most, counts[model][e.ID])
				}
			}
			if most > least+1 {
				t.Fatalf("%d endpoints: after %d requests one of %s has %d, another %d", n, i+1, model, most, least)
			}
		}
	}
}

// Chance is fair, and no policy minds a fleet of one or a prompt of nothing.
func TestEveryPolicyRanks(t *testing.T) {
	for id, policy := range servicePolicies(DefaultConfig()) {
		for _, n := range []int{1, 3} {
			for _, prompt := range []*Prompt{{}, {Session: "s"}, {Sequences: []Sequence{{Copies: 1}}}, {Sequences: []Sequence{{Length: 100, Copies: 1}}}} {
				candidates := fleetOf(n)
				for i := range candidates {
					candidates[i].Cost, candidates[i].Tie = math.NaN(), math.NaN()
				}
				policy.Rank(prompt, Pool{}, candidates)
				for _, c := range candidates {
					if math.IsNaN(c.Cost) || math.IsNaN(c.Tie) {
						t.Errorf("%s leaves the cost %g and tie %g of %+v", id, c.Cost, c.Tie, prompt)
					}
				}
			}
		}
	}
}
