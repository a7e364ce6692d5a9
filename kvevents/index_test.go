package kvevents

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/scoring"
)

var now = time.Unix(1_763_000_000, 0)

func feed(ranks int) scoring.EventFeed {
	return scoring.EventFeed{Endpoint: "tcp://*:5557", Ranks: ranks}
}

// checkView recounts everything that a view keeps count of.
func checkView(t *testing.T, v *view) {
	t.Helper()
	for _, s := range v.shelves {
		var tokens scoring.Tokens
		matched := 0
		held := make(map[*layout]map[uint64]uint32)
		listed := 0
		for b := s.oldest; b != nil; b = b.newer {
			listed++
			if s.blocks[b.hash] != b || b.refs == 0 || (b.newer == nil) != (s.newest == b) {
				t.Errorf("%s/%d: block %d is not in its place", s.medium, s.group, b.hash)
			}
			tokens += scoring.Tokens(b.size)
			if b.layout != nil && b.layout != foreign {
				matched++
				if held[b.layout] == nil {
					held[b.layout] = make(map[uint64]uint32)
				}
				held[b.layout][b.chain]++
			}
		}
		if listed != len(s.blocks) || tokens != s.tokens || matched != s.matched {
			t.Errorf("%s/%d: %d blocks listed of %d, %d tokens of %d, %d matched of %d", s.medium, s.group, listed, len(s.blocks), tokens, s.tokens, matched, s.matched)
		}
		for _, l := range s.layouts {
			got := make(map[uint64]uint32)
			for i, key := range l.held.keys {
				if key != 0 {
					got[key] = l.held.counts[i]
				}
			}
			if !maps.Equal(got, held[l]) {
				t.Errorf("%s/%d: layout %d/%d holds %v, counted %v", s.medium, s.group, l.grain, l.stride, got, held[l])
			}
		}
	}
}

func checkTotal(t *testing.T, ix *index) {
	t.Helper()
	n := 0
	for _, views := range ix.endpoints {
		for _, v := range views {
			for _, s := range v.shelves {
				n += len(s.blocks)
			}
		}
	}
	if got := ix.total.Load(); got != int64(n) {
		t.Errorf("total is %d, counted %d", got, n)
	}
}

// prompt is a sequence of n token ids that differ by seed from position from on.
func prompt(seed, from, n int) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(i * 7)
		if i >= from {
			ids[i] += uint32(seed * 1000)
		}
	}
	return ids
}

// name is an engine's hash of a block: of all tokens up to its end, and salt.
func name(ids []uint32, salt string) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, salt, ids)
	return h.Sum64()
}

// say makes events as an engine does. Its zero value speaks of the GPU, group
// 0, blocks of 4.
type say struct {
	medium string
	group  int
	size   int
	salt   string
}

func (s say) block() int {
	if s.size == 0 {
		return 4
	}
	return s.size
}

func (s say) place() string {
	if s.medium == "" {
		return mediumGPU
	}
	return s.medium
}

// stored announces the blocks of ids from token begin on.
func (s say) stored(ids []uint32, begin int) event {
	e := event{kind: kindStored, medium: s.place(), group: s.group, blockSize: s.block(), foreign: -1, tokens: ids[begin:]}
	if begin > 0 {
		e.parent, e.hasParent = name(ids[:begin], s.salt), true
	}
	for end := begin + s.block(); end <= len(ids); end += s.block() {
		e.hashes = append(e.hashes, name(ids[:end], s.salt))
	}
	return e
}

// removed takes the blocks of ids from token begin on back.
func (s say) removed(ids []uint32, begin int) event {
	e := event{kind: kindRemoved, medium: s.place(), group: s.group}
	e.hashes = s.stored(ids, begin).hashes
	return e
}

// sequenceOf is a prompt that goes one token on after ids, so that all of ids
// may be cached.
func sequenceOf(ids []uint32) *scoring.Prompt {
	ids = append(slices.Clone(ids), 1<<30)
	n := scoring.Tokens(len(ids))
	return &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: ids, Length: n, Usable: n, Copies: 1}}}
}

// engine is one endpoint with one rank.
type engine struct {
	t  *testing.T
	ix *index
	v  *view
}

