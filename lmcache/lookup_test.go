package lmcache_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// roster is a lmcache.Roster whose list a test can change.
type roster struct {
	list  atomic.Pointer[rosterList]
	heard map[string]time.Time // set before use
	// claimed is what Claim was told last.
	claimed map[string]bool
}

type rosterList struct {
	generation uint64
	instances  []lmcache.Instance
}

func (r *roster) set(instances ...lmcache.Instance) {
	next := &rosterList{generation: 1, instances: instances}
	if last := r.list.Load(); last != nil {
		next.generation = last.generation + 1
	}
	r.list.Store(next)
}

func (r *roster) Instances() (uint64, []lmcache.Instance) {
	l := r.list.Load()
	return l.generation, l.instances
}

func (r *roster) Heard(instance string) time.Time { return r.heard[instance] }

func (r *roster) Claim(_ uint64, instances map[string]bool) { r.claimed = instances }

// fleet is a Source with everything around it.
type fleet struct {
	*lmcache.Source
	index  *lmcache.Index
	roster *roster
	log    bytes.Buffer
}

func newFleet(tb testing.TB, cfg lmcache.Config) *fleet {
	tb.Helper()
	f := &fleet{index: lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: cfg.MaxKeys}), roster: &roster{}}
	f.roster.set()
	var err error
	if f.Source, err = lmcache.NewSource(cfg, f.index, f.roster, slog.New(slog.NewTextHandler(&f.log, nil))); err != nil {
		tb.Fatal(err)
	}
	return f
}

// smallChunks is a Config whose chunks have four tokens.
func smallChunks() lmcache.Config {
	cfg := lmcache.DefaultConfig()
	cfg.Keys.ChunkSize = 4
	return cfg
}

// tokens is a prompt of n tokens that begins like every other.
func tokens(n int) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(i)
	}
	return ids
}

// store admits, for the instance, what an engine of that group keeps of a
// prompt of n tokens.
func (f *fleet) store(tb testing.TB, group lmcache.KeyGroup, instance, location string, n int) {
	tb.Helper()
	h, err := lmcache.NewHasher(group)
	if err != nil {
		tb.Fatal(err)
	}
	f.index.Admit(worker(instance, 0), location, h.Keys(nil, tokens(n)))
}

func sequence(n int) scoring.Sequence {
	return scoring.Sequence{TokenIDs: tokens(n), Length: scoring.Tokens(n), Usable: scoring.Tokens(n)}
}

// matched writes rows as "cached,cached" for each endpoint, "?" for a nil row.
func matched(rows [][]scoring.Match) string {
	var texts []string
	for _, row := range rows {
		if row == nil {
			texts = append(texts, "?")
			continue
		}
		var cells []string
		for _, m := range row {
			cells = append(cells, fmt.Sprint(m.Cached))
			if n := len(m.Spans); n > 0 && m.Spans[n-1].End != m.Cached || n == 0 && m.Cached > 0 {
				cells = append(cells, fmt.Sprintf("!%v", m.Spans))
			}
		}
		texts = append(texts, strings.Join(cells, ","))
	}
	return strings.Join(texts, " ")
}

