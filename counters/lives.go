package counters

import (
	"slices"
	"time"
)

// lives tells the restart of an engine from several processes behind one
// address (a Service, a load balancer), of which now one answers and now
// another. Taken for restarts, these would empty again and again what is
// believed to be cached. The owner serialises the calls.
type lives struct {
	// starts are when former processes began, the latest last; at most maxStarts.
	starts []time.Time
	// changes are when another process than before answered, of the last
	// changesWithin; at most maxChanges.
	changes []time.Time
	// until is how long several are believed to answer; zero: one does.
	until time.Time
}

const (
	// maxStarts is more engines than anybody puts behind one address on purpose.
	maxStarts = 16
	// So many other processes within that time are no restarts: an engine loads
	// its model first. It is for engines that do not say when they began.
	maxChanges    = 4
	changesWithin = time.Minute
	// severalFor is how long one process alone has to answer before it is
	// believed to be alone.
	severalFor = 10 * time.Minute
)

// several takes in a reading and whether it is of another process than the one
// before. It reports whether several answer by turns.
func (l *lives) several(r, before *Reading, other bool) bool {
	if other {
		// No engine is followed by one that began before it, and one that is
		// gone does not come back.
		returned := !r.Started.IsZero() && (r.Started.Before(before.Started) ||
			slices.ContainsFunc(l.starts, func(t time.Time) bool { return r.Started.Sub(t).Abs() <= startJitter }))
		l.starts = append(slices.DeleteFunc(l.starts, before.Started.Equal), before.Started)
		l.starts = l.starts[max(0, len(l.starts)-maxStarts):]
		l.changes = append(slices.DeleteFunc(l.changes, func(t time.Time) bool { return r.At.Sub(t) > changesWithin }), r.At)
		if returned || len(l.changes) >= maxChanges || r.At.Before(l.until) {
			l.until, l.changes = r.At.Add(severalFor), nil
		}
	}
	return r.At.Before(l.until)
}

// ofSeveral is r without what one process counts of itself: nothing of that can
// be compared with what another counts.
func (r *Reading) ofSeveral() *Reading {
	return &Reading{
		At: r.At, Several: true,
		CapacityTokens: r.CapacityTokens, HostTokens: r.HostTokens, Ranks: r.Ranks, BlockSize: r.BlockSize,
		PrefixCaching: r.PrefixCaching, HashAlgorithm: r.HashAlgorithm,
		Running: r.Running, Waiting: r.Waiting, Usage: r.Usage,
	}
}