func newEngine(t *testing.T, capacity scoring.TierCapacity) *engine {
	t.Helper()
	ix := newIndex(Config{MaxBlocks: 1_000_000})
	f := feed(1)
	f.Capacity = capacity
	return &engine{t, ix, ix.open(1, f)[0]}
}

func (e *engine) tell(events ...event) {
	e.t.Helper()
	e.v.apply(&batch{events: events}, now, true)
	checkView(e.t, e.v)
	checkTotal(e.t, e.ix)
}

func (e *engine) match(ids []uint32) scoring.Match {
	e.t.Helper()
	row := e.ix.match(sequenceOf(ids), []scoring.Endpoint{{ID: 1}})[0]
	if row == nil {
		e.t.Fatal("nothing is known")
	}
	m := row[0]
	if n := len(m.Spans); (n == 0) != (m.Cached == 0) || n > 0 && m.Spans[n-1].End != m.Cached {
		e.t.Errorf("%d tokens in %v", m.Cached, m.Spans)
	}
	return m
}

func (e *engine) holds(ids []uint32, want scoring.Tokens) {
	e.t.Helper()
	if got := e.match(ids).Cached; got != want {
		e.t.Errorf("%d tokens cached, want %d", got, want)
	}
}

func (e *engine) spans(ids []uint32, want ...scoring.Span) {
	e.t.Helper()
	if diff := cmp.Diff(want, e.match(ids).Spans); diff != "" {
		e.t.Errorf("spans (-want +got)\n%s", diff)
	}
}

func TestStoredAndRemoved(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	a, b := prompt(1, 0, 20), prompt(2, 8, 20)
	var gpu say
	e.tell(gpu.stored(a[:12], 0))
	e.holds(a, 12)
	e.tell(gpu.stored(a, 12))
	e.holds(a, 20)
	e.holds(b, 0)
	e.tell(gpu.stored(b, 0))
	e.holds(b, 20)
	e.tell(gpu.removed(a, 16))
	e.holds(a, 16)
	e.tell(gpu.removed(a[:4], 0)) // A gap at the beginning.
	e.holds(a, 0)
	e.tell(gpu.stored(a[:4], 0))
	e.holds(a, 16)
}

// "Stored and Removed come in equal numbers": a block announced twice is there
// until it was taken back twice.
func TestReferencesAreCounted(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 8)
	gpu, cpu, other := say{}, say{medium: "cpu"}, say{group: 1}
	e.tell(gpu.stored(ids, 0), gpu.stored(ids, 4), other.stored(ids, 0), cpu.stored(ids, 0))
	e.tell(gpu.removed(ids, 4))
	e.spans(ids, scoring.Span{End: 8, Location: "gpu"})
	e.tell(gpu.removed(ids, 4))
	e.spans(ids, scoring.Span{End: 4, Location: "gpu"}, scoring.Span{End: 8, Location: "cpu"})
	e.tell(gpu.removed(ids, 4), gpu.removed(ids, 4)) // More than there were.
	e.tell(gpu.stored(ids, 4))
	e.spans(ids, scoring.Span{End: 8, Location: "gpu"})
}

// The last token is computed whatever is cached.
func TestLastTokenIsNeverCached(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 8)
	e.tell(say{}.stored(ids, 0))
	for n, want := range map[int]scoring.Tokens{0: 0, 1: 0, 4: 0, 5: 4, 8: 4} {
		p := &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: ids[:n], Length: scoring.Tokens(n), Usable: scoring.Tokens(n)}}}
		if got := e.ix.match(p, []scoring.Endpoint{{ID: 1}})[0][0].Cached; got != want {
			t.Errorf("prompt of %d: %d cached, want %d", n, got, want)
		}
	}
	// An image follows after token 4: what is usable ends there, not the prompt.
	p := &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: ids, Length: 100, Usable: 4}, {Length: 50}}}
	row := e.ix.match(p, []scoring.Endpoint{{ID: 1}, {ID: 2}})
	if got := row[0][0].Cached; got != 4 {
		t.Errorf("%d cached, want 4", got)
	}
	if row[0][1].Cached != 0 || row[1] != nil {
		t.Errorf("%+v", row)
	}
}

