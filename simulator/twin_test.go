package simulator_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/firsttoken/firsttoken/simulator"
)

// twin is the prefix cache in the plainest words: a list of blocks in the order
// in which they are handed out, searched from end to end.
type twin struct {
	total int
	free  []twinBlock // the first is handed out first
	clock int
}

type twinBlock struct {
	key   simulator.Key
	named int // when it got its key; 0: it has none
}

// find is the block of that key that got it first, -1 where there is none.
func (w *twin) find(k simulator.Key) int {
	best := -1
	for i, b := range w.free {
		if b.named > 0 && b.key == k && (best < 0 || b.named < w.free[best].named) {
			best = i
		}
	}
	return best
}

// serve runs one request alone and tells how many blocks were found.
func (w *twin) serve(prompt, output, block int, keys []simulator.Key) int {
	found := 0
	var held []twinBlock
	for found < (prompt-1)/block {
		i := w.find(keys[found])
		if i < 0 {
			break
		}
		held = append(held, w.free[i])
		w.free = slices.Delete(w.free, i, i+1)
		found++
	}
	for len(held)*block < prompt+output-1 {
		held = append(held, twinBlock{})
		if len(w.free)+len(held) > w.total {
			w.free = w.free[1:]
		}
	}
	for i := range min((prompt+output-1)/block, len(keys)) {
		if held[i].named == 0 {
			w.clock++
			held[i] = twinBlock{keys[i], w.clock}
		}
	}
	slices.Reverse(held)
	for _, b := range held {
		if b.named == 0 { // nobody can find it
			w.free = slices.Insert(w.free, 0, b)
		} else {
			w.free = append(w.free, b)
		}
	}
	return found
}

// believed is the prefix cache as its changes tell it: copies by key.
type believed map[simulator.Key]int

// follow takes one step's changes; k are the keys of the one request there is.
func (b believed) follow(t *testing.T, changes []simulator.BlockChange, k []simulator.Key) {
	t.Helper()
	for _, c := range changes {
		switch c.Kind {
		case simulator.BlocksStored:
			for _, key := range k[c.First:c.Last] {
				b[key]++
			}
		case simulator.BlockLost:
			if b[c.Key]--; b[c.Key] < 0 {
				t.Fatalf("block %d was lost more often than stored", c.Key)
			}
		case simulator.CacheReset:
			clear(b)
		}
	}
}

// TestPrefixCacheAgainstTwin runs random requests one by one through the engine
// and the twin; what is found must agree each time, so evictions do too. Whoever
// follows the changes must know it beforehand.
func TestPrefixCacheAgainstTwin(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p := plain
		p.KVTokens, p.BatchTokens = 200, 1+rng.IntN(100)
		const block = 10
		e := simulator.New(p, simulator.Options{BlockTokens: block})
		w := &twin{total: p.KVTokens / block}
		told := believed{}
		for range w.total {
			w.free = append(w.free, twinBlock{})
		}
		for id := range 100 {
			prompt := 1 + rng.IntN(150)
			output := 1 + rng.IntN(40)
			// A path in a binary tree: many prefixes are shared.
			var k []simulator.Key
			node := simulator.Key(1)
			for range (prompt + output) / block {
				node = 2*node + simulator.Key(rng.IntN(2))
				k = append(k, node)
			}
			if rng.IntN(50) == 0 && e.ResetCache() {
				for i := range w.free {
					w.free[i].named = 0
				}
				clear(told)
			}
			foretold := 0
			for foretold < (prompt-1)/block && told[k[foretold]] > 0 {
				foretold++
			}
			want := w.serve(prompt, output, block, k) * block
			add(t, e, simulator.Request{ID: simulator.ID(id), PromptTokens: prompt, OutputTokens: output, Blocks: k})
			got := -1
			for {
				if _, ok := e.Schedule(); !ok {
					break
				}
				res := e.Complete()
				told.follow(t, res.Blocks, k)
				if got < 0 && len(res.Outputs) > 0 {
					got = res.Outputs[0].Cached
				}
			}
			if got != want || foretold*block != want {
				t.Fatalf("seed %d request %d: %d tokens cached, %d foretold, the twin says %d", seed, id, got, foretold*block, want)
			}
		}
	}
}

// TestNothingIsLostUnderRandomLoad adds and cancels at random and checks after
// each step what must always hold, and at the end that all memory is free.
func TestNothingIsLostUnderRandomLoad(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 2))
		p := plain
		p.KVTokens, p.HostTokens, p.MaxSeqs, p.BatchTokens = 400, 200, 1+rng.IntN(8), 20+rng.IntN(200)
		e := simulator.New(p, simulator.Options{BlockTokens: 10, ChunkTokens: 20})
		length, got := map[simulator.ID]int{}, map[simulator.ID]int{}
		host := map[simulator.Key]bool{}
		var open []simulator.ID
		preempted := 0
		check := func(res simulator.Result) {
			for _, o := range res.Outputs {
				got[o.ID]++
				if o.First != (got[o.ID] == 1) || o.Finished != (got[o.ID] == length[o.ID]) {
					t.Fatalf("seed %d: token %d of %d is marked %+v", seed, got[o.ID], length[o.ID], o)
				}
				if o.Finished {
					open = slices.DeleteFunc(open, func(id simulator.ID) bool { return id == o.ID })
				}
			}
			if res.Prefill+res.Decode > p.BatchTokens {
				t.Fatalf("seed %d: %d tokens in a step of %d", seed, res.Prefill+res.Decode, p.BatchTokens)
			}
			for _, c := range res.Host {
				if host[c.Key] != c.Evicted {
					t.Fatalf("seed %d: chunk %d reported %+v twice", seed, c.Key, c)
				}
				host[c.Key] = !c.Evicted
			}
			preempted += res.Preempted
			s := e.Stats()
			if s.Running > p.MaxSeqs || s.Running+s.Waiting != len(open) || s.BlocksHeld > s.Blocks {
				t.Fatalf("seed %d: %+v with %d requests open", seed, s, len(open))
			}
		}
		for id := range simulator.ID(200) {
			prompt, output := 1+rng.IntN(200), 1+rng.IntN(100)
			family := rng.IntN(5)
			add(t, e, simulator.Request{
				ID: id, PromptTokens: prompt, OutputTokens: output,
				Blocks: keys(family, (prompt+output)/10), Chunks: keys(family, prompt/20), NoCache: rng.IntN(10) == 0,
			})
			length[id] = output
			open = append(open, id)
			for range rng.IntN(12) {
				if _, ok := e.Schedule(); !ok {
					break
				}
				if rng.IntN(20) == 0 {
					i := rng.IntN(len(open))
					if !e.Cancel(open[i]) {
						t.Fatalf("seed %d: request %d is open and unknown", seed, open[i])
					}
					open = slices.Delete(open, i, i+1)
				}
				check(e.Complete())
			}
		}
		for range 1_000_000 {
			if _, ok := e.Schedule(); !ok {
				break
			}
			check(e.Complete())
		}
		if s := e.Stats(); len(open) > 0 || s.Running+s.Waiting+s.BlocksHeld > 0 {
			t.Errorf("seed %d: idle with %+v and %d open requests", seed, s, len(open))
		}
		for _, k := range e.HostKeys() {
			if !host[k] {
				t.Errorf("seed %d: chunk %d is held and was not reported", seed, k)
			}
			delete(host, k)
		}
		for k, held := range host {
			if held {
				t.Errorf("seed %d: chunk %d was reported and is not held", seed, k)
			}
		}
		if seed == 0 && preempted == 0 {
			t.Error("the load never preempted; it tests too little")
		}
	}
}
