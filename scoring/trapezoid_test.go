package scoring

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestPrefillTwin compares the formula with the sum it stands for.
func TestPrefillTwin(t *testing.T) {
	for prompt := Tokens(-1); prompt < 60; prompt++ {
		for cached := Tokens(-2); cached < 64; cached++ {
			var want Work
			for i := min(max(0, cached), max(0, prompt-1)) + 1; i <= prompt; i++ {
				want += Work(i)
			}
			if got := Prefill(prompt, cached); got != want {
				t.Fatalf("Prefill(%d, %d) = %v, want %v", prompt, cached, got, want)
			}
		}
	}
}

// TestLeadingSharedTwin compares the chain of blocks with a comparison of every
// pair of sequences.
func TestLeadingSharedTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var p Prompt
		for range 1 + rng.IntN(6) {
			ids := make([]uint32, rng.IntN(100))
			for i := range ids {
				if i >= 40 {
					ids[i] = uint32(rng.IntN(2))
				}
			}
			if len(p.Sequences) > 0 && rng.IntN(2) == 0 {
				before := p.Sequences[rng.IntN(len(p.Sequences))].TokenIDs
				copy(ids, before[:min(len(before), rng.IntN(100))])
			}
			p.Sequences = append(p.Sequences, Sequence{TokenIDs: ids, Length: Tokens(len(ids)), Usable: Tokens(rng.IntN(len(ids) + 1))})
		}
		want := make([]Tokens, len(p.Sequences))
		for i, s := range p.Sequences {
			for _, e := range p.Sequences[:i] {
				n := 0
				limit := min(int(s.Usable), int(e.Usable))
				for n < limit && s.TokenIDs[n] == e.TokenIDs[n] {
					n++
				}
				want[i] = max(want[i], Tokens(n/sharedBlock*sharedBlock))
			}
		}
		got := leadingShared(&p)
		if len(p.Sequences) == 1 {
			if got != nil {
				t.Fatalf("one sequence: got %v", got)
			}
			continue
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

// TestLoadSecondsTwin counts token by token.
func TestLoadSecondsTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	rates := []float64{0, 0, 0.5, 2}
	for range 2000 {
		p := Prompt{NoCache: rng.IntN(20) == 0}
		var shared []Tokens
		var matches []Match
		want := 0.0
		several := rng.IntN(2) == 0
		for range 1 + rng.IntN(3) {
			length := Tokens(rng.IntN(40))
			p.Sequences = append(p.Sequences, Sequence{Length: length})
			common := Tokens(0)
			if several {
				common = Tokens(rng.IntN(20))
				shared = append(shared, common)
			}
			var m Match
			costs := make([]float64, 0, 60) // by position
			rate := 0.0
			for range rng.IntN(4) {
				s := Span{End: m.Cached + Tokens(1+rng.IntN(15)), SecondsPerToken: rates[rng.IntN(len(rates))]}
				if s.SecondsPerToken > 0 {
					rate = s.SecondsPerToken
				}
				for m.Cached < s.End {
					costs = append(costs, rate)
					m.Cached++
				}
				m.Spans = append(m.Spans, s)
			}
			matches = append(matches, m)
			for i, cost := range costs {
				if Tokens(i) >= common && Tokens(i) < length-1 && !p.NoCache {
					want += cost
				}
			}
		}
		if got := loadSeconds(&p, shared, matches, nil, 0); got != want {
			t.Fatalf("%+v %v %+v: %v seconds, want %v", p.Sequences, shared, matches, got, want)
		}
	}
	if got := loadSeconds(&Prompt{}, nil, []Match{{Cached: 1, Spans: []Span{{End: 1, SecondsPerToken: 1}}}}, nil, 0); got != 0 {
		t.Errorf("a match of no sequence takes %v s", got)
	}
}