func TestSourceMatch(t *testing.T) {
	f := newFleet(t, smallChunks())
	keys := smallChunks().Keys
	endpoints := []scoring.Endpoint{
		endpoint(1, "a 10.0.0.1:8000"), endpoint(2, "b 10.0.0.2:8000"), endpoint(3, "c 10.0.0.3:8000"), endpoint(4, "d 10.0.0.4:8000 instance=never"),
	}
	f.SetEndpoints(endpoints)
	f.roster.set(instance("x 10.0.0.1 9000 1"), instance("y 10.0.0.2 9000 2"))
	f.store(t, keys, "x", cpu, 12)
	f.store(t, keys, "y", disk, 30)
	f.store(t, keys, "y", cpu, 8)

	t.Run("each endpoint by its instance", func(t *testing.T) {
		got := f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{sequence(26)}}, endpoints)
		want := [][]scoring.Match{
			{{Cached: 12, Spans: []scoring.Span{{End: 12, Location: cpu}}}},
			{{Cached: 24, Spans: []scoring.Span{{End: 8, Location: cpu}, {End: 24, Location: disk}}}},
			nil, nil,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("any subset and order", func(t *testing.T) {
		p := &scoring.Prompt{Sequences: []scoring.Sequence{sequence(16), sequence(3)}}
		if got := matched(f.Match(p, []scoring.Endpoint{endpoints[1], endpoints[2], endpoints[0]})); got != "16,0 ? 12,0" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("only the usable prefix is compared", func(t *testing.T) {
		s := sequence(16)
		s.Usable = 10
		if got := matched(f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{s}}, endpoints)); got != "8 8 ? ?" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("estimated: known, nothing held", func(t *testing.T) {
		p := &scoring.Prompt{Sequences: []scoring.Sequence{{Length: 100}}}
		if got := matched(f.Match(p, endpoints)); got != "0 0 ? ?" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a prompt that no cache helps", func(t *testing.T) {
		p := &scoring.Prompt{Sequences: []scoring.Sequence{sequence(16)}, NoCache: true}
		if got := matched(f.Match(p, endpoints)); got != "0 0 ? ?" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("no prompt, no endpoints", func(t *testing.T) {
		if got := f.Match(&scoring.Prompt{}, endpoints); len(got) != 4 {
			t.Errorf("%d rows, want 4", len(got))
		}
		if got := f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{sequence(9)}}, nil); len(got) != 0 {
			t.Errorf("%d rows, want 0", len(got))
		}
	})
	t.Run("an unhealthy endpoint keeps its keys", func(t *testing.T) {
		down := append([]scoring.Endpoint(nil), endpoints...)
		down[0].Ready = false
		f.SetEndpoints(down)
		f.SetEndpoints(endpoints)
		if got := matched(f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{sequence(16)}}, endpoints)); got != "12 16 ? ?" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("the roster changes", func(t *testing.T) {
		f.roster.set(instance("y 10.0.0.3 9000 3"), instance("never 10.9.9.9 9000 4"))
		f.index.Register(worker("never", 0))
		if got := matched(f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{sequence(16)}}, endpoints)); got != "? ? 16 0" {
			t.Errorf("got %s", got)
		}
	})
}

// TestSourceTail: the end of a prompt that does not fill a chunk is found by a
// prompt of the very same length alone.
func TestSourceTail(t *testing.T) {
	cfg := smallChunks()
	yes := true
	cfg.Keys.SaveUnfullChunk = &yes
	f := newFleet(t, cfg)
	endpoints := []scoring.Endpoint{endpoint(1, "a 10.0.0.1:8000 instance=x")}
	f.SetEndpoints(endpoints)
	f.store(t, cfg.Keys, "x", cpu, 10)
	for n, want := range map[int]string{7: "4", 8: "8", 9: "8", 10: "10", 11: "8", 12: "8", 40: "8"} {
		if got := matched(f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{sequence(n)}}, endpoints)); got != want {
			t.Errorf("%d tokens: %s held, want %s", n, got, want)
		}
	}
	// What follows the usable part is unknown, so its end is not the prompt's.
	s := sequence(10)
	s.Length = 30
	if got := matched(f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{s}}, endpoints)); got != "8" {
		t.Errorf("unknown end: %s held, want 8", got)
	}
}

