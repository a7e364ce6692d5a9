package lmcache

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// engine is a worker of era D as LMCache wrote it: it keeps a table of keys,
// numbers its reports, and tells all keys when a heartbeat's answer asks it to.
type engine struct {
	*bench
	rng  *rand.Rand
	self Registration
	held map[Key]bool
	seq  int64
	// pipe is what was pushed and not yet delivered, in order.
	pipe []Message
	// snapshot is the keys of the running sync by batch; nil: none runs.
	snapshot [][]WireKey
	syncID   string
	syncs    int
}

const engineKeys = 40

// boot is an engine's start; its registration may get lost.
func (e *engine) boot(lost bool) {
	e.held, e.seq, e.pipe, e.snapshot = map[Key]bool{}, 0, nil, nil
	if !lost {
		e.handle(e.now, &RegisterMsg{e.self}, true)
	}
}

// change stores and drops some chunks and reports it.
func (e *engine) change() {
	m := &BatchedKVOperationMsg{Worker: e.self.Worker, Location: cpu}
	for range 1 + e.rng.IntN(5) {
		k := Key(1 + e.rng.IntN(engineKeys))
		m.Operations = append(m.Operations, KVOp{Key: SignedKey(k), Seq: e.seq, Evict: e.held[k]})
		if e.seq++; e.held[k] {
			delete(e.held, k)
		} else {
			e.held[k] = true
		}
	}
	e.pipe = append(e.pipe, m)
}

// deliver lets n pushed messages arrive.
func (e *engine) deliver(n int) {
	for ; n > 0 && len(e.pipe) > 0; n-- {
		e.handle(e.now, e.pipe[0], false)
		e.pipe = e.pipe[1:]
	}
}

// lose drops one pushed message. Not the first report of a worker whose numbers
// are not known, after a restart of ours or the start of a sync: such a loss
// cannot be seen.
func (e *engine) lose() {
	if len(e.pipe) == 0 {
		return
	}
	i := e.rng.IntN(len(e.pipe))
	if _, report := e.pipe[i].(*BatchedKVOperationMsg); report {
		w := e.workers[e.self.Worker]
		if w == nil || w.streams[cpu] == nil || !w.streams[cpu].known {
			return
		}
	}
	e.pipe = append(e.pipe[:i:i], e.pipe[i+1:]...)
}

func (e *engine) beats() {
	if e.asks(e.self) == "" || e.snapshot != nil {
		return
	}
	// The keys are listed before the sync is announced, and what was pushed
	// before may still be on its way.
	e.syncs++
	e.syncID = string(rune('A' + e.syncs%26))
	e.snapshot = [][]WireKey{{}}
	for k := range e.held {
		last := len(e.snapshot) - 1
		if e.snapshot[last] = append(e.snapshot[last], SignedKey(k)); len(e.snapshot[last]) == 3 {
			e.snapshot = append(e.snapshot, []WireKey{})
		}
	}
	answer := e.handle(e.now, &FullSyncStartMsg{e.self.Worker, cpu, e.syncID, len(e.held), len(e.snapshot)}, true).(*FullSyncStartRetMsg)
	if !answer.Accepted {
		e.snapshot = nil
		return
	}
	for id := range e.snapshot {
		e.sendBatch(id)
	}
	e.pipe = append(e.pipe, &FullSyncEndMsg{e.self.Worker, cpu, e.syncID, len(e.held)})
}

func (e *engine) sendBatch(id int) {
	e.pipe = append(e.pipe, &FullSyncBatchMsg{e.self.Worker, cpu, e.syncID, id, e.snapshot[id]})
}

// polls asks for the status of a sync as the frozen engine does.
func (e *engine) polls() {
	if e.snapshot == nil {
		return
	}
	s := e.status(e.self.Worker, e.syncID)
	if s.CanExitFreeze {
		e.snapshot = nil
		return
	}
	for _, id := range s.MissingBatches {
		e.sendBatch(id)
	}
	if len(s.MissingBatches) > 0 {
		e.pipe = append(e.pipe, &FullSyncEndMsg{e.self.Worker, cpu, e.syncID, 0})
	}
}

// Whatever is lost on the way and whoever restarts when, in the end the Index
// holds what the engine holds.
func TestIndexConvergesToWhatTheEngineHolds(t *testing.T) {
	for seed := range uint64(300) {
		e := &engine{bench: newBench(t), rng: rand.New(rand.NewPCG(seed, 1)), self: at(worker0("e"), "10.0.0.1", 8001)}
		e.boot(false)
		for range 200 {
			e.now = e.now.Add(time.Duration(e.rng.IntN(3000)) * time.Millisecond)
			switch n := e.rng.IntN(100); {
			case n < 40:
				e.change()
			case n < 70:
				e.deliver(1 + e.rng.IntN(3))
			case n < 73:
				e.lose()
			case n < 85:
				e.beats()
			case n < 93:
				e.polls()
			case n < 96:
				e.check(e.now)
			case n < 97: // the engine restarts
				e.boot(e.rng.IntN(2) == 0)
			case n < 98: // we restart
				fresh := newBench(t)
				fresh.now = e.now
				e.bench = fresh
			case n < 99: // the queue is full for once
				e.full = true
				e.deliver(1)
				e.full = false
			}
		}
		// Calm: everything arrives, the sync ends. One last report shows a loss
		// that nothing came after.
		e.change()
		for range 40 {
			e.deliver(len(e.pipe))
			e.polls()
			e.deliver(len(e.pipe))
			e.now = e.now.Add(10 * time.Second)
			e.check(e.now)
			e.beats()
		}
		if diff := cmp.Diff(e.held, keysOf(e.index, e.self.Worker, engineKeys)); diff != "" {
			t.Fatalf("seed %d (-engine +index):\n%s", seed, diff)
		}
		if state := e.workers[e.self.Worker].syncState(); state == syncWanted || state == syncRunning {
			t.Fatalf("seed %d: in the end the sync is %s", seed, state)
		}
	}
}
