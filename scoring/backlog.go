package scoring

import "time"

// line is reservations of one endpoint in the order in which they joined it,
// linked through themselves: joining and leaving cost the same however long it
// is.
type line struct{ head, tail *Reservation }

func (l *line) join(r *Reservation) {
	r.before, r.after = l.tail, nil
	if l.tail != nil {
		l.tail.after = r
	} else {
		l.head = r
	}
	l.tail = r
}

func (l *line) leave(r *Reservation) {
	if r.before != nil {
		r.before.after = r.after
	} else {
		l.head = r.after
	}
	if r.after != nil {
		r.after.before = r.before
	} else {
		l.tail = r.before
	}
	r.before, r.after = nil, nil
}

// leastShare is what the oldest prefill counts at least, of its work: how far
// it is can only be guessed.
const leastShare = 0.1

// backlog is how long the endpoint will be busy with what it was sent. The
// engine works on the oldest prefill since it was dispatched or gave the last
// first token, whichever was later, so that much of it is over.
func (a *account) backlog(now time.Time) time.Duration {
	r := a.queue.head
	if r == nil {
		return 0
	}
	under := now.Sub(later(r.dispatched, a.lastFirst))
	oldest := max(r.work-max(0, under), time.Duration(leastShare*float64(r.work)))
	return a.work - r.left + min(r.left, oldest)
}

// fallsTo is when the backlog will have fallen to limit, below what it is now, by
// time alone; zero: it will not.
func (a *account) fallsTo(limit time.Duration) time.Time {
	r := a.queue.head
	if r == nil {
		return time.Time{}
	}
	oldest := limit - (a.work - r.left) // what the oldest may count then
	if oldest < time.Duration(leastShare*float64(r.work)) {
		return time.Time{}
	}
	return later(r.dispatched, a.lastFirst).Add(r.work - oldest)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
