package lmcache_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache"
)

const (
	cpu  = lmcache.LocationCPU
	disk = "LocalDiskBackend"
)

func worker(instance string, rank int) lmcache.WorkerID {
	return lmcache.WorkerID{Instance: instance, Worker: rank}
}

// held is what the named instances hold of keys, as a person would write it.
func held(ix *lmcache.Index, keys []lmcache.Key, instances ...string) string {
	text := ""
	for i, h := range ix.Match(nil, keys, instances) {
		if i > 0 {
			text += " "
		}
		text += instances[i] + "="
		if !h.Known {
			text += "?"
		}
		for _, r := range h.Runs {
			text += fmt.Sprintf("%s:%d", r.Location[5:6], r.End)
		}
		if len(h.Runs) > 0 && h.Runs[len(h.Runs)-1].End != h.Chunks {
			text += fmt.Sprintf("!%d", h.Chunks)
		}
	}
	return text
}

func TestIndex(t *testing.T) {
	row := []lmcache.Key{10, 11, 12, 13}
	a0, a1, b0 := worker("a", 0), worker("a", 1), worker("b", 0)
	for _, test := range []struct {
		name string
		do   func(ix *lmcache.Index)
		want string
	}{
		{"nobody", func(*lmcache.Index) {}, "a=? b=?"},
		{"registered with nothing", func(ix *lmcache.Index) { ix.Register(a0) }, "a= b=?"},
		{"several holders, each its own length", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Register(b0)
			ix.Admit(a0, cpu, row[:1])
			ix.Admit(b0, cpu, row[:3])
		}, "a=C:1 b=C:3"},
		{"a gap ends the run", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Register(b0)
			ix.Admit(a0, cpu, []lmcache.Key{10, 12, 13})
			ix.Admit(b0, cpu, row[1:])
		}, "a=C:1 b="},
		{"the better location wins, in any order of reports", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, disk, row)
			ix.Admit(a0, cpu, row[:2])
			ix.Register(b0)
			ix.Admit(b0, cpu, row[:2])
			ix.Admit(b0, disk, row)
		}, "a=C:2D:4 b=C:2D:4"},
		{"locations may change back and forth", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, disk, row)
			ix.Admit(a0, cpu, []lmcache.Key{10, 12})
		}, "a=C:1D:2C:3D:4 b=?"},
		{"every registered rank must have a chunk", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Register(a1)
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, cpu, row[:2])
		}, "a=C:2 b=?"},
		{"ranks in different locations: the worst that is needed", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Register(a1)
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, disk, row[:3])
			ix.Admit(a1, cpu, row[:1])
		}, "a=C:1D:3 b=?"},
		{"MLA: one rank registers and stands for all", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
		}, "a=C:4 b=?"},
		{"not registered: kept as provisional", func(ix *lmcache.Index) { ix.Admit(a0, cpu, row[:2]) }, "a=C:2 b=?"},
		{"provisional ranks must all have it", func(ix *lmcache.Index) {
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, cpu, row[:1])
		}, "a=C:1 b=?"},
		{"a provisional rank does not count beside a registered one", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, cpu, row[:1])
		}, "a=C:4 b=?"},
		{"confirmed: keeps its keys and counts", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, cpu, row[:1])
			ix.Confirm(a1)
		}, "a=C:1 b=?"},
		{"registered again: nothing is left", func(ix *lmcache.Index) {
			ix.Admit(a0, cpu, row)
			ix.Register(a0)
		}, "a= b=?"},
		{"registering one rank leaves the others their keys", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Register(a1)
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, cpu, row)
			ix.Register(a1)
			ix.Admit(a1, cpu, row[:2])
		}, "a=C:2 b=?"},
		{"deregistered rank is not asked for any more", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Register(a1)
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, cpu, row[:1])
			ix.Deregister(a1)
		}, "a=C:4 b=?"},
		{"the last rank gone: the instance is unknown", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Deregister(a0)
		}, "a=? b=?"},
		{"another rank takes the place of one that left, but not its keys", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Register(a1)
			ix.Admit(a0, cpu, row)
			ix.Admit(a1, cpu, row)
			ix.Deregister(a0)
			ix.Register(worker("a", 7))
		}, "a= b=?"},
		{"dropped: the number is used again, not the keys", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Admit(b0, cpu, row)
			ix.DropInstance("a")
			ix.Register(worker("c", 0))
			ix.Register(a0)
		}, "a= b=C:4"},
		{"evicted", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Admit(a0, disk, row[:2])
			ix.Evict(a0, cpu, []lmcache.Key{11, 13, 99})
			ix.Evict(b0, cpu, row)
			ix.Evict(a0, "nowhere", row)
		}, "a=C:1D:2C:3 b=?"},
		{"admitted twice, evicted once", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Admit(a0, cpu, row)
			ix.Evict(a0, cpu, row[1:])
		}, "a=C:1 b=?"},
		{"one location cleared", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Admit(a0, disk, row[:1])
			ix.Admit(b0, cpu, row)
			ix.Clear(a0, cpu)
		}, "a=D:1 b=C:4"},
		{"all locations cleared, still registered", func(ix *lmcache.Index) {
			ix.Register(a0)
			ix.Admit(a0, cpu, row)
			ix.Admit(a0, disk, row[:1])
			ix.ClearWorker(a0)
		}, "a= b=?"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 100})
			test.do(ix)
			if got := held(ix, row, "a", "b"); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestIndexOverflow: what was longest not reported goes first, and is counted.