func TestSilentEngineIsUnknown(t *testing.T) {
	ix := newIndex(Config{MaxBlocks: 10})
	ix.open(1, feed(1))
	if row := ix.match(sequenceOf(prompt(1, 0, 8)), []scoring.Endpoint{{ID: 1}})[0]; row != nil {
		t.Errorf("got %v, want nothing known", row)
	}
}

// Blocks with an image or an adapter without name are counted, but match nobody,
// and so does what follows them; the same tokens without are another matter.
func TestForeignBlocksNeverMatch(t *testing.T) {
	ids := prompt(1, 0, 16)
	gpu, cpu, private := say{}, say{medium: "cpu", salt: "s"}, say{salt: "s"}
	adapter := private.stored(ids[:8], 0)
	adapter.foreign = 0
	image := private.stored(ids[:8], 0)
	image.foreign = 1
	for name, first := range map[string]event{"adapter": adapter, "image": image} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, scoring.TierCapacity{})
			e.tell(first, private.stored(ids, 8))
			want := scoring.Tokens(0)
			if name == "image" {
				want = 4
			}
			e.holds(ids, want)
			// Its copies in other tiers do not say so.
			e.tell(cpu.stored(ids, 0))
			e.holds(ids, want)
			e.tell(gpu.stored(ids, 0))
			e.holds(ids, 16)
			e.tell(private.removed(ids, 0), gpu.removed(ids, 0))
			e.holds(ids, want) // The copies are left.
			if n := len(e.v.shelves[0].blocks); n != 0 {
				t.Errorf("%d blocks left on the GPU", n)
			}
		})
	}
}

// Blocks with a salt or an adapter are found by prompts with the same, and by
// nobody else; so is what follows them, and their copies in other tiers, which
// do not say what there is besides tokens, whatever the size of their blocks.
func TestSaltsAndAdaptersMatchTheirOwn(t *testing.T) {
	ids := prompt(1, 0, 16)
	endpoint := scoring.Endpoint{ID: 1, Models: []string{"m", "a", "b"}, Adapters: []string{"a", "b"}}
	type who struct{ model, salt string }
	everybody := []who{{"m", ""}, {"m", "s"}, {"m", "a"}, {"a", ""}, {"a", "s"}, {"b", ""}, {"b", "s"}}
	for _, owner := range everybody {
		t.Run(owner.model+"/"+owner.salt, func(t *testing.T) {
			e := newEngine(t, scoring.TierCapacity{})
			holds := func(what string, want ...scoring.Span) {
				t.Helper()
				for _, w := range everybody {
					p := sequenceOf(ids)
					p.Model, p.Salt = w.model, w.salt
					m := e.ix.match(p, []scoring.Endpoint{endpoint})[0][0]
					if w != owner {
						if m.Cached != 0 {
							t.Errorf("%s: a prompt of %q matches %d tokens", what, w, m.Cached)
						}
						continue
					}
					if diff := cmp.Diff(want, m.Spans); diff != "" {
						t.Errorf("%s (-want +got)\n%s", what, diff)
					}
				}
			}
			name := fmt.Sprint(owner)
			gpu := say{salt: name}
			first, rest := gpu.stored(ids[:8], 0), gpu.stored(ids, 8)
			first.salt = owner.salt
			if owner.model != "m" {
				first.adapter, rest.adapter = owner.model, owner.model
			}
			e.tell(first, rest)
			holds("on the GPU", scoring.Span{End: 16, Location: "gpu"})
			e.tell(say{salt: name, medium: "cpu"}.stored(ids[:8], 0), say{salt: name, medium: "storage", size: 8}.stored(ids, 0), gpu.removed(ids, 4))
			holds("copied", scoring.Span{End: 4, Location: "gpu"}, scoring.Span{End: 8, Location: "cpu"}, scoring.Span{End: 16, Location: "storage"})
			// What the copy goes on with is told by nobody else.
			longer := append(slices.Clone(ids), prompt(2, 0, 8)...)
			e.tell(say{salt: name, medium: "storage", size: 8}.stored(longer, 0))
			p := sequenceOf(longer)
			p.Model, p.Salt = owner.model, owner.salt
			if got := e.ix.match(p, []scoring.Endpoint{endpoint})[0][0].Cached; got != 24 {
				t.Errorf("%d tokens of the longer prompt, want 24", got)
			}
			for _, w := range everybody {
				p.Model, p.Salt = w.model, w.salt
				if got := e.ix.match(p, []scoring.Endpoint{endpoint})[0][0].Cached; w != owner && got != 0 {
					t.Errorf("%d tokens for %q", got, w)
				}
			}
			e.tell(event{kind: kindCleared}, say{salt: name, medium: "cpu"}.removed(ids[:8], 0),
				say{salt: name, medium: "storage", size: 8}.removed(longer, 0), say{salt: name, medium: "storage", size: 8}.removed(ids, 0))
			holds("removed")
		})
	}
}

