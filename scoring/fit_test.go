package scoring

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// firstTokens is the history of one endpoint for the twin of the fit.
type firstTokens struct {
	last time.Time
	// group is under way: its members are of one step.
	open, until, began time.Time
	x, steps           float64
}

// dumbFit is section 3 of the algorithm, word by word, over one history after
// the other.
type dumbFit struct{ sy, sx, oy, on, groups float64 }

func (f *dumbFit) s() float64 { return (f.sy + 1e-4*2000) / (f.sx + 2000) }
func (f *dumbFit) o() float64 { return (f.oy + 0.01*2) / (f.on + 2) }

func (f *dumbFit) close(e *firstTokens) {
	y, x, steps := e.until.Sub(e.began).Seconds(), e.x, math.Max(1, math.Ceil(e.steps))
	if f.groups >= 20 {
		y = math.Min(y, 20*(f.s()*x+f.o()*steps)+0.5)
	}
	f.groups++
	if s, o := f.s(), f.o(); x < 300 {
		f.oy, f.on = 0.98*f.oy+math.Max(0, y-s*x), 0.98*f.on+steps
	} else {
		f.sy, f.sx = 0.99*f.sy+math.Max(0, y-o*steps), 0.99*f.sx+x
	}
	e.open = time.Time{}
}

// TestFitTwin lets random prefills come in steps, some a fraction of a millisecond
// apart, at several endpoints.
func TestFitTwin(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		now := time.Unix(0, 0)
		p := newTestPicker(t, &now)
		var endpoints []Endpoint
		history := make(map[EndpointID]*firstTokens)
		for i := range 3 {
			id := EndpointID(i + 1)
			endpoints = append(endpoints, Endpoint{ID: id, Address: fmt.Sprint(id), Models: []string{"m"}, Ready: true})
			history[id] = &firstTokens{}
		}
		p.SetEndpoints(endpoints)
		var fit dumbFit
		// closeAll is for an event now: the groups that are over, the oldest first.
		closeAll := func() {
			for {
				var first *firstTokens
				for _, e := range history {
					if !e.open.IsZero() && now.Sub(e.open) > time.Millisecond && (first == nil || e.open.Before(first.open)) {
						first = e
					}
				}
				if first == nil {
					return
				}
				fit.close(first)
			}
		}
		type sent struct {
			*Decision
			at time.Time
		}
		var waiting []sent
		for i := range 1500 {
			now = now.Add(time.Duration(1 + rng.IntN(300_000_000)>>rng.IntN(12)))
			closeAll()
			if rng.IntN(2) == 0 || len(waiting) == 0 {
				d, err := p.Pick(fmt.Sprint(i), textPrompt(1+rng.IntN(4000)>>rng.IntN(8), true))
				if err != nil {
					t.Fatal(err)
				}
				waiting = append(waiting, sent{d, now})
				continue
			}
			j := rng.IntN(len(waiting))
			w := waiting[j]
			waiting = append(waiting[:j], waiting[j+1:]...)
			e := history[w.Endpoint().ID]
			began := w.at
			if e.last.After(began) {
				began = e.last
			}
			if e.open.IsZero() {
				*e = firstTokens{last: e.last, open: now, began: began}
			}
			if began.Before(e.began) {
				e.began = began
			}
			n := float64(w.Prompt.Length())
			e.until, e.last = now, now
			e.x += n + n*(n+1)/2/30000
			e.steps += n / 8192 // nobody decodes: all end with their first token
			w.Reservation.FirstToken()
			w.Reservation.End()
			if got := p.Stats().Pools["m"]; relative(got.SecondsPerToken, fit.s()) > 1e-9 || relative(got.SecondsPerStep, fit.o()) > 1e-9 {
				t.Fatalf("seed %d, event %d: %g s/token and %g s/step, want %g and %g", seed, i, got.SecondsPerToken, got.SecondsPerStep, fit.s(), fit.o())
			}
		}
		if fit.groups < 200 || fit.sx == 0 || fit.on == 0 {
			t.Fatalf("this history shows little: %+v", fit)
		}
	}
}

func relative(a, b float64) float64 { return math.Abs(a-b) / math.Abs(b) }

