package scoring

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// A fleet that is only watched, and whose router happens to choose as we would,
// is known as well as one that goes by our word: decisions, bookings and what is
// learnt are the same, event by event.
func TestShadowThatIsFollowedIsAPick(t *testing.T) {
	for seed := range uint64(20) {
		now := time.Unix(0, 0)
		source := fakeIndex{"e1": 300, "e3": 1200}
		picker, shadow := newTestPicker(t, &now, source), newTestPicker(t, &now, source)
		endpoints := []Endpoint{{ID: 1, Address: "e1", Ready: true}, {ID: 2, Address: "e2", Ready: true}, {ID: 3, Address: "e3", Ready: true}}
		picker.SetEndpoints(endpoints)
		shadow.SetEndpoints(endpoints)
		rng := rand.New(rand.NewPCG(seed, 11))
		var open []string
		for i := range 300 {
			now = now.Add(time.Duration(rng.IntN(400)) * time.Millisecond)
			switch n := rng.IntN(5); {
			case n < 2:
				id := fmt.Sprint(i)
				length, streamed := 1+rng.IntN(3000), rng.IntN(3) > 0
				want, err := picker.Pick(id, textPrompt(length, streamed))
				if err != nil {
					t.Fatal(err)
				}
				got, err := shadow.Shadow(id, textPrompt(length, streamed), now)
				if err != nil {
					t.Fatal(err)
				}
				if got.Endpoint().ID != want.Endpoint().ID || got.Reason != want.Reason || got.Estimate() != want.Estimate() {
					t.Fatalf("seed %d, request %d: shadow %s %s %s, pick %s %s %s", seed, i,
						got.Endpoint().Address, got.Reason, got.Estimate(), want.Endpoint().Address, want.Reason, want.Estimate())
				}
				if placed := got.Reservation.Place(want.Endpoint().Address); placed == nil || placed.Endpoint().ID != want.Endpoint().ID {
					t.Fatalf("placed %+v", placed)
				}
				open = append(open, id)
			case len(open) == 0:
			default:
				at := rng.IntN(len(open))
				a, b := picker.Find(open[at]), shadow.Find(open[at])
				if (a == nil) != (b == nil) {
					t.Fatalf("seed %d: %s is open in one of both", seed, open[at])
				}
				if a == nil {
					continue
				}
				if n < 4 {
					wantTTFT, wantFirst := a.FirstToken()
					if ttft, first := b.FirstToken(); ttft != wantTTFT || first != wantFirst {
						t.Fatalf("first token after %s, want %s", ttft, wantTTFT)
					}
					continue
				}
				a.End()
				b.End()
				open = append(open[:at], open[at+1:]...)
			}
			picker.Expire()
			shadow.Expire()
			if diff := cmp.Diff(picker.Stats(), shadow.Stats(), cmpopts.IgnoreFields(EndpointStats{}, "Chosen")); diff != "" {
				t.Fatalf("seed %d, event %d (-pick +shadow):\n%s", seed, i, diff)
			}
		}
	}
}

// What is served elsewhere than we would have is booked there, with its own
// estimate, and teaches; the choice keeps its numbers.
func TestShadowServedElsewhere(t *testing.T) {
	now := time.Unix(100, 0)
	p := newTestPicker(t, &now, fakeIndex{"e1": 900})
	p.SetEndpoints([]Endpoint{{ID: 1, Address: "e1", Ready: true}, {ID: 2, Address: "e2", Ready: true}})
	d, err := p.Shadow("a", textPrompt(1000, true), now.Add(-30*time.Millisecond))
	if err != nil || d.Endpoint().Address != "e1" || d.Shadow.Placed {
		t.Fatalf("%+v, %v", d, err)
	}
	for _, e := range p.Stats().Endpoints {
		if e.Waiting != 0 {
			t.Errorf("%s has %d waiting before anybody knows where the request is", e.Endpoint.Address, e.Waiting)
		}
	}
	if _, known := d.Reservation.Endpoint(); known {
		t.Error("the place of a request that nobody told of is known")
	}
	if _, known := d.Reservation.Estimate(); known {
		t.Error("an estimate holds for nobody knows which endpoint")
	}
	if d.Reservation.Served("e2") {
		t.Error("a request moved that was nowhere")
	}
	if d.Reservation.Place("192.0.2.1:1") != nil {
		t.Error("placed at a stranger")
	}
	placed := d.Reservation.Place("e2")
	if placed == nil || placed.Endpoint().Address != "e2" || placed.Shadow.Choice.Endpoint.Address != "e1" || placed.Shadow.Choice.Cached != 900 || placed.Candidates[0].Cached != 0 {
		t.Fatalf("placed %+v", placed)
	}
	if d.Endpoint().Address != "e1" || d.Shadow.Placed {
		t.Error("the first decision was changed by the second")
	}
	if d.Reservation.Place("e1") != nil {
		t.Error("placed twice")
	}
	if got := p.Stats().Endpoints; got[0].Waiting != 0 || got[1].Waiting != 1 {
		t.Errorf("waiting: %d and %d, want 0 and 1", got[0].Waiting, got[1].Waiting)
	}
	if estimate, known := d.Reservation.Estimate(); !known || estimate != placed.Candidates[0].Estimate || estimate <= placed.Shadow.Choice.Estimate {
		t.Errorf("estimate %s, known %v", estimate, known)
	}
	now = now.Add(70 * time.Millisecond)
	if ttft, first := d.Reservation.FirstToken(); !first || ttft != 100*time.Millisecond {
		t.Errorf("first token after %s: it counts from when the request was sent", ttft)
	}
	if got := d.Reservation.Decision(); got.Shadow == nil || !got.Shadow.Placed || got.Endpoint().Address != "e2" {
		t.Errorf("after the first token: %+v", got)
	}
	if !d.Reservation.End() || p.Stats().Open != 0 {
		t.Error("something is left")
	}
}

// A request of which nobody ever tells ends by age, and leaves nothing.
func TestShadowThatIsNeverPlaced(t *testing.T) {
	for _, streamed := range []bool{true, false} {
		now := time.Unix(0, 0)
		p := newTestPicker(t, &now)
		p.SetEndpoints([]Endpoint{{ID: 1, Address: "e1", Ready: true}})
		d, err := p.Shadow("a", textPrompt(1000, streamed), now)
		if err != nil {
			t.Fatal(err)
		}
		for p.Stats().Open > 0 {
			if now = now.Add(time.Minute); now.Sub(time.Unix(0, 0)) > 24*time.Hour {
				t.Fatal("it is open after a day")
			}
			p.Expire()
		}
		if d.Reservation.Place("e1") != nil {
			t.Error("placed after its end")
		}
		if s := p.Stats().Endpoints[0]; s.Waiting != 0 || s.Decoding != 0 || s.QueuedArea != 0 {
			t.Errorf("left behind: %+v", s)
		}
	}
}
