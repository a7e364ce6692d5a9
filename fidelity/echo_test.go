package fidelity

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestEchoTwin compares the ring with a list of all results, judged as the
// comment of the numbers says.
func TestEchoTwin(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var (
			e     echo
			all   []bool
			since int
			bad   bool
			right = 0.9
		)
		for i := range 300 {
			if rng.IntN(40) == 0 {
				right = []float64{0, 0.3, 0.6, 0.9, 1}[rng.IntN(5)]
			}
			shown := rng.Float64() < right
			e.add(shown, true, time.Unix(int64(i+1), 0))
			all = append(all, shown)
			if recent := all[since:]; bad {
				recent = recent[max(0, len(recent)-enough):]
				if len(recent) == enough && shownOf(recent) >= enoughBack {
					bad, since = false, len(all)
				}
			} else {
				recent = recent[max(0, len(recent)-remembered):]
				if missed := len(recent) - shownOf(recent); len(recent) >= enough && missed > len(recent)/2 {
					bad, since = true, len(all)
				}
			}
			if e.bad != bad {
				t.Fatalf("seed %d: after %d results bad is %v, want %v", seed, i+1, e.bad, bad)
			}
			last := all[max(0, len(all)-remembered):]
			if hits, n := e.last(remembered); hits != shownOf(last) || n != len(last) {
				t.Fatalf("seed %d: after %d results %d of %d, want %d of %d", seed, i+1, hits, n, shownOf(last), len(last))
			}
		}
	}
}

func shownOf(results []bool) int {
	n := 0
	for _, shown := range results {
		if shown {
			n++
		}
	}
	return n
}

// TestEchoForgivesARightSource: the numbers hold what their comment says of a
// source that misses one in ten, and of one that is wrong.
func TestEchoForgivesARightSource(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const rows = 20_000
	blamed := 0
	for range rows {
		var e echo
		for range enough {
			e.add(rng.IntN(10) > 0, true, time.Unix(1, 0))
		}
		if e.bad {
			blamed++
		}
	}
	if blamed > rows/1000 {
		t.Errorf("%d of %d right sources are left out", blamed, rows)
	}
	var wrong echo
	for range enough {
		wrong.add(false, true, time.Unix(1, 0))
	}
	if !wrong.bad {
		t.Error("a source that shows nothing counts")
	}
}