// Who comes late does not know what the first blocks hold; when the engine
// tells of them again, all is well.
func TestUnknownParentHeals(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 16)
	e.tell(say{}.stored(ids, 8))
	e.holds(ids, 0)
	e.tell(say{}.stored(ids[:8], 0))
	e.holds(ids, 8) // What the later ones hold was not told anew.
	e.tell(say{}.stored(ids, 8))
	e.holds(ids, 16)
}

// AllBlocksCleared is the engine's own cache, not what was copied out of it.
func TestCleared(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 8)
	e.tell(say{}.stored(ids, 0), say{medium: "cpu"}.stored(ids[:4], 0), event{kind: kindCleared})
	e.spans(ids, scoring.Span{End: 4, Location: "cpu"})
}

// The engine's own blocks come first; from their end on the other tiers may go
// on, each where another has a gap. Then no more of the engine's own.
func TestTiers(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 40)
	gpu, cpu, storage := say{}, say{medium: "cpu", size: 8}, say{medium: "storage"}
	e.tell(gpu.stored(ids, 0), cpu.stored(ids[:16], 0), storage.stored(ids[:28], 0))
	e.tell(gpu.removed(ids[:16], 12)) // Held: 0-12, 16-40.
	e.spans(ids, scoring.Span{End: 12, Location: "gpu"}, scoring.Span{End: 16, Location: "cpu"}, scoring.Span{End: 28, Location: "storage"})
	// Tokens 24 to 32 come back from cpu, whose block begins before the end of
	// storage.
	e.tell(cpu.stored(ids[:32], 16))
	e.spans(ids, scoring.Span{End: 12, Location: "gpu"}, scoring.Span{End: 32, Location: "cpu"})
	// A slower tier goes no further than until a faster one may go on.
	other := prompt(2, 0, 12)
	disk := say{medium: "disk"}
	e.tell(gpu.stored(other[:4], 0), disk.stored(other[:8], 0), say{medium: "cpu"}.stored(other, 0), say{medium: "cpu"}.removed(other[:8], 0), storage.stored(other, 0))
	e.spans(other, scoring.Span{End: 4, Location: "gpu"}, scoring.Span{End: 8, Location: "disk"}, scoring.Span{End: 12, Location: "cpu"})
	e.tell(cpu.removed(ids[:24], 16))
	e.spans(ids, scoring.Span{End: 12, Location: "gpu"}, scoring.Span{End: 16, Location: "cpu"},
		scoring.Span{End: 24, Location: "storage"}, scoring.Span{End: 32, Location: "cpu"})
}

// An offloading tier may tell of blocks by hash alone, or of several under the
// hash of the last.
func TestPlaceholders(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 16)
	gpu := say{}
	e.tell(gpu.stored(ids, 0))
	placeholder := func(medium string, size int, ends ...int) event {
		ev := event{kind: kindStored, medium: medium, blockSize: size, foreign: -1}
		for _, end := range ends {
			ev.hashes = append(ev.hashes, name(ids[:end], ""))
		}
		return ev
	}
	e.tell(placeholder("cpu", 0, 4, 8, 12), placeholder("storage", 8, 8, 16))
	e.tell(event{kind: kindStored, medium: "storage", foreign: -1, hashes: []uint64{1, 2}}) // Nobody knows what these are.
	e.tell(gpu.removed(ids, 0))
	e.spans(ids, scoring.Span{End: 12, Location: "cpu"}, scoring.Span{End: 16, Location: "storage"})
	e.tell(event{kind: kindRemoved, medium: "cpu", hashes: []uint64{name(ids[:8], "")}})
	e.spans(ids, scoring.Span{End: 4, Location: "cpu"}, scoring.Span{End: 8, Location: "storage"},
		scoring.Span{End: 12, Location: "cpu"}, scoring.Span{End: 16, Location: "storage"})
}