// TestSourceGroups: an instance is read with its own group's keys only, and
// only for its endpoint's model.
func TestSourceGroups(t *testing.T) {
	cfg := smallChunks()
	cfg.Groups = map[string]lmcache.KeyGroup{
		"old": {LMCacheVersion: "0.4.1", Algorithm: "sha256_cbor"}, "large": {ChunkSize: 8}, "same": {},
	}
	cfg.Models = map[string]string{"big": "large"}
	f := newFleet(t, cfg)
	endpoints := []scoring.Endpoint{
		endpoint(1, "a 10.0.0.1:8000 instance=x"), endpoint(2, "b 10.0.0.1:8001 instance=y"),
		endpoint(3, "c 10.0.0.1:8002 instance=z"), endpoint(4, "d 10.0.0.1:8003 instance=u"),
		endpoint(5, "e 10.0.0.1:8004 instance=v"), endpoint(6, "f 10.0.0.1:8005 instance=w"),
	}
	endpoints[0].Models = []string{"small"}
	endpoints[1].Models = []string{"small"}
	endpoints[1].Cache.Group = "old"
	endpoints[2].Models = []string{"big", "alias"}
	endpoints[3].Models = []string{"small"}
	endpoints[3].Cache.Group = "same"
	endpoints[4].Models = []string{"small"}
	endpoints[4].Cache.Group = "gone"
	f.SetEndpoints(endpoints)
	for _, name := range []string{"x", "y", "z", "u", "v", "w"} {
		f.store(t, cfg.Keys, name, cpu, 8)
		f.store(t, cfg.Groups["old"].Or(cfg.Keys), name, cpu, 12)
		f.store(t, cfg.Groups["large"].Or(cfg.Keys), name, cpu, 16)
	}
	for model, want := range map[string]string{
		"small": "8 12 ? 8 ? 8", "big": "? ? 16 ? ? 16", "alias": "? ? 16 ? ? 8", "other": "? ? ? ? ? 8", "": "8 12 16 8 ? 8",
	} {
		p := &scoring.Prompt{Model: model, Sequences: []scoring.Sequence{sequence(20)}}
		if got := matched(f.Match(p, endpoints)); got != want {
			t.Errorf("model %q: %s, want %s", model, got, want)
		}
	}
	if _, err := lmcache.NewSource(lmcache.Config{Models: map[string]string{"m": "gone"}}, f.index, f.roster, slog.Default()); err == nil {
		t.Error("a model with a group that is not there was taken")
	}
	cfg.Groups = map[string]lmcache.KeyGroup{"bad": {PythonHashSeed: lmcache.SeedUnset}}
	cfg.Models = nil
	if _, err := lmcache.NewSource(cfg, f.index, f.roster, slog.Default()); err == nil {
		t.Error("a group without predictable keys was taken")
	}
}

