package lmcache

import "time"

// stream follows the sequence numbers of one worker's one location: they begin
// at 0 when the engine starts and grow by one with each operation.
type stream struct {
	next  int64
	known bool // false: the next operation says where we are
	// back: the last report went back behind next.
	back bool
}

// take keeps the operations not seen before, in place. lost is how many were
// missed, repeated how many came again. restarted says that the sender counts
// anew: it is back at 0, or goes back in two reports in a row, of which the
// first may have been a repetition.
func (s *stream) take(ops []KVOp) (fresh []KVOp, lost, repeated int64, restarted bool) {
	fresh = ops[:0]
	for _, op := range ops {
		switch {
		case !op.numbered():
			fresh = append(fresh, op)
			continue
		case !s.known:
			// Whoever begins at 0 has nothing yet, whatever a sync told before.
			restarted = restarted || op.Seq == 0
		case op.Seq == s.next:
		case op.Seq > s.next:
			lost += op.Seq - s.next
		case op.Seq == 0 || s.back:
			restarted = true
			lost += op.Seq
		default:
			repeated++
			continue
		}
		s.known, s.next, s.back = true, op.Seq+1, false
		fresh = append(fresh, op)
	}
	if repeated > 0 {
		s.back = true
	}
	return fresh, lost, repeated, restarted
}

// numbered is false for NoSeq and for what no engine ever counts up to.
func (o KVOp) numbered() bool { return o.Seq >= 0 && o.Seq < 1<<62 }

// sequence drops what was reported before and notes what got lost.
func (g *registry) sequence(now time.Time, w *worker, location string, ops []KVOp) []KVOp {
	s := w.streams[location]
	if s == nil {
		if len(w.streams) >= maxStreams {
			return ops
		}
		// Whose registration we saw begins at 0; anyone else began before us.
		s = &stream{known: w.heard()}
		w.streams[location] = s
	}
	fresh, lost, repeated, restarted := s.take(ops)
	g.counts.repeated += uint64(repeated) //nolint:gosec // G115: counts up from 0
	if restarted {
		// The engine restarted and its registration got lost.
		g.send(now, w, change{kind: changeClear, worker: w.Worker, location: location})
	}
	if lost == 0 && repeated == 0 {
		return fresh
	}
	// What came again was skipped: ZeroMQ repeats nothing, so it may have been
	// the sender's restart.
	// A full sync tells the keys in memory only; freezing the engine for what
	// it cannot mend would be a loss.
	if location == LocationCPU {
		w.needSync = reasonGap
	}
	if lost == 0 {
		return fresh
	}
	w.gaps++
	g.counts.gaps++
	g.counts.lost += uint64(lost) //nolint:gosec // G115: positive
	if g.lossLog.allow(now) {
		g.log.Warn("LMCache reports got lost on the way", "instance", w.Worker.Instance, "worker", w.Worker.Worker,
			"location", location, "operations", lost)
	}
	return fresh
}

// heard says that we saw the worker's own registration, and with it the begin
// of its reports.
func (w *worker) heard() bool { return !w.provisional && !w.registered.IsZero() && !w.midway }
