package lmcache

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQueueIsBounded(t *testing.T) {
	q := newChanges(100)
	report := change{kind: changeOps, ops: make([]KVOp, 29)} // with its own cost, 30
	for i := range 3 {
		if !q.push(report) {
			t.Fatalf("report %d found no room", i)
		}
	}
	if q.push(report) {
		t.Error("120 of 100 were taken")
	}
	// What must not be missed has as much room again.
	control := 0
	for q.push(change{kind: changeRegister}) {
		control++
	}
	if control != 110 {
		t.Errorf("%d further changes were taken, want 110", control)
	}
	// Room is free once the change is applied, not once it is taken.
	taken := q.take(nil)
	if q.push(report) || len(taken) != 3+control || q.depth() != 200 {
		t.Errorf("taken %d, depth %d", len(taken), q.depth())
	}
	for _, c := range taken {
		q.done(c)
	}
	if !q.push(report) || q.depth() != 30 {
		t.Errorf("depth %d after all is done, want 30", q.depth())
	}
	select {
	case <-q.ready:
	default:
		t.Error("nobody is told that something waits")
	}
}

func TestApplyKeepsTheOrderOfOperations(t *testing.T) {
	ix := NewIndex(IndexConfig{MaxKeys: 100})
	w := worker0("a")
	apply(ix, change{kind: changeOps, worker: w, location: cpu, ops: ops(0, 1, 2, 3, -2, 2, 4, -4, -3)}, nil)
	if diff := cmp.Diff(map[Key]bool{1: true, 2: true}, keysOf(ix, w, 10)); diff != "" {
		t.Error(diff)
	}
}

// keysOf is the keys up to n that the worker's instance holds.
func keysOf(ix *Index, w WorkerID, n int) map[Key]bool {
	held := map[Key]bool{}
	for k := Key(1); k <= Key(n); k++ {
		if ix.Match(nil, []Key{k}, []string{w.Instance})[0].Chunks == 1 {
			held[k] = true
		}
	}
	return held
}
