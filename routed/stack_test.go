package routed

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestStackTwin compares with a plain list, the newest first, whose tiers are
// counted off from its front.
func TestStackTwin(t *testing.T) {
	type plain struct {
		hash     uint64
		computed bool
	}
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s := newStack()
		var list []plain
		var room [tiers]int
		total := func() int { return room[onGPU] + room[inHost] + room[doubted] }
		for step := range 2000 {
			if step%200 == 0 {
				for i := range room {
					room[i] = rng.IntN(20)
				}
				s.resize(room)
				list = list[:min(len(list), total())]
			}
			// Blocks that follow each other, mostly, as those of prompts do; also
			// 0, and one twice.
			put, computed := make([]uint64, rng.IntN(8)), rng.IntN(2) == 0
			for i := range put {
				put[i] = rng.Uint64N(60)
				if i > 0 && rng.IntN(4) > 0 {
					put[i] = (put[i-1] + 1) % 60
				}
			}
			s.put(put, computed)
			for _, hash := range slices.Backward(put) {
				b := plain{hash, computed}
				if i := slices.IndexFunc(list, func(p plain) bool { return p.hash == hash }); i >= 0 {
					b.computed = b.computed || list[i].computed
					list = slices.Delete(list, i, i+1)
				}
				list = slices.Insert(list, 0, b)
				list = list[:min(len(list), total())]
			}

			chain := make([]uint64, rng.IntN(6))
			for i := range chain {
				chain[i] = rng.Uint64N(60)
				if len(list) > 0 && rng.IntN(4) > 0 {
					chain[i] = list[rng.IntN(len(list))].hash
				}
			}
			var want [tiers]int
			for tier, end := range []int{room[onGPU], room[onGPU] + room[inHost], total()} {
				for i, hash := range chain {
					at := slices.IndexFunc(list, func(p plain) bool { return p.hash == hash })
					if at < 0 || at >= end || !list[at].computed {
						break
					}
					want[tier] = i + 1
				}
			}
			if got := s.leading(chain); got != want {
				t.Fatalf("seed %d, step %d: %d of %d blocks in the tiers, want %d", seed, step, got, len(chain), want)
			}
			if want := min(len(list), room[onGPU]+room[inHost]); s.size() != want || len(s.blocks) != len(list) {
				t.Fatalf("seed %d, step %d: %d blocks of %d, want %d of %d", seed, step, s.size(), len(s.blocks), want, len(list))
			}
		}
	}
}
