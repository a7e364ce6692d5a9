package envoy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

// 2,000 requests wait for their first token at the same time; none is refused
// by a default limit, and all bookings are gone at the end.
func TestManyInFlight(t *testing.T) {
	const n = 2000
	token := make(chan struct{})
	held := func(e *engine) { e.hold = func(*http.Request) { <-token } }
	engines := []*engine{startEngine(t, held), startEngine(t, held)}
	s := startService(t, scoring.PolicyTrapezoid, engines...)
	p := startEnvoy(t, config(s, engines...))
	const wave = 100
	failed := make(chan []string, n/wave)
	for i := range n / wave {
		go func() { failed <- parallel(t, p, wave, completion(strings.Repeat("word ", 100))) }()
		eventually(t, "the wave waits at the engines", func() bool {
			return engines[0].requests.Load()+engines[1].requests.Load() == int64((i+1)*wave)
		})
	}
	stats := s.picker.Stats()
	if stats.Open != n {
		t.Errorf("%d reservations are open, want %d", stats.Open, n)
	}
	for _, e := range stats.Endpoints {
		if e.Waiting != n/2 {
			t.Errorf("%s has %d waiting, want %d: equal prompts share evenly", e.Endpoint.Address, e.Waiting, n/2)
		}
	}
	close(token)
	for range n / wave {
		if failed := next(t, "answers", failed); len(failed) > 0 {
			t.Errorf("%d of %d failed, the first: %s", len(failed), wave, failed[0])
		}
	}
	for range n {
		next(t, "first token", s.events.firstToken)
		if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete {
			t.Errorf("ended %s", end.outcome)
		}
	}
	if stats := s.picker.Stats(); stats.Open != 0 {
		t.Errorf("%d reservations are left", stats.Open)
	}
}

// A long prompt passes, is retried whole, and is not refused by a default
// limit of Envoy or gRPC.
func TestLongBody(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			dead, alive := deadEngine(t), startEngine(t)
			s := startService(t, scoring.PolicyRoundRobin, dead, alive)
			p := startEnvoyWith(t, withModes(t, config(s, dead, alive), mode, "SEND", "STREAMED"))
			body := completion(strings.Repeat("x", 5<<20))
			for i := range 4 {
				resp := post(t, p, body)
				text, err := io.ReadAll(resp.body)
				if err != nil || resp.code != http.StatusOK || string(text) != answer() {
					t.Fatalf("answer: %v %s %q", err, resp.status, text)
				}
				if got, want := alive.bytes.Load(), int64((i+1)*len(body)); got != want {
					t.Errorf("the engine read %d bytes, want %d", got, want)
				}
			}
		})
	}
}
