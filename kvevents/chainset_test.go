package kvevents

import (
	"math/rand/v2"
	"testing"
)

// Random additions and removals against a map, with keys that crowd together.
func TestChainSetAgainstMap(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 5))
		var c chainSet
		twin := make(map[uint64]uint32)
		c.factor = []uint64{0, 1, 1 << 63, rng.Uint64() | 1}[seed%4]
		keys := make([]uint64, 1+rng.IntN(300))
		for i := range keys {
			keys[i] = max(1, rng.Uint64()>>rng.IntN(64))
		}
		for range 3000 {
			key := keys[rng.IntN(len(keys))]
			if twin[key] > 0 && rng.IntN(20) < 10+int(seed%3) {
				c.remove(key)
				if twin[key]--; twin[key] == 0 {
					delete(twin, key)
				}
			} else if rng.IntN(2) == 0 {
				c.add(key)
				twin[key]++
			}
			if got, want := c.has(key), twin[key] > 0; got != want || c.len() != len(twin) {
				t.Fatalf("seed %d: has %v, want %v; %d keys, want %d", seed, got, want, c.len(), len(twin))
			}
		}
		for _, key := range keys {
			if c.has(key) != (twin[key] > 0) {
				t.Fatalf("seed %d: key %d is lost or left", seed, key)
			}
		}
		held := 0
		for i, key := range c.keys {
			if key == 0 {
				continue
			}
			held++
			if twin[key] != c.counts[i] {
				t.Fatalf("seed %d: key %d counts %d, want %d", seed, key, c.counts[i], twin[key])
			}
		}
		if held != len(twin) || 4*held > 3*len(c.keys) {
			t.Fatalf("seed %d: %d slots taken of %d", seed, held, len(c.keys))
		}
	}
}