// TestFitFindsTheSpeed: from the priors on, the estimates of engines of any speed
// come near what prefills take.
func TestFitFindsTheSpeed(t *testing.T) {
	for _, speed := range []struct{ token, step float64 }{{1e-5, 2e-3}, {3.3e-5, 7e-3}, {3.2e-4, 2e-2}, {2e-3, 1e-1}} {
		now := time.Unix(0, 0)
		p := newTestPicker(t, &now)
		p.SetEndpoints([]Endpoint{{ID: 1, Address: "a", Models: []string{"m"}, Ready: true}})
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range 600 {
			n := 1 + rng.IntN(8000)
			if i%2 == 0 {
				n = 1 + rng.IntN(100)
			}
			d, err := p.Pick(fmt.Sprint(i), textPrompt(n, true))
			if err != nil {
				t.Fatal(err)
			}
			x := equivalents(Prefill(Tokens(n), 0), Tokens(n), 30_000)
			now = now.Add(exact(speed.token*x + speed.step))
			d.Reservation.FirstToken()
			d.Reservation.End()
			now = now.Add(time.Second)
		}
		got := p.Stats().Pools["m"]
		if relative(got.SecondsPerToken, speed.token) > 0.05 || relative(got.SecondsPerStep, speed.step) > 0.2 {
			t.Errorf("%g s/token and %g s/step were found to be %g and %g", speed.token, speed.step, got.SecondsPerToken, got.SecondsPerStep)
		}
	}
}

// TestFitsAreKept: what was learned survives a file, and a file that nobody of us
// wrote does no harm.
func TestFitsAreKept(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now)
	p.SetEndpoints([]Endpoint{{ID: 1, Address: "a", Models: []string{"m"}, Kind: "k", Ready: true}, {ID: 2, Address: "b", Models: []string{"n"}, Ready: true}})
	for i := range 40 {
		for _, model := range []string{"m", "n"} {
			prompt := textPrompt(1000, true)
			prompt.Model = model
			d, err := p.Pick(fmt.Sprint(model, i), prompt)
			if err != nil {
				t.Fatal(err)
			}
			now = now.Add(time.Duration(300+i) * time.Millisecond)
			d.Reservation.FirstToken()
			now = now.Add(time.Second)
			d.Reservation.End()
		}
	}
	text, err := json.Marshal(p.Fits())
	if err != nil {
		t.Fatal(err)
	}
	var read Fits
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	later := newTestPicker(t, &now)
	if err := later.Restore(read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Fits(), later.Fits()); diff != "" {
		t.Errorf("(-kept +restored)\n%s", diff)
	}
	later.SetEndpoints(p.Endpoints())
	if got, want := later.Stats().Pools, p.Stats().Pools; got["m"].SecondsPerToken != want["m"].SecondsPerToken || got["n"].SecondsPerStep != want["n"].SecondsPerStep {
		t.Errorf("restored %+v, want %+v", got, want)
	}

	fresh := newTestPicker(t, &now)
	err = fresh.Restore(Fits{
		Models: []ModelFit{{"good", Fit{Tokens: 1, TokenSeconds: 1}}, {"bad", Fit{Tokens: -1, Steps: math.NaN()}}},
		Kinds:  []KindFit{{Model: "good", HeldSeconds: math.Inf(1)}},
	})
	for _, want := range []string{`models[1], "bad": tokens is -1`, "steps is NaN", `kinds[0], "" of "good": held_seconds is +Inf`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error %v does not tell %q", err, want)
		}
	}
	if got := fresh.Fits(); len(got.Models) != 1 || got.Models[0].Model != "good" || len(got.Kinds) != 0 {
		t.Errorf("restored %+v of what makes no sense", got)
	}
	var many Fits
	for i := range 1000 {
		many.Models = append(many.Models, ModelFit{Model: fmt.Sprint(i)})
		many.Kinds = append(many.Kinds, KindFit{Model: fmt.Sprint(i)})
	}
	if err := fresh.Restore(many); err == nil || !strings.Contains(err.Error(), "1000 models") {
		t.Errorf("the error %v does not tell that some were left out", err)
	}
	fresh.SetEndpoints(nil)
	if got := fresh.Fits(); len(got.Models) > maxPools || len(got.Kinds) > maxPools {
		t.Errorf("%d models and %d kinds are kept though there are none", len(got.Models), len(got.Kinds))
	}
}
