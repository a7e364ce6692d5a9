package simulator_test

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/simulator"
)

// finish completes the step under way, if there is one, and runs until idle.
func finish(e *simulator.Engine, within bool) (outputs []simulator.Output) {
	if within {
		outputs = e.Complete().Outputs
	}
	return append(outputs, run(e)...)
}

// TestLookingAhead compares an engine that was looked ahead of at random moments,
// in a step or between two, with one that never was: nothing is changed by it.
// What is foreseen of the time after the last request is what happens.
func TestLookingAhead(t *testing.T) {
	stored := 0
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 4))
		p, o := loaded(rng), simulator.Options{BlockTokens: 10, ChunkTokens: 20, WriteThrough: rng.IntN(2) == 0}
		blind := simulator.New(p, o)
		o.Shared = simulator.NewShared()
		seeing := simulator.New(p, o)
		both := func(do func(*simulator.Engine) any) any {
			t.Helper()
			want, got := do(blind), do(seeing)
			if !reflect.DeepEqual(want, got) {
				t.Fatalf("seed %d: what an engine does that was looked ahead of (-want +got):\n%s", seed, cmp.Diff(want, got))
			}
			return got
		}
		look := func(within bool) {
			ahead := seeing.Ahead()
			add(t, ahead, anyRequest(rng, 10_000))
			finish(ahead.Ahead(), within)
			finish(ahead, within)
			if !ahead.ResetCache() {
				t.Fatalf("seed %d: a look ahead came to its end and memory is held", seed)
			}
		}
		within := false
		for id := range simulator.ID(30 + rng.IntN(30)) {
			r := anyRequest(rng, id)
			both(func(e *simulator.Engine) any { return e.Add(r) == nil })
			for range rng.IntN(20) {
				if rng.IntN(4) == 0 {
					look(within)
				}
				if within {
					both(func(e *simulator.Engine) any { return e.Complete() })
					within = false
					continue
				}
				within = both(func(e *simulator.Engine) any { _, ok := e.Schedule(); return ok }).(bool)
			}
		}
		before := seeing.HostKeys()
		ahead := seeing.Ahead()
		foreseen := finish(ahead, within)
		if keys := ahead.HostKeys(); !slices.Equal(before, keys) {
			stored++
		}
		if diff := cmp.Diff(both(func(e *simulator.Engine) any { return finish(e, within) }), any(foreseen)); diff != "" {
			t.Fatalf("seed %d: foreseen (-happened +foreseen):\n%s", seed, diff)
		}
		both(func(e *simulator.Engine) any { return e.HostKeys() })
	}
	if stored < 4 {
		t.Error("looking ahead hardly ever changed the host tier; this tests too little")
	}
}