func TestIndexOverflow(t *testing.T) {
	ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 3})
	a := worker("a", 0)
	ix.Register(a)
	ix.Admit(a, cpu, []lmcache.Key{1, 2, 3})
	ix.Admit(a, cpu, []lmcache.Key{1})
	ix.Admit(a, cpu, []lmcache.Key{4})
	for _, want := range []struct {
		key  lmcache.Key
		held int
	}{{1, 1}, {2, 0}, {3, 1}, {4, 1}} {
		if got := ix.Match(nil, []lmcache.Key{want.key}, []string{"a"})[0].Chunks; got != want.held {
			t.Errorf("key %d: held %d, want %d", want.key, got, want.held)
		}
	}
	got := ix.Stats()
	want := lmcache.Stats{Keys: 3, Held: 3, Overflowed: 1, Workers: []lmcache.WorkerStats{{WorkerID: a, Registered: true, Keys: map[string]int{cpu: 3}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

// TestIndexLimits: strangers cannot make it grow without end.
func TestIndexLimits(t *testing.T) {
	ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 10})
	for i := range 5000 {
		ix.Admit(worker(fmt.Sprint("i", i), 0), cpu, nil)
		ix.Admit(worker("i0", i), cpu, nil)
		ix.Admit(worker("i0", 0), fmt.Sprint("place", i), nil)
	}
	s := ix.Stats()
	if want := 4096 + 63; len(s.Workers) != want {
		t.Errorf("%d workers, want %d", len(s.Workers), want)
	}
	if want := uint64(5000 - 4096 + 5000 - 64 + 5000 - 63); s.Ignored != want {
		t.Errorf("ignored %d, want %d", s.Ignored, want)
	}
}

// dumbIndex is what Index is meant to be, without a thought for time or room.
type dumbIndex struct {
	registered map[lmcache.WorkerID]bool // false: provisional
	keys       map[lmcache.WorkerID]map[string]map[lmcache.Key]bool
}

func (d *dumbIndex) forget(w lmcache.WorkerID) {
	delete(d.registered, w)
	delete(d.keys, w)
}

func (d *dumbIndex) admit(w lmcache.WorkerID, location string, keys []lmcache.Key) {
	if _, ok := d.registered[w]; !ok {
		d.registered[w] = false
	}
	if d.keys[w] == nil {
		d.keys[w] = map[string]map[lmcache.Key]bool{}
	}
	if d.keys[w][location] == nil {
		d.keys[w][location] = map[lmcache.Key]bool{}
	}
	for _, k := range keys {
		d.keys[w][location][k] = true
	}
}

func (d *dumbIndex) required(instance string) []lmcache.WorkerID {
	var registered, all []lmcache.WorkerID
	for w, ok := range d.registered {
		if w.Instance == instance {
			all = append(all, w)
			if ok {
				registered = append(registered, w)
			}
		}
	}
	if len(registered) > 0 {
		return registered
	}
	return all
}

func (d *dumbIndex) match(keys []lmcache.Key, instance string, locations []string) lmcache.Held {
	ranks := d.required(instance)
	h := lmcache.Held{Known: len(ranks) > 0}
	for i, k := range keys {
		// Allow one more location at a time until every rank is satisfied.
		found := ""
		for n := 1; n <= len(locations) && found == "" && h.Known; n++ {
			all := true
			for _, w := range ranks {
				any1 := false
				for _, l := range locations[:n] {
					any1 = any1 || d.keys[w][l][k]
				}
				all = all && any1
			}
			if all {
				found = locations[n-1]
			}
		}
		if found == "" {
			break
		}
		h.Chunks = i + 1
		if n := len(h.Runs); n > 0 && h.Runs[n-1].Location == found {
			h.Runs[n-1].End = h.Chunks
		} else {
			h.Runs = append(h.Runs, lmcache.Run{End: h.Chunks, Location: found})
		}
	}
	return h
}

func (d *dumbIndex) holds(instance string, key lmcache.Key) bool {
	for w, locations := range d.keys {
		for _, keys := range locations {
			if w.Instance == instance && keys[key] {
				return true
			}
		}
	}
	return false
}

func (d *dumbIndex) anywhere(keys []lmcache.Key, instances, locations []string) int {
	for i := range keys {
		if !slices.ContainsFunc(instances, func(name string) bool { return d.match(keys[i:i+1], name, locations).Chunks == 1 }) {
			return i
		}
	}
	return len(keys)
}

// TestIndexTwin compares Index with its dumb twin over random histories.
func TestIndexTwin(t *testing.T) {
	for seed := range uint64(15) {
		rng := rand.New(rand.NewPCG(seed, 1))
		ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 1 << 20})
		twin := &dumbIndex{map[lmcache.WorkerID]bool{}, map[lmcache.WorkerID]map[string]map[lmcache.Key]bool{}}
		instances, locations := []string{"a", "b", "c", "d"}, []string{cpu, disk, "Other"}
		// The order of the lesser locations is that in which they are first seen.
		for _, l := range locations {
			ix.Admit(worker("z", 0), l, nil)
		}
		for step := range 600 {
			w := worker(instances[rng.IntN(4)], rng.IntN(3))
			l := locations[rng.IntN(3)]
			keys := make([]lmcache.Key, rng.IntN(150))
			for i := range keys {
				keys[i] = lmcache.Key(rng.IntN(40))
			}
			switch rng.IntN(24) {
			case 0:
				ix.Register(w)
				twin.forget(w)
				twin.registered[w] = true
			case 1:
				ix.Deregister(w)
				twin.forget(w)
			case 2:
				ix.DropInstance(w.Instance)
				for r := range 3 {
					twin.forget(worker(w.Instance, r))
				}
			case 3:
				ix.Clear(w, l)
				delete(twin.keys[w], l)
			case 4:
				ix.ClearWorker(w)
				delete(twin.keys, w)
			case 5:
				ix.Confirm(w)
				twin.registered[w] = true
			case 6, 7, 8, 9:
				keys = keys[:min(len(keys), 12)]
				ix.Evict(w, l, keys)
				for _, k := range keys {
					delete(twin.keys[w][l], k)
				}
			default:
				ix.Admit(w, l, keys)
				twin.admit(w, l, keys)
			}
			row := make([]lmcache.Key, 12)
			for i := range row {
				row[i] = lmcache.Key(rng.IntN(40))
			}
			names := append(slices.Clone(instances), "nobody", "a")
			for i, got := range ix.Match(nil, row, names) {
				want := twin.match(row, names[i], locations)
				if len(got.Runs) == 0 {
					got.Runs = nil
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("seed %d step %d, %s (-twin +index):\n%s", seed, step, names[i], diff)
				}
				if i == 0 {
					if got, want := ix.Anywhere(row, names), twin.anywhere(row, names, locations); got != want {
						t.Fatalf("seed %d step %d: %d chunks anywhere, want %d", seed, step, got, want)
					}
				}
				if got, want := ix.Holds(names[i], row[0]), twin.holds(names[i], row[0]); got != want {
					t.Fatalf("seed %d step %d: %s holds %d: %t, want %t", seed, step, names[i], row[0], got, want)
				}
			}
		}
		stats := ix.Stats()
		held := 0
		for _, w := range stats.Workers {
			for l, n := range w.Keys {
				held += n
				if want := len(twin.keys[w.WorkerID][l]); n != want {
					t.Errorf("seed %d: %v has %d keys in %s, want %d", seed, w.WorkerID, n, l, want)
				}
			}
		}
		for _, name := range instances {
			ix.DropInstance(name)
		}
		if s := ix.Stats(); s.Keys != 0 || s.Held != 0 {
			t.Errorf("seed %d: %d keys, %d records left of %d holds", seed, s.Keys, s.Held, held)
		}
	}
}