// A tier may keep larger blocks than the one it copies from, and blocks that
// are there no more.
func TestLargerBlocksInAnotherTier(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 16)
	e.tell(say{}.stored(ids[:8], 0), say{medium: "cpu", size: 8}.stored(ids, 0), say{}.removed(ids[:8], 4))
	e.spans(ids, scoring.Span{End: 4, Location: "gpu"}, scoring.Span{End: 16, Location: "cpu"})
}

// A block told by its hash first, and in full words later.
func TestPlaceholderBeforeTheRest(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 16)
	e.tell(say{}.stored(ids[:8], 0), event{kind: kindStored, medium: "cpu", blockSize: 8, foreign: -1, hashes: []uint64{name(ids[:8], "")}})
	e.tell(say{medium: "cpu", size: 8}.stored(ids, 0), say{}.removed(ids[:8], 0))
	e.spans(ids, scoring.Span{End: 16, Location: "cpu"})
}

// What cannot be chained or cut into the blocks known is counted, no more.
func TestSizesThatDoNotFit(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 16)
	tail := say{size: 2}.stored(ids[:10], 8)
	e.tell(say{}.stored(ids[:8], 0), tail)
	e.holds(ids, 8)
	e.tell(event{kind: kindStored, medium: "cpu", blockSize: 6, foreign: -1, hashes: []uint64{name(ids[:8], "")}})
	e.holds(ids, 8)
	if n := e.v.status().Unmatched; n != 2 {
		t.Errorf("%d blocks unmatched, want 2", n)
	}
}

// Every group with full attention must hold a prefix; one with a window only
// that window before its end.
func TestGroups(t *testing.T) {
	ids := prompt(1, 0, 40)
	full, second, window := say{}, say{group: 1}, say{group: 2}
	windowed := func(e event, spec string, tokens int) event {
		e.spec, e.window = spec, tokens
		return e
	}
	t.Run("two full", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		e.tell(full.stored(ids, 0), second.stored(ids, 0), second.removed(ids, 24))
		e.holds(ids, 24)
	})
	t.Run("window", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		// 9 tokens: the one computed and 8 before it, two blocks.
		e.tell(full.stored(ids, 0), windowed(window.stored(ids, 0), "sliding_window", 9))
		e.holds(ids, 40)
		e.tell(window.removed(ids[:32], 0)) // What fell out of the window.
		e.holds(ids, 40)
		e.tell(window.removed(ids[:36], 32)) // One block is too little.
		e.holds(ids, 0)
		e.tell(windowed(window.stored(ids[:24], 0), "sliding_window", 9))
		e.holds(ids, 24)
		e.tell(full.removed(ids[:24], 20))
		e.holds(ids, 20)
		e.tell(window.removed(ids[:12], 8)) // 0-8, 12-24: the last two of 20 are there.
		e.holds(ids, 20)
		e.tell(window.removed(ids[:16], 12)) // 0-8, 16-24: none at 20 or 16, a short one at 8.
		e.holds(ids, 8)
	})
	t.Run("window of larger blocks", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		e.tell(full.stored(ids[:12], 0), windowed(say{group: 2, size: 8}.stored(ids, 0), "sliding_window", 9))
		e.holds(ids, 8)
	})
	t.Run("windows alone", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		e.tell(windowed(window.stored(ids, 0), "sliding_window", 9), window.removed(ids[:28], 0))
		e.holds(ids, 40)
		e.holds(ids[:28], 0)
	})
	t.Run("window of blocks nobody can name", func(t *testing.T) {
		// The event has the tokens of four blocks and the hashes of the last two.
		e := newEngine(t, scoring.TierCapacity{})
		some := windowed(window.stored(ids[:16], 0), "sliding_window", 9)
		some.hashes = []uint64{1, 2}
		e.tell(full.stored(ids[:16], 0), some)
		e.holds(ids, 16)
	})
	t.Run("window of some blocks", func(t *testing.T) {
		for _, later := range []bool{false, true} {
			e := newEngine(t, scoring.TierCapacity{})
			some := windowed(window.stored(ids[:24], 0), "sliding_window", 9)
			some.hashes = some.hashes[4:]
			if later {
				e.tell(some, full.stored(ids, 0))
			} else {
				e.tell(full.stored(ids, 0), some)
			}
			e.holds(ids, 24)
			e.holds(ids[:20], 0)
		}
	})
	t.Run("state", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		e.tell(full.stored(ids, 0), windowed(window.stored(ids, 0), "mamba", 0), window.removed(ids[:32], 0), window.removed(ids, 36))
		e.holds(ids, 36)
	})
	t.Run("encoder", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		e.tell(full.stored(ids, 0), windowed(window.stored(ids[:4], 0), "cross_attention", 0))
		e.holds(ids, 40)
	})
}

