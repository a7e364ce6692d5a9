package discovery

import (
	"testing"
	"time"
)

// An endpoint that drains is not ready however good its probes are, but it is
// there: its streams go on, and Envoy must be told of it.
func TestDrainedEndpointIsNotReady(t *testing.T) {
	r := testRoster(t, Entry{Address: "10.0.0.1:8000", Drain: true}, Entry{Address: "10.0.0.2:8000"})
	resolveTo(r, 0, addrs("10.0.0.1"))
	resolveTo(r, 1, addrs("10.0.0.2"))
	for id := range r.lastID {
		r.probed(id+1, time.Unix(0, 0), nil, false)
	}
	const want = "1 10.0.0.1:8000 10.0.0.1:8000 down []\n2 10.0.0.2:8000 10.0.0.2:8000 ready []\n"
	if got := show(r.endpoints()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