// TestIndexConcurrently is for the race detector: readers beside writers, and
// never an answer that no moment of the history gives.
func TestIndexConcurrently(t *testing.T) {
	ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 5000})
	row := make([]lmcache.Key, 200)
	for i := range row {
		row[i] = lmcache.Key(i)
	}
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for w := range 4 {
		writers.Go(func() {
			id := worker(fmt.Sprint("i", w/2), w%2)
			for range 50 {
				ix.Register(id)
				ix.Admit(id, cpu, row)
				ix.Evict(id, cpu, row[100:])
				ix.Clear(id, cpu)
				if w == 3 {
					ix.DropInstance(id.Instance)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			var dst []lmcache.Held
			for {
				select {
				case <-done:
					return
				default:
				}
				dst = ix.Match(dst, row, []string{"i0", "i1", "i2"})
				if dst[2].Known || dst[0].Chunks > len(row) {
					t.Errorf("impossible answer %+v", dst)
					return
				}
				ix.Stats()
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}

// BenchmarkIndexMatch looks a row of chunks up that all instances hold, in an
// Index that holds much else.
func BenchmarkIndexMatch(b *testing.B) {
	for _, size := range []struct{ instances, chunks int }{{16, 64}, {16, 400}, {64, 400}} {
		b.Run(fmt.Sprintf("instances=%d/chunks=%d", size.instances, size.chunks), func(b *testing.B) {
			ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 2_000_000})
			rng := rand.New(rand.NewPCG(1, 2))
			row := make([]lmcache.Key, size.chunks)
			for i := range row {
				row[i] = lmcache.Key(rng.Uint64())
			}
			names := make([]string, size.instances)
			for i := range names {
				names[i] = fmt.Sprint("instance-", i)
				other := make([]lmcache.Key, 20_000)
				for j := range other {
					other[j] = lmcache.Key(rng.Uint64())
				}
				ix.Register(worker(names[i], 0))
				ix.Admit(worker(names[i], 0), cpu, other)
				ix.Admit(worker(names[i], 0), cpu, row)
			}
			var dst []lmcache.Held
			b.ReportAllocs()
			for b.Loop() {
				dst = ix.Match(dst, row, names)
			}
			if dst[0].Chunks != size.chunks {
				b.Fatal(dst[0])
			}
		})
	}
}

// BenchmarkIndexAdmit takes reports of 50 keys, as LMCache sends them.
func BenchmarkIndexAdmit(b *testing.B) {
	ix := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 1_000_000})
	rng := rand.New(rand.NewPCG(1, 2))
	keys := make([]lmcache.Key, 50)
	w := worker("a", 0)
	b.ReportAllocs()
	for b.Loop() {
		for i := range keys {
			keys[i] = lmcache.Key(rng.Uint64())
		}
		ix.Admit(w, cpu, keys)
	}
}
