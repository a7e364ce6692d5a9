package scoring

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// The order of what is held against a list that is sorted anew for each pass, on
// random insertions, removals and passes over several models.
func TestHeldOrderTwin(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var order heldOrder
		var twin []*Held
		accounts := make([]*account, 6)
		for i := range accounts {
			accounts[i] = &account{}
		}
		models := []string{"a", "b", "c"} // two accounts each, the third shares one with the second
		of := map[string][]*account{"a": accounts[0:2], "b": accounts[2:4], "c": accounts[3:5]}
		number := uint64(0)
		for range 300 {
			switch rng.IntN(6) {
			case 0, 1, 2, 3:
				model := models[rng.IntN(len(models))]
				number++
				h := &Held{key: float64(rng.IntN(8)), number: number}
				key := groupKey{model, true}
				if h.group = order.group(key); h.group == nil {
					h.group = &heldGroup{key: key, accounts: of[model]}
				}
				order.insert(h)
				twin = append(twin, h)
			case 4:
				if len(twin) > 0 {
					at := rng.IntN(len(twin))
					order.remove(twin[at])
					twin = slices.Delete(twin, at, at+1)
				}
			case 5:
				room := make(map[*account]int)
				for _, a := range accounts {
					room[a] = rng.IntN(4)
				}
				draw := rng.Uint64()
				got := runPass(room, draw, order.pass)
				want := runPass(room, draw, func(free func(*account) bool, goes func(*Held) bool) {
					slices.SortFunc(twin, func(a, b *Held) int {
						if a.key != b.key {
							return int(a.key - b.key)
						}
						return int(a.number) - int(b.number)
					})
					kept := twin[:0:0]
					for _, h := range twin {
						if !slices.ContainsFunc(h.group.accounts, free) || !goes(h) {
							kept = append(kept, h)
						}
					}
					twin = kept
				})
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d: asked %v, want %v", seed, got, want)
				}
			}
			total := 0
			for _, g := range order.groups {
				if len(g.order) == 0 || !slices.IsSortedFunc(g.order, func(a, b *Held) int {
					if a.before(b) {
						return -1
					}
					return 1
				}) {
					t.Fatalf("seed %d: group %s is out of order", seed, g.key.model)
				}
				total += len(g.order)
			}
			if total != len(twin) || order.count != len(twin) {
				t.Fatalf("seed %d: %d held, counted %d, want %d", seed, total, order.count, len(twin))
			}
		}
	}
}

// runPass asks for a place on one of the accounts of each request, which some
// prefer to what is free, and returns the numbers of those asked; those that went
// as they are, the others below zero.
func runPass(room map[*account]int, draw uint64, pass func(func(*account) bool, func(*Held) bool)) (asked []int) {
	left := maps.Clone(room)
	pass(func(a *account) bool { return left[a] > 0 }, func(h *Held) bool {
		a := h.group.accounts[(h.number^draw)%uint64(len(h.group.accounts))]
		goes := left[a] > 0
		left[a]--
		if goes {
			asked = append(asked, int(h.number))
		} else {
			asked = append(asked, -int(h.number))
		}
		return goes
	})
	return asked
}