// TestSourceShared: the best match of any instance of the model and group
// counts for all its endpoints, those without an instance too.
func TestSourceShared(t *testing.T) {
	cfg := smallChunks()
	cfg.SharedCache = true
	cfg.Groups = map[string]lmcache.KeyGroup{"large": {ChunkSize: 8}}
	f := newFleet(t, cfg)
	endpoints := []scoring.Endpoint{
		endpoint(1, "a 10.0.0.1:8000 instance=x"), endpoint(2, "b 10.0.0.1:8001 instance=y"),
		endpoint(3, "c 10.0.0.1:8002"), endpoint(4, "d 10.0.0.1:8003 instance=u"), endpoint(5, "e 10.0.0.1:8004 instance=v"),
	}
	for i := range endpoints {
		endpoints[i].Models = []string{"m"}
	}
	endpoints[3].Cache.Group = "large"
	endpoints[4].Models = []string{"n"}
	f.SetEndpoints(endpoints)
	p := &scoring.Prompt{Model: "m", Sequences: []scoring.Sequence{sequence(20)}}
	if got := matched(f.Match(p, endpoints)); got != "? ? ? ? ?" {
		t.Errorf("before any report: %s", got)
	}
	f.store(t, cfg.Keys, "x", cpu, 8)
	f.store(t, cfg.Keys, "y", cpu, 12)
	f.store(t, cfg.Keys, "v", cpu, 20)
	f.store(t, cfg.Groups["large"].Or(cfg.Keys), "u", cpu, 16)
	if got, want := matched(f.Match(p, endpoints)), "12 12 12 16 ?"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// The next chunk is held by one that has none of those before it: an engine
	// fetches each from where it is.
	h, err := lmcache.NewHasher(cfg.Keys)
	if err != nil {
		t.Fatal(err)
	}
	f.index.Admit(worker("x", 0), cpu, h.Keys(nil, tokens(16))[3:])
	if got, want := matched(f.Match(p, endpoints)), "16 16 16 16 ?"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestSourceTransfer: each place has its own time to load a token, and what only
// other engines hold that of P2P.
func TestSourceTransfer(t *testing.T) {
	for _, shared := range []bool{false, true} {
		cfg := smallChunks()
		cfg.SharedCache = shared
		cfg.Transfer = lmcache.TransferSeconds{CPU: 1e-6, Disk: 2e-6, Remote: 3e-6, P2P: 4e-6}
		f := newFleet(t, cfg)
		endpoints := []scoring.Endpoint{endpoint(1, "a 10.0.0.1:8000 instance=x"), endpoint(2, "b 10.0.0.2:8000 instance=y"), endpoint(3, "c 10.0.0.3:8000")}
		f.SetEndpoints(endpoints)
		f.store(t, cfg.Keys, "x", disk, 12)
		f.store(t, cfg.Keys, "x", "NixlBackend", 16)
		f.store(t, cfg.Keys, "x", cpu, 8)
		f.store(t, cfg.Keys, "y", cpu, 4)
		x := []scoring.Span{
			{End: 8, Location: cpu, SecondsPerToken: 1e-6},
			{End: 12, Location: disk, SecondsPerToken: 2e-6},
			{End: 16, Location: "NixlBackend", SecondsPerToken: 3e-6, Remote: true},
		}
		y := []scoring.Span{{End: 4, Location: cpu, SecondsPerToken: 1e-6}}
		want := [][]scoring.Match{{{Cached: 16, Spans: x}}, {{Cached: 4, Spans: y}}, nil}
		if shared {
			far := scoring.Span{End: 16, Location: lmcache.LocationPeer, SecondsPerToken: 4e-6, Remote: true}
			want[1] = []scoring.Match{{Cached: 16, Spans: append(y, far)}}
			want[2] = []scoring.Match{{Cached: 16, Spans: []scoring.Span{far}}}
		}
		got := f.Match(&scoring.Prompt{Sequences: []scoring.Sequence{sequence(18)}}, endpoints)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("shared %t (-want +got):\n%s", shared, diff)
		}
	}
}

// TestTransferChoice: with a shared cache the engine that has the prefix itself
// wins over those that would fetch it, until its queue is longer than the
// fetch; where fetching takes longer than computing, sharing draws nobody.
func TestTransferChoice(t *testing.T) {
	for _, test := range []struct {
		p2p float64
		atA int // of eight that come at once; a holds their prompt
	}{
		// 11 ms of computing anywhere; the place of a copy is worth 50 ms.
		{0, 6},
		{1e-6, 6},
		{1e-5, 7}, // 20 ms of fetching
		{1e-3, 8}, // 2 s
	} {
		cfg := smallChunks()
		cfg.SharedCache, cfg.Transfer.P2P = true, test.p2p
		f := newFleet(t, cfg)
		endpoints := []scoring.Endpoint{endpoint(1, "a 10.0.0.1:8000 instance=x"), endpoint(2, "b 10.0.0.2:8000 instance=y"), endpoint(3, "c 10.0.0.3:8000")}
		for i := range endpoints {
			endpoints[i].Ready = true
		}
		f.SetEndpoints(endpoints)
		f.store(t, cfg.Keys, "x", cpu, 2000)
		f.index.Register(worker("y", 0))
		choosing := scoring.DefaultConfig()
		choosing.Policy = scoring.PolicyTTFT
		picker, err := scoring.NewPicker(choosing, func() time.Time { return time.Unix(0, 0) }, rand.New(rand.NewPCG(1, 2)), f)
		if err != nil {
			t.Fatal(err)
		}
		picker.SetEndpoints(endpoints)
		var names []string
		for i := range 8 {
			d, err := picker.Pick(fmt.Sprint(i), &scoring.Prompt{Streamed: true, Sequences: []scoring.Sequence{sequence(2100)}})
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, d.Endpoint().Name)
		}
		atA := 0
		for _, name := range names {
			if name == "a" {
				atA++
			}
		}
		if names[0] != "a" || atA != test.atA {
			t.Errorf("%g s a token: %v, want %d at a, the first among them", test.p2p, names, test.atA)
		}
	}
}

