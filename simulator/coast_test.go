package simulator_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/simulator"
)

const forever = time.Duration(math.MaxInt64)

// told is what a step told, and when.
type told struct {
	At     time.Duration
	Result simulator.Result
}

// decodesOnly: nobody needs to hear of it.
func (t told) decodesOnly() bool {
	for _, o := range t.Result.Outputs {
		if o.First || o.Finished {
			return false
		}
	}
	r := &t.Result
	return r.Prefill == 0 && r.Preempted == 0 && r.Admitted == nil && r.Host == nil && r.Blocks == nil
}

// until runs an engine that stands at now to the end of the first step that
// ends at stop or later, or until it is idle, and appends what it tells.
func until(e *simulator.Engine, now, stop time.Duration, coast bool, log []told) (time.Duration, []told) {
	for now < stop {
		if coast {
			took, _ := e.Coast(stop-now, false)
			if now += took; now >= stop {
				return now, log
			}
		}
		took, ok := e.Schedule()
		if !ok {
			return stop, log
		}
		now += took
		if t := (told{now, e.Complete()}); !t.decodesOnly() {
			log = append(log, t)
		}
	}
	return now, log
}

// loaded is a profile in which every coefficient and every limit counts.
func loaded(rng *rand.Rand) simulator.Profile {
	return simulator.Profile{
		Token: .001, Attention: 1e-6, StepFloor: .010, StepOverhead: .001, Decode: 1e-4, DecodeContext: 1e-5, HostLoad: 1e-4,
		KVTokens: 400, HostTokens: 300, MaxSeqs: 1 + rng.IntN(8), BatchTokens: 20 + rng.IntN(100),
	}
}

func anyRequest(rng *rand.Rand, id simulator.ID) simulator.Request {
	prompt, output, family := 1+rng.IntN(150), 1+rng.IntN(120), rng.IntN(5)
	return simulator.Request{
		ID: id, PromptTokens: prompt, OutputTokens: output,
		Blocks: keys(family, (prompt+output*rng.IntN(2))/10), Chunks: keys(family, prompt/20),
	}
}

// TestCoastingTellsWhatStepsTell gives random requests at random times to two
// engines, of which one coasts: all that is worth telling is told at the same
// time by both.
func TestCoastingTellsWhatStepsTell(t *testing.T) {
	coasted := 0
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 3))
		p := loaded(rng)
		o := simulator.Options{BlockTokens: 10, ChunkTokens: 20}
		stepper, coaster := simulator.New(p, o), simulator.New(p, o)
		var a, b time.Duration
		var want, got []told
		for id := range simulator.ID(60) {
			stop := a + time.Duration(rng.ExpFloat64()*float64(time.Second))
			a, want = until(stepper, a, stop, false, want)
			if _, steps := coaster.Coast(forever, true); steps > 1 {
				coasted++
			}
			if b, got = until(coaster, b, stop, true, got); a != b {
				t.Fatalf("seed %d: the step under way at %s ends at %s, coasting at %s", seed, stop, a, b)
			}
			if as, bs := stepper.Stats(), coaster.Stats(); as != bs {
				t.Fatalf("seed %d at %s: %+v, coasting %+v", seed, a, as, bs)
			}
			r := anyRequest(rng, id)
			add(t, stepper, r)
			add(t, coaster, r)
		}
		_, want = until(stepper, a, forever, false, want)
		_, got = until(coaster, b, forever, true, got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: what coasting tells (-want +got):\n%s", seed, diff)
		}
	}
	if coasted == 0 {
		t.Error("nothing ever coasted; this tests nothing")
	}
}

func TestCoastStopsBeforeWhatIsWorthTelling(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	coast := func(limit time.Duration, want int) {
		t.Helper()
		took, steps := e.Coast(limit, false)
		if steps != want || took != time.Duration(want)*11*time.Millisecond {
			t.Errorf("coasted %d steps in %s, want %d of 11ms", steps, took, want)
		}
	}
	coast(forever, 0)
	// A prompt of 12 tokens, in two blocks of 10; the first token is the 13th.
	add(t, e, simulator.Request{ID: 1, PromptTokens: 12, OutputTokens: 12})
	coast(forever, 0)
	step(t, e, 13*time.Millisecond)
	// The blocks are full with the 20th, which stands in memory once the 21st
	// comes out: 7 steps before that one, 3 of them within 40 ms.
	coast(40*time.Millisecond, 3)
	coast(forever, 4)
	coast(forever, 0)
	want(t, step(t, e, 11*time.Millisecond), simulator.Result{Decode: 1, Outputs: []simulator.Output{{ID: 1}}})
	// Of the 24 tokens 21 are there; the next one needs a block, the last two are
	// two steps after it.
	coast(forever, 0)
	step(t, e, 11*time.Millisecond)
	coast(forever, 1)
	want(t, step(t, e, 11*time.Millisecond), simulator.Result{Decode: 1, Outputs: []simulator.Output{{ID: 1, Finished: true}}})
	idle(t, e)
}

// TestSharedTiers: what one engine has stored another fetches, at its own cost,
// and what an own tier has is not fetched.
func TestSharedTiers(t *testing.T) {
	p := plain
	p.HostTokens, p.HostLoad, p.FetchLoad = 1000, 1e-3, 1e-2
	shared := simulator.NewShared()
	o := simulator.Options{BlockTokens: 10, ChunkTokens: 20, Shared: shared, WriteThrough: true}
	a, b := simulator.New(p, o), simulator.New(p, o)
	add(t, a, simulator.Request{ID: 1, PromptTokens: 50, OutputTokens: 2, Chunks: keys(1, 2)})
	step(t, a, 51*time.Millisecond) // written through with the first token
	if !shared.Holds(1000) || !shared.Holds(1001) || shared.Holds(1002) {
		t.Error("the first prompt's chunks are not what is shared")
	}
	// 40 tokens fetched, 10 computed.
	add(t, b, simulator.Request{ID: 1, PromptTokens: 50, OutputTokens: 1, Chunks: keys(1, 2)})
	res := step(t, b, 411*time.Millisecond)
	if o := res.Outputs[0]; o.Cached != 40 || o.Loaded != 40 {
		t.Errorf("%+v, want 40 tokens cached and loaded", o)
	}
	// They are its own now; the third chunk is only there.
	add(t, b, simulator.Request{ID: 2, PromptTokens: 70, OutputTokens: 1, Chunks: keys(1, 3)})
	step(t, b, 71*time.Millisecond)
	// 40 of its own at 1 ms, 20 fetched at 10 ms, 20 computed.
	run(a)
	add(t, a, simulator.Request{ID: 2, PromptTokens: 80, OutputTokens: 1, Chunks: keys(1, 3)})
	step(t, a, (40+200+21)*time.Millisecond)
	shared.Drop(b.HostKeys())
	shared.Drop(a.HostKeys())
	for i := range 3 {
		if shared.Holds(simulator.Key(1000 + i)) {
			t.Errorf("chunk %d is shared by engines that are gone", i)
		}
	}
}
