package scoring

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// dumbOptimistic is a set of blocks for each endpoint, counted.
type dumbOptimistic map[uint32]map[uint64]int

func (d dumbOptimistic) add(slot uint32, root uint64, chains [][]uint64, times int) {
	if d[slot] == nil {
		d[slot] = make(map[uint64]int)
	}
	for _, chain := range chains {
		for _, block := range chain {
			key := BlockKey(root, block)
			if d[slot][key] += times; d[slot][key] == 0 {
				delete(d[slot], key)
			}
		}
	}
}

func (d dumbOptimistic) leading(slot uint32, root uint64, chain []uint64) (n int32) {
	for _, block := range chain {
		if d[slot][BlockKey(root, block)] == 0 {
			break
		}
		n++
	}
	return n
}

// TestOptimisticTwin plays random holds, drops, the passing of time, and endpoints
// that come and go, against a set for each endpoint.
func TestOptimisticTwin(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 11))
		o, dumb := newOptimistic(maxOptimisticBytes), dumbOptimistic{}
		type held struct {
			*hold
			chains [][]uint64
			until  time.Time // zero: no end is in sight
		}
		var all []*held
		var slots []uint32
		now := time.Unix(0, 0)
		release := func(h *held) {
			dumb.add(h.slot, h.root, h.chains, -1)
			h.chains = nil
		}
		// Few beginnings, so that many have blocks in common.
		prompt := func() *Prompt {
			p := &Prompt{BlockTokens: 1}
			for range 1 + rng.IntN(2) {
				var s Sequence
				prev := uint64(rng.IntN(3))
				for range rng.IntN(12) {
					prev = ChainBlock(prev, []uint32{uint32(rng.IntN(8) / 7)})
					s.Chain = append(s.Chain, prev)
				}
				p.Sequences = append(p.Sequences, s)
			}
			return p
		}
		for range 600 {
			switch rng.IntN(8) {
			case 0:
				if len(slots) < 200 && rng.IntN(3) > 0 {
					for range 1 + rng.IntN(40) {
						slots = append(slots, o.join())
					}
				}
			case 1:
				if len(slots) > 0 && rng.IntN(4) == 0 {
					i := rng.IntN(len(slots))
					for _, h := range all {
						if h.chains != nil && h.slot == slots[i] {
							if h.until.IsZero() {
								o.drop(h.hold)
							}
							release(h)
						}
					}
					o.leave(slots[i])
					slots = append(slots[:i], slots[i+1:]...)
				}
			case 2, 3, 4:
				if len(slots) == 0 {
					continue
				}
				p, slot, root := prompt(), slots[rng.IntN(len(slots))], uint64(rng.IntN(2))
				h := &held{hold: o.hold(p, slot, root)}
				if h.hold == nil {
					if len(p.Sequences[0].Chain) > 0 {
						t.Fatal("not taken in, though there is room")
					}
					continue
				}
				for _, s := range p.Sequences {
					h.chains = append(h.chains, s.Chain)
				}
				dumb.add(slot, root, h.chains, 1)
				all = append(all, h)
			case 5:
				if len(all) > 0 {
					if h := all[rng.IntN(len(all))]; h.chains != nil {
						o.drop(h.hold)
						release(h)
					}
				}
			case 6:
				if len(all) > 0 {
					if h := all[rng.IntN(len(all))]; h.chains != nil {
						o.linger(h.hold, now)
						if h.until.IsZero() {
							h.until = now.Add(lingers)
						}
					}
				}
			case 7:
				now = now.Add(time.Duration(rng.IntN(1500)) * time.Millisecond)
				o.elapse(now)
				for _, h := range all {
					if h.chains != nil && !h.until.IsZero() && !h.until.After(now) {
						release(h)
					}
				}
			}
			// Ask for some of the endpoints at once.
			words := (len(o.slots) + 63) / 64
			set, found := make([]uint64, words), make([]int32, 64*words)
			asked := make(map[uint32]bool)
			for _, slot := range slots {
				if rng.IntN(3) > 0 {
					set[slot/64] |= 1 << (slot % 64)
					asked[slot] = true
				}
			}
			for i := range found {
				found[i] = -1
			}
			chain, root := prompt().Sequences[0].Chain, uint64(rng.IntN(2))
			o.leading(chain, root, set, found)
			for slot, got := range found {
				want := int32(-1)
				if asked[uint32(slot)] {
					want = dumb.leading(uint32(slot), root, chain)
				}
				if got != want {
					t.Fatalf("seed %d: slot %d holds %d leading blocks, want %d", seed, slot, got, want)
				}
			}
		}
		for _, h := range all {
			if h.chains != nil {
				o.drop(h.hold)
			}
		}
		if o.bytes != 0 || len(o.blocks) != 0 {
			t.Fatalf("seed %d: nothing is held, but %d bytes are, of %d blocks", seed, o.bytes, len(o.blocks))
		}
	}
}

