package extproc

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/firsttoken/firsttoken/scoring"
)

// followed are the requests that wait for a first token with a deadline. Safe
// for concurrent use.
type followed struct {
	mu sync.Mutex
	// byID is guarded by mu. Each leaves at its first token, at its end, or when
	// its last deadline is over, whatever is told of it.
	byID map[string]*tries
}

func (f *followed) find(id string) *tries {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byID[id]
}

func (f *followed) add(t *tries) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byID[t.id] = t
}

func (f *followed) remove(t *tries) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byID, t.id)
}

// tries follow one request from endpoint to endpoint until its first token. What
// Envoy does is told by the streams of its filter (opened, closed, answered) and
// by the access log (concluded); of an engine that sends no headers there is no
// stream, so a timer of our own tells what Envoy must have done by then.
//
//	try n ── first chunk ──────────────→ over: answered
//	      ── deadline, n not the last ─→ missed; try n+1 at the next endpoint
//	      ── deadline, n the last ─────→ missed; over: exhausted
//	      ── stream ended before it ───→ lost: a reset, or the client left
//	lost  ── opened(n+1) ──────────────→ try n+1
//	      ── concluded, or deadline ───→ over
//	any   ── left, then concluded, or not for accessLogGrace → over
type tries struct {
	plan
	// The following are set once.
	server  *Server
	id      string
	booking *scoring.Reservation

	// mu guards the following fields; nothing else is called under it.
	mu sync.Mutex
	// number is the try under way, from 1 on, at the endpoint at, since began.
	number int
	at     scoring.Endpoint
	began  time.Time
	// answering: its good headers came. lost is when the try ended before its
	// deadline; zero: it did not.
	answering bool
	lost      time.Time
	// gone: the request is over, which the access log may still say more of.
	gone bool
	// missed are the names of the endpoints that missed the deadline, resets how
	// many tries ended otherwise after the engine had begun to answer.
	missed []string
	resets int
	over   bool
	timer  *time.Timer
}

// Envoy's timer begins after ours, with the last byte of the request; cached
// clocks in its event loop let it end a little early. A try that was given up is
// held to have had its deadline from so much of it on, and the timer that needs
// no word of Envoy waits so much longer.
const (
	almostAll  = 0.95
	timerGrace = 100 * time.Millisecond
)

// follow begins with the first try of a decision, before Envoy hears of it. Nil
// where no try has a deadline.
func (s *Server) follow(d *scoring.Decision) *tries {
	p, ok := s.cfg.Rescue.plan(d, s.cfg.Fallbacks)
	if !ok {
		return nil
	}
	t := &tries{plan: p, server: s, id: d.ID, booking: d.Reservation, number: 1, at: p.endpoints[0], began: time.Now()}
	t.booking.Await(time.Duration(len(p.endpoints)) * (p.deadline + time.Second))
	s.followed.add(t) // The timer takes it out, however short the deadline is.
	t.mu.Lock()
	t.timer = time.AfterFunc(p.deadline+timerGrace, t.due) // ends by itself; stopped at the first token
	t.mu.Unlock()
	s.metrics.deadline.Observe(p.deadline.Seconds())
	s.tellRescue(t.id, Rescue{Deadline: p.deadline, Tries: 1})
	return t
}

// unsent takes in that Envoy was not told of the decision. t may be nil.
func (t *tries) unsent() {
	if t != nil {
		t.change(func(n *news, _ time.Time) { n.over = true })
	}
}

// miss is a try that was given up at its deadline.
type miss struct {
	endpoint scoring.Endpoint
	number   int
	began    time.Time
}

// news is what follows from an event, to be acted on once mu is free.
type news struct {
	misses []miss
	// next is where the request is tried now; empty: where it was.
	next string
	view Rescue
	over bool
}

// change takes in an event under mu and acts on what follows.
func (t *tries) change(event func(n *news, now time.Time)) {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	var n news
	event(&n, time.Now())
	if n.over {
		t.over = true
		t.timer.Stop()
	}
	n.view.Deadline, n.view.Tries, n.view.Missed = t.deadline, t.number, slices.Clone(t.missed)
	t.mu.Unlock()
	t.tell(n)
}

// tell acts on news.
func (t *tries) tell(n news) {
	s := t.server
	for _, m := range n.misses {
		s.missedDeadline(t, m)
	}
	if n.next != "" {
		s.served(t.booking, n.next)
	}
	if n.over {
		s.followed.remove(t)
	}
	if n.view.Outcome != "" {
		s.metrics.rescues.WithLabelValues(string(n.view.Outcome)).Inc()
	}
	if n.over || len(n.misses) > 0 {
		s.tellRescue(t.id, n.view)
	}
}

