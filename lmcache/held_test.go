package lmcache_test

import (
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

func TestSourceHeldAndGrain(t *testing.T) {
	cfg := smallChunks()
	f := newFleet(t, cfg)
	stranger := endpoint(3, "c 10.0.0.3:8000")
	stranger.Cache.Group = "none"
	f.SetEndpoints([]scoring.Endpoint{endpoint(1, "a 10.0.0.1:8000"), endpoint(2, "b 10.0.0.2:8000"), stranger})
	f.roster.set(instance("x 10.0.0.1 9000 1"))
	f.store(t, cfg.Keys, "x", cpu, 12)
	f.store(t, cfg.Keys, "x", disk, 8)
	for id, want := range map[scoring.EndpointID][2]int{1: {3 + 2, 4}, 2: {0, 4}, 3: {0, 0}, 4: {0, 0}} {
		if held, grain := f.Held(id), int(f.Grain(id)); held != want[0] || grain != want[1] {
			t.Errorf("endpoint %d: %d chunks of %d tokens, want %d of %d", id, held, grain, want[0], want[1])
		}
	}
}
