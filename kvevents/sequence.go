package kvevents

import (
	"math"
	"time"
)

// stream follows one publisher: one rank of one endpoint. It decides from the
// sequence numbers what is new, what came twice, what is missing and whether
// the engine was started again, and applies the batches in order. It has no
// socket and no clock; the subscriber's goroutine owns it.
//
// What the numbers tell: an engine counts its messages from 0, live messages
// come in order, and a replay may run ahead of them. What they cannot tell is a
// new life whose first message to reach us has by chance the very number that
// was expected of the old one; an engine takes longer to start than a connection
// takes to come back, so its first message is seen.
type stream struct {
	view  *view  // set once
	batch *batch // set once; the goroutine's scratch
	// replayable: the engine can be asked for what was missed; set once.
	replayable bool

	// begun: a first message was applied, or a replay told that there was none.
	// next is the number expected then.
	begun bool
	next  uint64
	// lastTime is the engine's time of the message before next; NaN where it is
	// not known.
	lastTime float64
	// live is the number of the last live message; heard is false before it,
	// and after the engine's restart.
	heard bool
	live  uint64
	// asked is the replay under way, nil where none is.
	asked *replay
	// tried: the gap before the next message was asked for already.
	tried bool
}

// replay is one question for missed messages, and what came meanwhile.
type replay struct {
	// from is the number to ask for. It is one before what is missing, whose
	// answer proves that it is still the same life of the engine.
	from uint64
	// proven: that answer came. restarted: it was another life's. progress:
	// some answer was applied. hole: some answer before another is missing.
	proven, restarted, progress, hole bool

	// pending are live messages to be applied afterwards. Bounded by
	// maxPending and maxPendingBytes.
	pending []message
	bytes   int
}

// Bounds on what is kept while a replay is under way: a busy engine publishes
// some hundred messages a second, of some ten kilobytes.
const (
	maxPending      = 8192
	maxPendingBytes = 64 << 20
)

// begin asks for all that the engine still has: a subscriber that comes late
// missed it.
func (s *stream) begin() {
	s.lastTime = math.NaN()
	if s.replayable {
		s.ask(0)
	}
}

// ask begins a replay; the live messages that wait stay in line.
func (s *stream) ask(missing uint64) {
	r := &replay{from: missing}
	if s.begun && missing > 0 {
		r.from--
	}
	if s.asked != nil {
		r.pending, r.bytes = s.asked.pending, s.asked.bytes
	}
	s.asked = r
	s.view.note(func(a *account) { a.replays++ })
}

// message takes one live message.
func (s *stream) message(now time.Time, m message) {
	if r := s.asked; r != nil {
		r.pending = append(r.pending, m)
		r.bytes += len(m.payload)
		if len(r.pending) > maxPending || r.bytes > maxPendingBytes {
			s.replayFailed(now)
		}
		return
	}
	s.take(now, m)
}

// take applies a live message in its turn. It may begin a replay, behind which
// the message waits.
func (s *stream) take(now time.Time, m message) {
	switch {
	case s.begun && m.seq < s.next && !s.restarted(m):
		s.heard, s.live = true, m.seq // A replay had it already.
		return
	case s.begun && m.seq < s.next:
		s.view.note(func(a *account) { a.restarts++ })
		s.forget(clearedRestart)
	}
	if gap := m.seq > s.next; gap && s.replayable && !s.tried {
		if s.begun {
			s.view.note(func(a *account) { a.gaps++ })
		}
		s.ask(s.next)
		s.asked.pending = append(s.asked.pending, m)
		s.asked.bytes += len(m.payload)
		return
	} else if gap && s.begun {
		if !s.replayable {
			s.view.note(func(a *account) { a.gaps++ })
		}
		s.forget(clearedGap)
	}
	s.tried = false
	s.heard, s.live = true, m.seq
	s.apply(now, m.seq, m.payload, true)
}

// restarted tells a message of a new life from one that a replay had already,
// where the number is below the one expected. Live messages come in order, so
// a number at or below the last live one is a new life's; and whatever a replay
// had is no later than its end.
func (s *stream) restarted(m message) bool {
	if s.heard && m.seq <= s.live {
		return true
	}
	t, ok := timestamp(m.payload)
	return ok && t > s.lastTime
}

// apply applies the message of that number, and expects the next. live: it is
// not told again.
func (s *stream) apply(now time.Time, seq uint64, payload []byte, live bool) {
	s.begun, s.next = true, seq+1
	if err := s.batch.decode(payload); err != nil {
		// What it said is lost, so what we believe may be wrong from here on.
		s.lastTime = math.NaN()
		s.view.note(func(a *account) { a.badFrames++ })
		s.view.clear(clearedFrame)
		return
	}
	s.lastTime = s.batch.time
	s.view.apply(s.batch, now, live)
}

// forget clears the view and expects nothing in particular.
func (s *stream) forget(reason string) {
	s.view.clear(reason)
	s.begun, s.next, s.lastTime, s.heard, s.tried = false, 0, math.NaN(), false, false
}

// answer takes one message of a replay.
func (s *stream) answer(now time.Time, seq uint64, payload []byte) {
	r := s.asked
	switch {
	case r == nil || r.restarted || seq == endSequence:
	case s.begun && seq == s.next-1 && !r.progress:
		// Asked for only to see whether it is the one we know.
		t, ok := timestamp(payload)
		r.proven = true
		r.restarted = ok && !math.IsNaN(s.lastTime) && t != s.lastTime
	case s.begun && seq < s.next:
	case s.begun && (seq > s.next || s.next > r.from && !r.proven && !r.progress):
		r.hole = true
	default:
		// In order, or the first there is.
		r.progress = true
		s.apply(now, seq, payload, false)
	}
}

// replayed ends a replay: all answers came.
func (s *stream) replayed(now time.Time) {
	switch r := s.asked; {
	case r == nil:
	case r.restarted:
		s.view.note(func(a *account) { a.restarts++ })
		s.forget(clearedRestart)
		s.ask(0)
	case r.hole && r.progress:
		s.ask(s.next) // The engine's socket dropped some.
	case r.hole:
		// The engine has no longer what we need. What it still has is more
		// than nothing.
		s.forget(clearedGap)
		s.ask(0)
	default:
		s.begun = true
		s.view.settle()
		s.resume(now)
	}
}

// replayFailed ends a replay that gave no answer in time, or took too long.
func (s *stream) replayFailed(now time.Time) {
	r := s.asked
	if r == nil {
		return
	}
	s.view.note(func(a *account) { a.failed++ })
	if r.progress && len(r.pending) <= maxPending && r.bytes <= maxPendingBytes {
		s.ask(s.next)
		return
	}
	s.resume(now)
}

// resume goes on with the live messages that waited. If the first is not the
// one expected, what lies between is lost for good.
func (s *stream) resume(now time.Time) {
	pending := s.asked.pending
	s.asked = nil
	s.tried = true
	for _, m := range pending {
		s.message(now, m)
	}
	s.tried = false
}
