package envoy_test

import (
	"io"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

// The policy ttft from end to end: a choice with an estimate that is the sum of
// its terms, a booking until the first token, which teaches, KV memory until the
// access log tells the end, and nothing left then.
func TestTTFTPolicy(t *testing.T) {
	t.Parallel()
	first, rest := make(chan struct{}), make(chan struct{})
	wait := func(release chan struct{}, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	slow := func(e *engine) {
		e.hold = func(r *http.Request) { wait(first, r) }
		e.pause = func() { <-rest }
	}
	engines := []*engine{startEngine(t, slow), startEngine(t, slow)}
	s := startService(t, scoring.PolicyTTFT, engines...)
	p := startEnvoy(t, config(s, engines...))
	at := func(e scoring.Endpoint) scoring.EndpointStats {
		return s.picker.Stats().Endpoints[e.ID-1]
	}

	for range 3 {
		resp := post(t, p, completion(strings.Repeat("word ", 2000)))
		d := next(t, "decision", s.events.decided)
		choice := d.Candidates[0]
		// By how much first tokens are late beyond the terms is the same everywhere.
		late := func(c *scoring.Candidate) float64 { return c.Estimate.Seconds() - c.Backlog - c.KVWait - c.Work }
		if a, b := late(&d.Candidates[0]), late(&d.Candidates[1]); d.Policy != scoring.PolicyTTFT || choice.Work <= 0 || d.Estimate() <= 0 || math.Abs(a-b) > 1e-6 {
			t.Errorf("%s estimates %s, %v s beyond its terms, and %v s at the other", d.Policy, d.Estimate(), a, b)
		}
		if other := d.Candidates[1]; choice.Cost > other.Cost {
			t.Errorf("chose cost %v over %v", choice.Cost, other.Cost)
		}
		if e := at(d.Endpoint()); e.Waiting != 1 || e.HeldTokens < d.Prompt.Length() {
			t.Errorf("before its first token: %+v", e)
		}
		first <- struct{}{}
		if ttft := next(t, "first token", s.events.firstToken); ttft <= 0 {
			t.Errorf("first token after %s", ttft)
		}
		if e := at(d.Endpoint()); e.Waiting != 0 || e.Backlog != 0 || e.HeldTokens < d.Prompt.Length() {
			t.Errorf("after its first token: %+v", e)
		}
		rest <- struct{}{}
		if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %q", err, body)
		}
		end := next(t, "end", s.events.ended)
		if end.outcome != scoring.OutcomeComplete || end.served != d.Endpoint().Address || end.decision.ID != d.ID {
			t.Errorf("ended %+v, decided for %s", end, d.Endpoint().Address)
		}
		if stats := s.picker.Stats(); stats.Open != 0 {
			t.Errorf("%d bookings are left", stats.Open)
		}
		if e := at(d.Endpoint()); e.Decoding != 0 || e.HeldTokens != 0 || e.DecodingFrom != scoring.DecodingFromEnds {
			t.Errorf("after its end: %+v", e)
		}
	}
	eventually(t, "the first tokens' groups are over", func() bool {
		s.picker.Expire()
		return s.picker.Stats().Pools["m"].Groups == 3
	})
	learnt := s.picker.Fits().Models
	if len(learnt) != 1 || learnt[0].Tokens == 0 {
		t.Errorf("three first tokens taught %+v", learnt)
	}
}
