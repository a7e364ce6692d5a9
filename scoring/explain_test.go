package scoring

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Explain says what Pick would do, however often it is asked, and leaves nothing
// behind.
func TestExplainBooksNothing(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now, fakeIndex{"warm": 900})
	p.SetEndpoints([]Endpoint{
		{ID: 1, Name: "cold", Address: "cold", Models: []string{"m"}, Ready: true},
		{ID: 2, Name: "warm", Address: "warm", Models: []string{"m"}, Ready: true},
	})
	before := p.Stats()
	for range 3 {
		d, err := p.Explain(textPrompt(1000, true))
		if err != nil {
			t.Fatal(err)
		}
		if d.Endpoint().Name != "warm" || d.Reason != ReasonCached || len(d.Candidates) != 2 || d.Reservation != nil {
			t.Errorf("%s because %s, of %d, reservation %v; want warm, cached, 2, none", d.Endpoint().Name, d.Reason, len(d.Candidates), d.Reservation)
		}
	}
	if diff := cmp.Diff(before, p.Stats(), cmpopts.EquateApprox(0, 0)); diff != "" {
		t.Errorf("explaining changed the ledger (-before +after)\n%s", diff)
	}
	d, err := p.Pick("x", textPrompt(1000, true))
	if err != nil {
		t.Fatal(err)
	}
	explained, err := p.Explain(textPrompt(1000, true))
	if err != nil {
		t.Fatal(err)
	}
	// What is booked is seen by whoever asks next.
	if d.Endpoint().Name != "warm" || explained.Candidates[0].Waiting+explained.Candidates[1].Waiting != 1 {
		t.Errorf("picked %s, then explained %+v", d.Endpoint().Name, explained.Candidates)
	}
}

func TestExplainRefusesAsPickDoes(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now)
	if _, err := p.Explain(textPrompt(1, true)); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("%v, want %v", err, ErrNoEndpoint)
	}
}