// TestOptimisticIsBounded: past its bound no request is taken in, and its drop
// does no harm; what is dropped makes room.
func TestOptimisticIsBounded(t *testing.T) {
	o := newOptimistic(100_000 * blockBytes)
	slot := o.join()
	var holds []*hold
	for i := range uint64(10_000) {
		p := &Prompt{Sequences: []Sequence{{Chain: make([]uint64, 1000)}}}
		for j := range p.Sequences[0].Chain {
			p.Sequences[0].Chain[j] = 1 + i*1000 + uint64(j)
		}
		h := o.hold(p, slot, 0)
		if h == nil {
			break
		}
		holds = append(holds, h)
	}
	if n := len(holds) * 1000 * blockBytes; n != o.limit {
		t.Errorf("%d bytes were taken in, of at most %d", n, o.limit)
	}
	entries := len(o.entries)
	o.drop(nil)
	o.linger(nil, time.Unix(0, 0))
	for range 3 {
		for _, h := range holds {
			o.drop(h)
		}
		for i := range holds {
			p := &Prompt{Sequences: []Sequence{{Chain: make([]uint64, 1000)}}}
			for j := range p.Sequences[0].Chain {
				p.Sequences[0].Chain[j] = 1 + uint64(i*1000+j)
			}
			if holds[i] = o.hold(p, slot, 0); holds[i] == nil {
				t.Fatal("there is no room though all was dropped")
			}
		}
	}
	if len(o.entries) != entries {
		t.Errorf("%d entries became %d for as much", entries, len(o.entries))
	}
}

// TestOneWalkForAll: a decision's candidates each get what requests under way
// bring them, for several prompts and for an adapter that some know as one.
func TestOneWalkForAll(t *testing.T) {
	now := time.Unix(0, 0)
	p := newTestPicker(t, &now)
	var endpoints []Endpoint
	for i := range 70 {
		e := Endpoint{ID: EndpointID(i + 1), Address: fmt.Sprint(i), Models: []string{"m", "lora"}, Ready: true}
		if i%2 == 0 {
			e.Adapters = []string{"lora"}
		}
		endpoints = append(endpoints, e)
	}
	text := func(model string, lengths ...int) *Prompt {
		p := &Prompt{Model: model, Streamed: true}
		for i, n := range lengths {
			q := textPrompt(n, true).Sequences[0]
			q.TokenIDs[0] = uint32(i)
			p.Sequences = append(p.Sequences, q)
		}
		p.FillChain()
		return p
	}
	// Each endpoint gets one request, for as many blocks as its number.
	for i := range endpoints {
		only := make([]Endpoint, len(endpoints))
		copy(only, endpoints)
		for j := range only {
			only[j].Ready = j == i
		}
		p.SetEndpoints(only)
		model := "m"
		if i%3 == 0 {
			model = "lora"
		}
		if _, err := p.Pick(fmt.Sprint(i), text(model, 64*i+1, 64*(69-i)+1)); err != nil {
			t.Fatal(err)
		}
	}
	p.SetEndpoints(endpoints)
	for _, model := range []string{"m", "lora"} {
		d, err := p.Pick(model, text(model, 64*40+1, 64*40+1))
		if err != nil {
			t.Fatal(err)
		}
		d.Reservation.End()
		for _, c := range d.Candidates {
			i := int(c.Endpoint.ID) - 1
			want := Tokens(64*min(i, 40) + 64*min(69-i, 40))
			// Where the adapter is known its blocks are not the model's.
			if i%2 == 0 && (i%3 == 0) != (model == "lora") {
				want = 0
			}
			if c.Optimistic != want {
				t.Errorf("%s at %d: %d tokens under way, want %d", model, i, c.Optimistic, want)
			}
		}
	}
}