// TestSourceHeard: an endpoint's news is its own instance's.
func TestSourceHeard(t *testing.T) {
	f := newFleet(t, smallChunks())
	f.roster.heard = map[string]time.Time{"x": time.Unix(10, 0), "other": time.Unix(20, 0)}
	f.SetEndpoints([]scoring.Endpoint{endpoint(1, "a 10.0.0.1:8000 instance=x"), endpoint(2, "b 10.0.0.2:8000 instance=y"), endpoint(3, "c 10.0.0.3:8000")})
	for id, want := range map[scoring.EndpointID]time.Time{1: time.Unix(10, 0), 2: {}, 3: {}, 4: {}} {
		if got := f.Heard(id); !got.Equal(want) {
			t.Errorf("endpoint %d: %v, want %v", id, got, want)
		}
	}
}

// TestSourceWarnsOnce of what it cannot map, and not before the first instance.
func TestSourceWarnsOnce(t *testing.T) {
	f := newFleet(t, smallChunks())
	endpoints := []scoring.Endpoint{endpoint(1, "a 10.0.0.1:8000"), endpoint(2, "b 10.0.0.2:8000")}
	f.SetEndpoints(endpoints)
	if f.log.Len() > 0 {
		t.Errorf("warned of nothing: %s", f.log.String())
	}
	p := &scoring.Prompt{Sequences: []scoring.Sequence{sequence(20)}}
	for range 3 {
		f.roster.set(instance("x 10.0.0.1 9000 1"), instance("stray 10.9.9.9 9000 1"))
		f.Match(p, endpoints)
		f.SetEndpoints(endpoints)
	}
	log := f.log.String()
	if n := strings.Count(log, "\n"); n != 2 || !strings.Contains(log, "endpoint=b") || !strings.Contains(log, "instance=stray") {
		t.Errorf("%d lines, want one for endpoint b and one for instance stray:\n%s", n, log)
	}
	if diff := cmp.Diff(map[string]bool{"x": true}, f.roster.claimed); diff != "" {
		t.Errorf("claimed instances (-want +got):\n%s", diff)
	}
	if m := f.Mapping(); m.Instances[1] != "x" || len(m.Unmapped) != 2 {
		t.Errorf("mapping %+v", m)
	}
}

// BenchmarkSourceMatch is a whole lookup, keys included, of a prompt of 131,072
// tokens that all of 64 instances hold.
func BenchmarkSourceMatch(b *testing.B) {
	const n, length = 64, 131_072
	for _, algorithm := range []string{"builtin", "sha256_cbor"} {
		b.Run(fmt.Sprintf("%s/tokens=%d/instances=%d", algorithm, length, n), func(b *testing.B) {
			cfg := lmcache.DefaultConfig()
			cfg.Keys.Algorithm = algorithm
			f := newFleet(b, cfg)
			var endpoints []scoring.Endpoint
			var instances []lmcache.Instance
			for i := range n {
				endpoints = append(endpoints, endpoint(i+1, fmt.Sprintf("e%d 10.0.0.%d:8000", i, i+1)))
				instances = append(instances, instance(fmt.Sprintf("i%d 10.0.0.%d 9000 %d", i, i+1, i)))
				f.index.Register(worker(instances[i].ID, 0))
				f.store(b, cfg.Keys, instances[i].ID, cpu, length)
			}
			f.roster.set(instances...)
			f.SetEndpoints(endpoints)
			p := &scoring.Prompt{Sequences: []scoring.Sequence{sequence(length)}}
			b.ReportAllocs()
			for b.Loop() {
				if rows := f.Match(p, endpoints); rows[n-1][0].Cached != length {
					b.Fatal(rows[n-1])
				}
			}
		})
	}
}