// Any block size, several at once.
func TestBlockSizes(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	ids := prompt(1, 0, 3*528+100)
	e.tell(say{size: 528}.stored(ids, 0), say{medium: "cpu", size: 256}.stored(ids, 0))
	e.spans(ids, scoring.Span{End: 3 * 528, Location: "gpu"})
	e.tell(say{size: 528}.removed(ids, 2*528))
	e.spans(ids, scoring.Span{End: 2 * 528, Location: "gpu"}, scoring.Span{End: 6 * 256, Location: "cpu"})
}

// A publisher that tells of no removals is believed up to its capacity, oldest
// first; what is announced again is young again.
func TestCapacity(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{CPU: 40})
	cpu := say{medium: "cpu"}
	a, b, c := prompt(1, 0, 16), prompt(2, 0, 16), prompt(3, 0, 16)
	e.tell(cpu.stored(a, 0), cpu.stored(b, 0), cpu.stored(a, 0), cpu.stored(c, 0))
	e.holds(a, 16)
	e.holds(b, 0)
	e.holds(c, 16)
	if got := e.v.status().Tokens["cpu"]; got != 40 {
		t.Errorf("%d tokens, want 40", got)
	}
	e.tell(cpu.removed(b, 0)) // Forgotten ones.
	e.tell(say{}.stored(prompt(4, 0, 400), 0))
	e.holds(prompt(4, 0, 400), 400)
}

// An engine that says how much it holds is believed no more, on each rank and in
// each group; removals that are told are not guessed. A capacity that is
// configured goes before what it says.
func TestCapacityOfTheEngine(t *testing.T) {
	a, b, c := prompt(1, 0, 16), prompt(2, 0, 16), prompt(3, 0, 16)
	gpu := say{}
	storeOnly := func(e *engine) []string { return e.v.status().StoreOnly }
	t.Run("store only", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		e.tell(gpu.stored(a, 0), gpu.stored(b, 0), gpu.stored(c, 0))
		e.holds(a, 16)
		e.ix.setRoom(1, 40)
		e.holds(a, 16) // Until the next event.
		e.tell(gpu.stored(c, 0))
		e.holds(a, 0)
		e.holds(c, 16)
		st := e.v.status()
		if st.Tokens["gpu"] != 40 || st.Counts.Aged != 2 || !slices.Equal(st.StoreOnly, []string{"gpu"}) {
			t.Errorf("%+v", st)
		}
		e.ix.setRoom(1, 0)
		e.tell(gpu.stored(a, 0), gpu.stored(b, 0))
		e.holds(a, 16)
	})
	t.Run("removals are told", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{})
		e.ix.setRoom(1, 32)
		e.tell(gpu.stored(a, 0), gpu.stored(b, 0))
		e.tell(gpu.removed(a, 0), gpu.stored(c, 0))
		e.holds(b, 16)
		e.holds(c, 16)
		if st := e.v.status(); st.Counts.Aged != 0 || st.StoreOnly != nil {
			t.Errorf("%+v", st)
		}
		// One was lost on the way.
		e.tell(gpu.removed(b, 4), gpu.stored(prompt(4, 0, 16), 0))
		if st := e.v.status(); st.Counts.Aged != 1 || st.StoreOnly != nil {
			t.Errorf("%+v", st)
		}
	})
	t.Run("groups of larger blocks", func(t *testing.T) {
		// 8 blocks: of 4 tokens each here, of 8 there.
		e := newEngine(t, scoring.TierCapacity{})
		e.ix.setRoom(1, 32)
		long := prompt(5, 0, 64)
		e.tell(gpu.stored(long[:32], 0), say{group: 1, size: 8}.stored(long, 0))
		e.holds(long, 32)
		if st := e.v.status(); st.Counts.Aged != 0 {
			t.Errorf("%+v", st)
		}
		e.tell(gpu.stored(a, 0))
		e.holds(long, 0)
	})
	t.Run("other media", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{CPU: 16})
		e.ix.setRoom(1, 16)
		cpu, storage := say{medium: "cpu"}, say{medium: "storage"}
		e.tell(storage.stored(a, 0), storage.stored(b, 0), cpu.stored(a, 0), cpu.stored(b, 0))
		e.holds(b, 16)
		if got := storeOnly(e); !slices.Equal(got, []string{"cpu"}) {
			t.Errorf("store only: %v", got)
		}
	})
	t.Run("configured", func(t *testing.T) {
		e := newEngine(t, scoring.TierCapacity{GPU: 32})
		e.ix.setRoom(1, 16)
		e.tell(gpu.stored(a, 0), gpu.stored(b, 0))
		e.holds(a, 16)
	})
}

