package kvevents

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

// twin keeps for every hash of every tier all the tokens that it stands for,
// and looks through all of them.
type twin map[twinPlace]map[uint64]*twinBlock

type twinPlace struct {
	medium string
	group  int
}

type twinBlock struct {
	refs    int
	salt    string
	tokens  []uint32 // all from the beginning; nil: not known
	foreign bool
}

func (w twin) find(first twinPlace, hash uint64) *twinBlock {
	if b := w[first][hash]; b != nil && (b.tokens != nil || b.foreign) {
		return b
	}
	for _, place := range []twinPlace{{mediumGPU, 0}, {mediumGPU, 1}, {"cpu", 0}} {
		if b := w[place][hash]; place != first && b != nil && (b.tokens != nil || b.foreign) {
			return b
		}
	}
	return nil
}

func (w twin) tell(e *event) {
	place := twinPlace{e.medium, e.group}
	switch e.kind {
	case kindCleared:
		for p := range w {
			if p.medium == mediumGPU {
				delete(w, p)
			}
		}
	case kindRemoved:
		for _, hash := range e.hashes {
			if b := w[place][hash]; b != nil {
				if b.refs--; b.refs == 0 {
					delete(w[place], hash)
				}
			}
		}
	case kindStored:
		if w[place] == nil {
			w[place] = make(map[uint64]*twinBlock)
		}
		before := &twinBlock{tokens: []uint32{}, salt: e.salt}
		if e.hasParent {
			before = w.find(place, e.parent)
		}
		for i, hash := range e.hashes {
			b := w[place][hash]
			if b == nil {
				b = &twinBlock{}
				w[place][hash] = b
			}
			b.refs++
			if b.tokens == nil && !b.foreign {
				known := w.find(place, hash)
				switch {
				case before != nil && before.foreign || e.foreign >= 0 && i >= e.foreign:
					b.foreign = true
				case known != nil:
					b.tokens, b.salt, b.foreign = known.tokens, known.salt, known.foreign
				case before != nil && before.tokens != nil:
					b.tokens, b.salt = slices.Concat(before.tokens, e.tokens[i*e.blockSize:(i+1)*e.blockSize]), before.salt
				}
			}
			if b.tokens != nil || b.foreign {
				for _, blocks := range w {
					if other := blocks[hash]; other != nil && other.tokens == nil && !other.foreign {
						other.tokens, other.salt, other.foreign = b.tokens, b.salt, b.foreign
					}
				}
			}
			before = b
		}
	case kindOther:
	}
}

// holds reports whether the tier holds the block that ends the prefix.
func (w twin) holds(place twinPlace, salt string, prefix []uint32) bool {
	for _, b := range w[place] {
		if b.salt == salt && slices.Equal(b.tokens, prefix) {
			return true
		}
	}
	return false
}

// match is the length held: GPU in both groups, then cpu, both in blocks of 4.
func (w twin) match(salt string, ids []uint32) int {
	pos := 0
	groups := 0
	for group := range 2 {
		if _, ok := w[twinPlace{mediumGPU, group}]; ok {
			groups++
		}
	}
	for groups > 0 && pos+4 <= len(ids) {
		all := true
		for group := range 2 {
			place := twinPlace{mediumGPU, group}
			if _, ok := w[place]; ok && !w.holds(place, salt, ids[:pos+4]) {
				all = false
			}
		}
		if !all {
			break
		}
		pos += 4
	}
	for pos+4 <= len(ids) && w.holds(twinPlace{"cpu", 0}, salt, ids[:pos+4]) {
		pos += 4
	}
	return pos
}

// Random stores and removals, twice and out of order, with and without salt,
// in two groups and two tiers, against the twin.
func TestIndexAgainstTwin(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		e := newEngine(t, scoring.TierCapacity{})
		w := make(twin)
		prompts := make([][]uint32, 6)
		for i := range prompts {
			prompts[i] = prompt(i%4+1, 4*rng.IntN(5), 4*(1+rng.IntN(8)))
		}
		for step := range 150 {
			ids := prompts[rng.IntN(len(prompts))]
			who := []say{{}, {group: 1}, {medium: "cpu"}, {salt: "s"}, {salt: "s", medium: "cpu"}, {salt: "image"}}[rng.IntN(6)]
			begin := 4 * rng.IntN(len(ids)/4)
			if rng.IntN(3) > 0 {
				begin = 0
			}
			var ev event
			switch n := rng.IntN(100); {
			case n < 2:
				ev = event{kind: kindCleared, medium: mediumGPU}
			case n < 50:
				ev = who.stored(ids, begin)
				if begin == 0 && who.medium == "" {
					ev.salt = who.salt
				}
				if rng.IntN(20) == 0 && who.salt == "image" {
					ev.foreign = rng.IntN(len(ev.hashes))
				}
			default:
				ev = who.removed(ids[:begin+4*rng.IntN((len(ids)-begin)/4+1)], begin)
			}
			e.tell(ev)
			w.tell(&ev)
			for _, ids := range prompts {
				for _, salt := range []string{"", "s"} {
					p := sequenceOf(ids)
					p.Salt = salt
					got := int(e.ix.match(p, []scoring.Endpoint{{ID: 1}})[0][0].Cached)
					if want := w.match(salt, ids); got != want {
						t.Fatalf("seed %d step %d salt %q: %d cached, the twin says %d", seed, step, salt, got, want)
					}
				}
			}
		}
		for place, blocks := range w {
			s := e.v.findShelfLocked(place.medium, place.group)
			if s == nil || len(s.blocks) != len(blocks) {
				t.Fatalf("seed %d: %v holds %d blocks in the twin", seed, place, len(blocks))
			}
			for hash, b := range blocks {
				if got := s.blocks[hash]; got == nil || int(got.refs) != b.refs {
					t.Fatalf("seed %d: %v has %d references in the twin", seed, hash, b.refs)
				}
			}
		}
	}
}
