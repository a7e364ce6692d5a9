package lmcache

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
)

// TestStoreTwin holds the table and the list against a map and a slice, with
// keys that meet in one segment and come and go.
func TestStoreTwin(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := newStore(1 + rng.IntN(5000))
		twin := map[Key]bool{}
		var order []Key // the oldest first
		for range 20_000 {
			key := Key(rng.IntN(2000)) << (seed % 3 * 20)
			id := s.find(key)
			if (id != 0) != twin[key] {
				t.Fatalf("seed %d: key %d found: %t, want %t", seed, key, id != 0, twin[key])
			}
			if at := slices.Index(order, key); at >= 0 {
				order = slices.Delete(order, at, at+1)
			}
			switch {
			case id == 0:
				s.insert(key, holder{ranks: 1})
				twin[key] = true
				order = append(order, key)
			case rng.IntN(2) == 0:
				s.remove(id)
				delete(twin, key)
			default:
				s.touch(id)
				order = append(order, key)
			}
		}
		if s.count != len(twin) {
			t.Errorf("seed %d: %d entries, want %d", seed, s.count, len(twin))
		}
		var listed []Key
		for id := s.oldest; id != 0; id = s.entries.at(id).newer {
			listed = append(listed, s.entries.at(id).key)
		}
		if !slices.Equal(listed, order) {
			t.Errorf("seed %d: the list differs from the order of reports", seed)
		}
		for _, key := range slices.Collect(maps.Keys(twin)) {
			s.remove(s.find(key))
		}
		used := 0
		for _, g := range s.segments {
			used += g.used + len(g.places) - freePlaces(g.places)
		}
		if s.count != 0 || s.oldest != 0 || s.newest != 0 || used != 0 {
			t.Errorf("seed %d: emptied, but %d entries and %d places are left", seed, s.count, used)
		}
	}
}

// freePlaces is the number of free places.
func freePlaces(places []uint64) int {
	n := 0
	for _, p := range places {
		if p == 0 {
			n++
		}
	}
	return n
}

// BenchmarkIndexMemory fills an Index with ten million records and reports the
// bytes that each takes, and how fast they came in.
func BenchmarkIndexMemory(b *testing.B) {
	const records = 10_000_000
	for _, holders := range []int{1, 4, 64} {
		b.Run(fmt.Sprint("holders=", holders), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				begin := time.Now()
				ix := NewIndex(IndexConfig{MaxKeys: records})
				keys := make([]Key, 2000)
				for first := 0; first < records/holders; first += len(keys) {
					for i := range keys {
						keys[i] = Key(first+i) * 0x9e3779b97f4a7c15
					}
					for h := range holders {
						ix.Admit(WorkerID{Instance: string(rune('A' + h))}, LocationCPU, keys)
					}
				}
				b.ReportMetric(records/time.Since(begin).Seconds(), "admits/s")
				b.ReportMetric((heap()-before)/float64(ix.Stats().Held), "B/record")
				if ix.Stats().Held < records*99/100 {
					b.Fatal(ix.Stats().Held)
				}
			}
		})
	}
}

// heap is the bytes in use, garbage not counted.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkAdmitFromWire takes frames of 50 operations, as workers send them,
// through everything but the sockets: decoding, the registry, the Index.
func BenchmarkAdmitFromWire(b *testing.B) {
	ix := NewIndex(IndexConfig{MaxKeys: 2_000_000})
	g := newRegistry(slog.New(slog.DiscardHandler), time.Minute, time.Minute)
	var scratch []Key
	g.emit = func(c change) bool { scratch = apply(ix, c, scratch); return true }
	g.match, g.heartbeatURL = ix.Match, func(string) string { return "" }
	worker := Registration{Worker: WorkerID{Instance: "engine"}, IP: "127.0.0.1", Port: 1}
	g.handle(time.Unix(0, 0), &RegisterMsg{worker}, true)
	// Half a million chunks come and go: every second frame evicts what was
	// admitted 500,000 operations before.
	const frames, each = 20_000, 50
	wire := make([][]byte, frames)
	for f := range wire {
		m := &BatchedKVOperationMsg{Worker: worker.Worker, Location: LocationCPU}
		for i := range each {
			n := f*each + i
			m.Operations = append(m.Operations, KVOp{Key: SignedKey(Key(n%(frames*each/2)) * 0x9e3779b97f4a7c15), Seq: NoSeq, Evict: n >= frames*each/2})
		}
		wire[f] = m.Append(nil)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		m, err := Decode(wire[n%frames])
		if err != nil {
			b.Fatal(err)
		}
		g.handle(time.Unix(1, 0), m, false)
		n++
	}
	b.ReportMetric(float64(n*each)/b.Elapsed().Seconds(), "ops/s")
}