func (s *Server) tellRescue(id string, r Rescue) {
	if s.rescued != nil {
		s.rescued(id, r)
	}
}

// giveUp takes in that the present try had its deadline, and goes on to the next
// one. The caller holds mu.
func (t *tries) giveUp(n *news, now time.Time) {
	n.misses = append(n.misses, miss{t.at, t.number, t.began})
	t.missed = append(t.missed, t.at.Name)
	if t.number >= len(t.endpoints) {
		n.over, n.view.Outcome = true, rescueExhausted
		return
	}
	t.begin(t.number+1, t.endpoints[t.number], now)
	n.next = t.at.Address
}

// begin makes a try the present one. The caller holds mu.
func (t *tries) begin(number int, at scoring.Endpoint, began time.Time) {
	t.number, t.at, t.began, t.answering, t.lost = number, at, began, false, time.Time{}
	t.timer.Reset(time.Until(began) + t.deadline + timerGrace)
}

// hadDeadline reports whether a try that ended now had all of its time. The
// caller holds mu.
func (t *tries) hadDeadline(now time.Time) bool {
	return now.Sub(t.began) >= time.Duration(almostAll*float64(t.deadline))
}

// due is the timer's: Envoy has given the present try up by now. Where Envoy has
// shown no try to us yet, only the access log can tell, after the last of them.
func (t *tries) due() {
	shown := t.server.holds.Load()
	t.change(func(n *news, now time.Time) {
		rest := t.deadline - now.Sub(t.began)
		if !shown {
			rest += time.Duration(len(t.endpoints)-1) * t.deadline
		}
		switch {
		case rest > 0 && !t.gone:
			t.timer.Reset(rest + timerGrace) // also where it was set anew while it fired
		case t.gone || !t.lost.IsZero() || !shown:
			n.over = true
			n.view.Outcome = t.otherwise(rescueCancelled)
		default:
			t.giveUp(n, now)
		}
	})
}

// otherwise is an outcome for a request of which a try was given up, and none for
// any other. The caller holds mu.
func (t *tries) otherwise(o RescueOutcome) RescueOutcome {
	if len(t.missed) == 0 && t.resets == 0 {
		return ""
	}
	return o
}

// opened takes in that the endpoint at address began to answer try number.
func (t *tries) opened(number int, address string) {
	t.change(func(n *news, now time.Time) {
		if number < t.number {
			return // The timer was ahead of Envoy.
		}
		if number > t.number {
			began := now
			switch {
			case !t.lost.IsZero():
				began = t.lost
				t.resetIf(t.answering)
			case t.hadDeadline(now):
				t.giveUp(n, now)
				if n.over {
					return
				}
			default:
				t.resetIf(t.answering) // the news of its end comes later
			}
			t.begin(number, t.at, began)
		}
		t.at, t.answering = t.endpointAt(address), true
	})
}

// resetIf counts a try that ended after the engine had begun to answer. The caller
// holds mu.
func (t *tries) resetIf(answering bool) {
	if answering {
		t.resets++
	}
}

// endpointAt is the endpoint of an address, which Envoy may have found by itself.
func (t *tries) endpointAt(address string) scoring.Endpoint {
	i := slices.IndexFunc(t.endpoints, func(e scoring.Endpoint) bool { return e.Address == address })
	if i < 0 {
		return scoring.Endpoint{Name: address, Address: address}
	}
	return t.endpoints[i]
}

// closed takes in that the stream of try number ended without a first token.
func (t *tries) closed(number int) {
	t.change(func(n *news, now time.Time) {
		switch {
		case number != t.number:
		case t.hadDeadline(now):
			t.giveUp(n, now)
		default:
			t.lost = now
		}
	})
}

// refused takes in that try number was answered by an error. Envoy tries the next
// endpoint, or lets the client have it.
func (t *tries) refused(number int) {
	t.change(func(_ *news, now time.Time) {
		if number == t.number {
			t.answering, t.lost = false, now
		}
	})
}

// answered takes in the first token.
func (t *tries) answered() {
	if !t.server.holds.Load() {
		t.server.warnUnshown()
	}
	t.change(func(n *news, _ time.Time) {
		n.over = true
		n.view.Outcome = t.otherwise(rescueAnswered)
	})
}

