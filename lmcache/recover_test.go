package lmcache

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// TestBeforeLink undoes the tuple hash for any link there can be.
func TestBeforeLink(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 10_000 {
		prev, tokens := int64(rng.Uint64()), int64(rng.Uint64())
		for _, x := range []extra{extraAbsent, extraNone, extraEmpty} {
			if got := beforeLink(hashLink(prev, tokens, x), tokens, x); got != prev {
				t.Fatalf("extra %d: %d, want %d", x, got, prev)
			}
		}
	}
}

// TestCandidates: the configured settings come first, each makes other keys
// than all before, and what differs less comes sooner.
func TestCandidates(t *testing.T) {
	base := KeyGroup{Algorithm: "sha256", ChunkSize: 100, PythonHashSeed: "99"}.Or(DefaultKeyGroup())
	cs := newCandidates(base)
	seen := make(map[scheme]bool)
	n, last := 0, 0
	cs.each(func(c candidate) bool {
		if n++; n == 1 && c.KeyGroup != base {
			t.Errorf("first %v, want %v", c.KeyGroup, base)
		}
		if seen[c.scheme] {
			t.Fatalf("twice: %v", c.KeyGroup)
		}
		seen[c.scheme] = true
		if s, faults := c.KeyGroup.scheme(); len(faults) > 0 || s != c.scheme {
			t.Fatalf("%v does not make its own scheme: %v", c.KeyGroup, faults)
		}
		if d := c.distance(base); d < last {
			t.Fatalf("%v differs in %d settings, the one before in %d", c.KeyGroup, d, last)
		} else {
			last = d
		}
		return true
	})
	t.Logf("%d candidates, %d without chunk size", n, len(cs.schemes))
	if want := len(cs.schemes) * len(cs.sizes); n != want {
		t.Errorf("%d candidates, want %d", n, want)
	}
	n = 0
	cs.each(func(candidate) bool { n++; return n < 5 })
	if n != 5 {
		t.Errorf("went on after false: %d", n)
	}
}

// TestIntakeBounds: however many prompts there are, few are kept.
func TestIntakeBounds(t *testing.T) {
	in := intake{asked: make(map[scoring.EndpointID]asked)}
	now := time.Unix(0, 0)
	long := make([]uint32, 200_000)
	p := &scoring.Prompt{Sequences: []scoring.Sequence{
		{TokenIDs: long[:10], Length: 10, Usable: 10},
		{TokenIDs: long, Length: 200_000, Usable: 200_000},
	}}
	for i := range 1000 {
		in.offer(scoring.EndpointID(i), p, now)
	}
	if len(in.waiting) != maxWaiting {
		t.Errorf("%d wait, want %d", len(in.waiting), maxWaiting)
	}
	if s := in.waiting[0]; len(s.tokens) != maxSampleTokens || s.whole {
		t.Errorf("%d tokens kept, whole %t", len(s.tokens), s.whole)
	}
	if len(in.due(now)) != 0 {
		t.Error("due at once")
	}
	if n := len(in.due(now.Add(looks[0]))); n != maxWaiting || len(in.waiting) != 0 {
		t.Errorf("%d due, %d left", n, len(in.waiting))
	}
	in.keep([]scoring.Endpoint{{ID: 3}, {ID: 2000}})
	if len(in.asked) != 1 {
		t.Errorf("%d endpoints remembered, want 1", len(in.asked))
	}

	// One endpoint is asked for a sample from time to time.
	for range 100 {
		in.offer(3, p, now.Add(eagerGap))
	}
	if len(in.waiting) != 1 {
		t.Errorf("%d wait, want 1", len(in.waiting))
	}
	in.ask(3, settledGap)
	in.offer(3, p, now.Add(3*eagerGap))
	in.offer(3, p, now.Add(4*eagerGap))
	if len(in.waiting) != 2 {
		t.Errorf("%d wait, want 2", len(in.waiting))
	}
	for _, p := range []*scoring.Prompt{{}, {NoCache: true, Sequences: p.Sequences}, {Sequences: []scoring.Sequence{{Length: 9}}}} {
		in.offer(7, p, now)
	}
	if len(in.waiting) != 2 {
		t.Error("a prompt without comparable tokens was kept")
	}
}

// BenchmarkSearch is one in vain, over all candidates.
func BenchmarkSearch(b *testing.B) {
	ix := NewIndex(IndexConfig{MaxKeys: 10_000})
	rng := rand.New(rand.NewPCG(5, 6))
	keys := make([]Key, 10_000)
	for i := range keys {
		keys[i] = Key(rng.Uint64())
	}
	ix.Admit(WorkerID{"x", 0}, LocationCPU, keys)
	groups, err := newKeyGroups(DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	d := &Detector{index: ix, source: &Source{keys: groups}, metrics: newDetectorMetrics(), tried: make(map[*Hasher]*candidates)}
	c := &detection{configured: groups.byDefault, inForce: found{hasher: groups.byDefault}}
	s := &sample{tokens: make([]uint32, maxSampleTokens)}
	for i := range s.tokens {
		s.tokens[i] = uint32(rng.IntN(150_000))
	}
	for b.Loop() {
		if d.search("x", c, s) {
			b.Fatal("found")
		}
	}
}