// An endpoint was heard when any of its ranks was.
func TestHeard(t *testing.T) {
	ix := newIndex(DefaultConfig())
	views := ix.open(1, feed(2))
	s := &Subscriber{index: ix}
	if at := s.Heard(1); !at.IsZero() {
		t.Errorf("heard at %s of an engine that told nothing", at)
	}
	views[1].apply(&batch{}, now.Add(time.Second), true)
	views[0].apply(&batch{}, now, true)
	if at := s.Heard(1); !at.Equal(now.Add(time.Second)) {
		t.Errorf("heard at %s", at)
	}
	if at := s.Heard(2); !at.IsZero() {
		t.Errorf("heard at %s of nobody", at)
	}
}

func TestMaxBlocks(t *testing.T) {
	ix := newIndex(Config{MaxBlocks: 10})
	first, second := ix.open(1, feed(1))[0], ix.open(2, feed(2))
	if len(second) != 2 {
		t.Fatalf("%d views, want one for each rank", len(second))
	}
	for i := range 50 {
		first.apply(&batch{events: []event{say{}.stored(prompt(i, 0, 20), 0)}}, now, true)
		second[i%2].apply(&batch{events: []event{say{}.stored(prompt(i, 0, 20), 0)}}, now, true)
		if n := ix.total.Load(); n > 10 {
			t.Fatalf("%d blocks, want at most 10", n)
		}
	}
	for _, v := range append(second, first) {
		checkView(t, v)
	}
	checkTotal(t, ix)
	ix.close(1)
	ix.close(2)
	checkTotal(t, ix)
	if n := ix.total.Load(); n != 0 {
		t.Errorf("%d blocks of nobody", n)
	}
}

// The rank that holds most counts.
func TestRanks(t *testing.T) {
	ix := newIndex(DefaultConfig())
	views := ix.open(1, feed(3))
	ids := prompt(1, 0, 20)
	views[2].apply(&batch{events: []event{say{}.stored(ids[:4], 0)}}, now, true)
	views[0].apply(&batch{events: []event{say{}.stored(ids[:8], 0)}}, now, true)
	views[1].apply(&batch{events: []event{say{}.stored(ids, 0)}}, now, true)
	if got := ix.match(sequenceOf(ids), []scoring.Endpoint{{ID: 1}})[0][0].Cached; got != 20 {
		t.Errorf("%d cached, want 20", got)
	}
}

func TestStrangersCannotMakeShelves(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	for i := range 2 * maxShelves {
		e.tell(say{medium: fmt.Sprint(i)}.stored(prompt(1, 0, 4), 0))
	}
	for i := range 2 * maxLayouts {
		e.tell(say{medium: "0", size: i + 1}.stored(prompt(1, 0, 64), 0))
	}
	if len(e.v.shelves) != maxShelves || e.v.account.ignored != maxShelves {
		t.Errorf("%d shelves, %d ignored", len(e.v.shelves), e.v.account.ignored)
	}
}
