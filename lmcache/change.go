package lmcache

import "sync"

// changeKind is what a change does to the Index.
type changeKind int

const (
	changeOps changeKind = iota // operations in order
	changeAdmit
	changeRegister
	changeConfirm
	changeDeregister
	changeDropInstance
	changeClear
)

// change is one step of the Index, on its way there.
type change struct {
	kind     changeKind
	worker   WorkerID
	location string
	ops      []KVOp    // changeOps
	keys     []WireKey // changeAdmit
}

// weight is the room that a change takes, in keys.
func (c change) weight() int { return 1 + len(c.ops) + len(c.keys) }

// optional: the Index is merely incomplete without it. The others make it
// wrong.
func (c change) optional() bool { return c.kind == changeOps || c.kind == changeAdmit }

// queueKeys bounds what waits for the Index: some 20 MB, half a second of its
// work.
const queueKeys = 500_000

// changes is the bounded queue between the sockets and the Index. Safe for
// concurrent use.
type changes struct {
	limit int           // in keys; set once
	ready chan struct{} // one token: something waits

	mu      sync.Mutex // guards the following fields
	waiting []change
	// weight is of all that is waiting or being applied. Changes that are
	// optional have room up to limit, the others up to twice that.
	weight int
}

func newChanges(limit int) *changes {
	return &changes{limit: limit, ready: make(chan struct{}, 1)}
}

// push queues c; false: there is no room.
func (q *changes) push(c change) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	limit := q.limit
	if !c.optional() {
		limit *= 2
	}
	if q.weight+c.weight() > limit {
		return false
	}
	q.weight += c.weight()
	q.waiting = append(q.waiting, c)
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return true
}

// take empties the queue into buf; done frees the room of one change.
func (q *changes) take(buf []change) []change {
	q.mu.Lock()
	defer q.mu.Unlock()
	buf = append(buf[:0], q.waiting...)
	clear(q.waiting)
	q.waiting = q.waiting[:0]
	return buf
}

func (q *changes) done(c change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.weight -= c.weight()
}

// depth is what waits, in keys.
func (q *changes) depth() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.weight
}

// apply changes the Index. scratch is used for keys and returned for the next
// call.
func apply(ix *Index, c change, scratch []Key) []Key {
	switch c.kind {
	case changeOps:
		for begin := 0; begin < len(c.ops); {
			evict := c.ops[begin].Evict
			scratch = scratch[:0]
			for _, op := range c.ops[begin:] {
				if op.Evict != evict {
					break
				}
				scratch = append(scratch, op.Key.Key)
			}
			if evict {
				ix.Evict(c.worker, c.location, scratch)
			} else {
				ix.Admit(c.worker, c.location, scratch)
			}
			begin += len(scratch)
		}
	case changeAdmit:
		scratch = scratch[:0]
		for _, k := range c.keys {
			scratch = append(scratch, k.Key)
		}
		ix.Admit(c.worker, c.location, scratch)
	case changeRegister:
		ix.Register(c.worker)
	case changeConfirm:
		ix.Confirm(c.worker)
	case changeDeregister:
		ix.Deregister(c.worker)
	case changeDropInstance:
		ix.DropInstance(c.worker.Instance)
	case changeClear:
		ix.Clear(c.worker, c.location)
	}
	return scratch
}