// lifted takes in that the last try has no deadline any more.
func (t *tries) lifted() {
	t.change(func(n *news, _ time.Time) {
		n.over = true
		n.view.Outcome = t.otherwise(rescueLifted)
	})
}

// left takes in that the request is over: its client left, or Envoy answered it.
// The tries that it may still have had are nobody's to miss.
func (t *tries) left() {
	t.change(func(_ *news, now time.Time) {
		if t.number == len(t.endpoints) && t.hadDeadline(now) {
			return // Envoy gave up the last try; the timer tells.
		}
		t.gone = true
		t.timer.Reset(accessLogGrace)
	})
}

// concluded takes in the access log's record.
func (t *tries) concluded(entry *datav3.HTTPAccessLogEntry) {
	outcome := outcomeOf(entry)
	common := entry.GetCommonProperties()
	t.change(func(n *news, now time.Time) {
		n.over = true
		if !common.GetResponseFlags().GetUpstreamRequestTimeout() {
			n.view.Outcome = t.otherwise(map[scoring.Outcome]RescueOutcome{
				scoring.OutcomeComplete: rescueAnswered, scoring.OutcomeCancelled: rescueCancelled, scoring.OutcomeError: rescueExhausted,
			}[outcome])
			return
		}
		// Envoy gave up the last try, and those before it that nothing was seen of.
		last := min(max(t.number, int(common.GetUpstreamRequestAttemptCount())), len(t.endpoints))
		if !t.lost.IsZero() && t.number < last {
			t.resetIf(t.answering)
			t.begin(t.number+1, t.endpoints[t.number], t.lost)
		}
		for t.number < last {
			t.giveUp(n, now.Add(-time.Duration(last-t.number)*t.deadline))
		}
		t.giveUp(n, now)
		t.number = last
		n.over, n.next, n.view.Outcome = true, "", rescueExhausted
	})
}

// present is the number of the try under way and when it began.
func (t *tries) present() (number int, began time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.number, t.began
}

// missedDeadline tells of a try that was given up. An engine that gave others
// their first tokens meanwhile is late, which more requests do not cure; one
// that gave none may hang.
func (s *Server) missedDeadline(t *tries, m miss) {
	address, cause := m.endpoint.Address, missLate
	spoke := func() bool { return s.picker.Heard(address).After(m.began) }
	if !spoke() {
		cause = missSilent
	}
	s.metrics.misses.WithLabelValues(string(cause)).Inc()
	if s.missed != nil {
		s.missed(address, cause == missSilent)
	}
	if cause == missSilent {
		s.suspects.add(address, s.picker.Endpoints())
		if spoke() {
			s.heard(address) // It came before the endpoint was a suspect, and lifted nothing.
		}
	}
	if s.missSampler.take(time.Now()) {
		s.log.Warn("endpoint gave no first token in time; the request was taken from it",
			slog.String("endpoint", m.endpoint.Name), slog.String("id", t.id), slog.Int("try", m.number),
			slog.Float64("deadline_seconds", t.deadline.Seconds()), slog.String("cause", string(cause)))
	}
}

// missLogs is how many missed deadlines are logged a second: an engine that hangs
// under load misses hundreds at once.
const missLogs = 5

// suspects are the addresses of endpoints that missed a deadline without a word.
// Safe for concurrent use.
type suspects struct {
	mu sync.Mutex
	// addresses is guarded by mu; bounded by the endpoints there are.
	addresses []string
}

// add takes in an address and forgets those that are no endpoint's any more.
func (s *suspects) add(address string, endpoints []scoring.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.addresses, address) {
		s.addresses = append(s.addresses, address)
	}
	s.addresses = slices.DeleteFunc(s.addresses, func(a string) bool {
		return !slices.ContainsFunc(endpoints, func(e scoring.Endpoint) bool { return e.Address == a })
	})
}

// remove takes out an address and reports whether it was there.
func (s *suspects) remove(address string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.addresses, address)
	if i < 0 {
		return false
	}
	s.addresses = slices.Delete(s.addresses, i, i+1)
	return true
}

// heard takes in a first token of the endpoint at address.
func (s *Server) heard(address string) {
	if s.suspects.remove(address) && s.alive != nil {
		s.alive(address)
	}
}

// warnUnshown says once that Envoy does not do its part.
func (s *Server) warnUnshown() {
	s.unshown.Do(func() {
		s.log.Warn("server.rescue.enabled is true, but Envoy shows no tries: requests are not rescued; " +
			"give Envoy the configuration anew (firsttoken envoy bootstrap), or write false")
	})
}
