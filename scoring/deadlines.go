package scoring

import (
	"container/heap"
	"time"
)

// deadlines orders reservations by the time at which something happens to them
// unasked. An entry is never searched for: when a reservation ends or gets
// another deadline its old entry just turns stale and is skipped, which keeps
// release O(1). Stale entries are swept when they outnumber the live ones, so
// the size stays below twice the open reservations plus a constant.
type deadlines struct {
	entries []deadline
	live    int
}

type deadline struct {
	at time.Time
	r  *Reservation
}

const deadlinesSlack = 64

func (d *deadlines) Len() int           { return len(d.entries) }
func (d *deadlines) Less(i, j int) bool { return d.entries[i].at.Before(d.entries[j].at) }
func (d *deadlines) Swap(i, j int)      { d.entries[i], d.entries[j] = d.entries[j], d.entries[i] }
func (d *deadlines) Push(x any)         { d.entries = append(d.entries, x.(deadline)) }
func (d *deadlines) Pop() any {
	last := d.entries[len(d.entries)-1]
	d.entries[len(d.entries)-1] = deadline{}
	d.entries = d.entries[:len(d.entries)-1]
	return last
}

// set gives r a deadline, in place of the one it had.
func (d *deadlines) set(r *Reservation, at time.Time) {
	if r.due.IsZero() {
		d.live++
	}
	r.due = at
	heap.Push(d, deadline{at, r})
	d.sweep()
}

// drop takes r's deadline away.
func (d *deadlines) drop(r *Reservation) {
	if r.due.IsZero() {
		return
	}
	r.due = time.Time{}
	d.live--
	d.sweep()
}

// next takes out a reservation whose deadline is not after now, or nil.
func (d *deadlines) next(now time.Time) *Reservation {
	for len(d.entries) > 0 {
		first := d.entries[0]
		if !first.at.Equal(first.r.due) {
			heap.Pop(d)
			continue
		}
		if first.at.After(now) {
			return nil
		}
		heap.Pop(d)
		first.r.due = time.Time{}
		d.live--
		return first.r
	}
	return nil
}

func (d *deadlines) sweep() {
	if len(d.entries) <= 2*d.live+deadlinesSlack {
		return
	}
	kept := d.entries[:0]
	for _, e := range d.entries {
		if e.at.Equal(e.r.due) {
			kept = append(kept, e)
		}
	}
	clear(d.entries[len(kept):])
	d.entries = kept
	heap.Init(d)
}
