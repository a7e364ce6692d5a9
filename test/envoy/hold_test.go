package envoy_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// The modes in which the choice comes after the body, so that a request can be
// held.
var holdModes = []string{"BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"}

// holding is a scoring config that holds requests, at most for max.
func holding(max time.Duration) scoring.Config {
	c := scoring.DefaultConfig()
	c.Policy = scoring.PolicyTTFT
	c.Hold.Enabled, c.Hold.Max = true, max
	return c
}

// forLong is a limit of holding that no test reaches.
const forLong = 10 * time.Minute

// busyPrompt keeps an engine booked for far more than a step of work, for as long
// as its first token has not come: some 100,000 tokens.
var busyPrompt = completion(strings.Repeat("word ", 80_000))

// gated is an engine that gives a first token for each value in gate, and to all
// once it is closed.
type gated struct {
	*engine
	gate chan struct{}
}

func startGated(t *testing.T) gated {
	t.Helper()
	g := gated{gate: make(chan struct{})}
	g.engine = startEngine(t, func(e *engine) {
		e.hold = func(r *http.Request) {
			select {
			case <-g.gate:
			case <-r.Context().Done():
			}
		}
	})
	return g
}

// fixture is a proxy, a service that holds, and engines that are busy: each with
// one request that waits for its first token.
type fixture struct {
	*service
	proxy   *proxy
	engines []gated
	busy    []reply
}

// startHolding starts n engines and keeps all of them busy. change may alter the
// service's limit of holding; Envoy waits for an answer no longer than timeout,
// unless it is asked to.
func startHolding(t *testing.T, mode string, n int, max, timeout time.Duration) *fixture {
	t.Helper()
	f := &fixture{}
	var plain []*engine
	for range n {
		g := startGated(t)
		f.engines, plain = append(f.engines, g), append(plain, g.engine)
	}
	l, err := extproc.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.service = startServiceWith(t, l, holding(max), plain...)
	c := config(f.service, plain...)
	c.DecisionDeadline = timeout - 500*time.Millisecond // which Bootstrap adds
	c.MaxMessageTimeout = time.Hour
	f.proxy = startEnvoyWith(t, withModes(t, c, mode, "SEND", "STREAMED"))
	for range n {
		f.busy = append(f.busy, post(t, f.proxy, busyPrompt))
		next(t, "decision", f.events.decided)
	}
	// In the order of the engines.
	slices.SortFunc(f.busy, func(a, b reply) int { return f.index(a) - f.index(b) })
	for i, g := range f.engines {
		if g.requests.Load() != 1 {
			t.Fatalf("engine %d has %d requests, want one each", i, g.requests.Load())
		}
	}
	return f
}

// index is which engine answers.
func (f *fixture) index(r reply) int {
	return slices.IndexFunc(f.engines, func(g gated) bool { return g.address == r.header.Get("x-firsttoken-endpoint") })
}

// waiting is a request whose answer has not begun.
type waiting struct {
	answered chan reply
	failed   chan error
	leave    context.CancelFunc
}

// ask sends a completion of a few tokens and waits until it is held.
func (f *fixture) ask(t *testing.T) *waiting {
	t.Helper()
	before := f.value(t, "firsttoken_streams", "held")
	w := &waiting{answered: make(chan reply, 1), failed: make(chan error, 1)}
	ctx, leave := context.WithCancel(t.Context())
	t.Cleanup(leave)
	w.leave = leave
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.proxy.clients+"/v1/completions", strings.NewReader(completion("a short one")))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			w.failed <- err
			return
		}
		t.Cleanup(func() { resp.Body.Close() })
		w.answered <- reply{resp.StatusCode, resp.Status, resp.Header, resp.Body}
	}()
	f.eventuallyHeld(t, before+1)
	return w
}

func (f *fixture) eventuallyHeld(t *testing.T, n float64) {
	t.Helper()
	eventually(t, "so many requests are held", func() bool { return f.value(t, "firsttoken_streams", "held") == n })
}

// finish lets all engines answer and checks that nothing is left booked or held.
func (f *fixture) finish(t *testing.T) {
	t.Helper()
	f.answer(t)
	eventually(t, "nothing is booked or held", func() bool {
		return f.picker.Stats().Open == 0 && f.value(t, "firsttoken_streams", "held") == 0
	})
}

// answer lets all engines answer and reads what the busy ones say.
func (f *fixture) answer(t *testing.T) {
	t.Helper()
	for _, g := range f.engines {
		close(g.gate)
	}
	for _, r := range f.busy {
		if body, err := io.ReadAll(r.body); err != nil || string(body) != answer() {
			t.Errorf("answer of a busy engine: %v %q", err, body)
		}
	}
}

// whole checks that an answer came from the endpoint of d, by our word.
func (f *fixture) whole(t *testing.T, r reply, d *scoring.Decision) {
	t.Helper()
	if body, err := io.ReadAll(r.body); err != nil || r.code != http.StatusOK || string(body) != answer() {
		t.Fatalf("answer: %v %s %q", err, r.status, body)
	}
	if got := r.header.Get("x-firsttoken-endpoint"); got != d.Endpoint().Address || r.header.Get("x-firsttoken-id") != d.ID {
		t.Errorf("served by %s for decision %s, want %s, %s", got, r.header.Get("x-firsttoken-id"), d.Endpoint().Address, d.ID)
	}
}

// ended checks why requests are held no longer.
func (f *fixture) ended(t *testing.T, cause string, n float64) {
	t.Helper()
	if got := f.value(t, "firsttoken_holds_total", cause); got != n {
		t.Errorf("%v holds ended by %s, want %v", got, cause, n)
	}
}

// A request is held for far longer than Envoy waits for an answer by itself, and
// goes where it should then.
func TestHeldBeyondMessageTimeout(t *testing.T) {
	for _, mode := range holdModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			const timeout = 1500 * time.Millisecond
			f := startHolding(t, mode, 2, forLong, timeout)
			w := f.ask(t)
			began := time.Now()
			eventually(t, "the timeout has passed twice", func() bool { return time.Since(began) > 2*timeout })
			none(t, "decision", f.events.decided)
			none(t, "answer", w.answered)
			none(t, "failure", w.failed)
			f.engines[1].gate <- struct{}{}
			d := next(t, "decision", f.events.decided)
			if d.Endpoint().Address != f.engines[1].address || d.Held < 2*timeout {
				t.Errorf("sent to %s after %s, want %s after %s", d.Endpoint().Address, d.Held, f.engines[1].address, 2*timeout)
			}
			f.engines[1].gate <- struct{}{}
			f.whole(t, next(t, "answer", w.answered), d)
			if n := f.engines[0].requests.Load() + f.engines[1].requests.Load(); n != 3 {
				t.Errorf("the engines got %d requests, want 3", n)
			}
			for name, want := range map[string]int{"message_timeouts": 0, "failure_mode_allowed": 0, "override_message_timeout_ignored": 0} {
				if got := f.proxy.stat(t, "http.clients.ext_proc."+name); got != want {
					t.Errorf("Envoy counts %s %d times, want %d", name, got, want)
				}
			}
			f.ended(t, "event", 1)
			f.finish(t)
		})
	}
}

// The next request goes to the engine that is free, while others are still held
// for nothing: what is shortest goes first, and each at its own first token.
func TestClientLeavesWhileHeld(t *testing.T) {
	for _, mode := range holdModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f := startHolding(t, mode, 1, forLong, patience)
			w := f.ask(t)
			w.leave()
			next(t, "end of the request", w.failed)
			f.eventuallyHeld(t, 0)
			f.ended(t, "cancelled", 1)
			none(t, "decision", f.events.decided)
			if open := f.picker.Stats().Open; open != 1 {
				t.Errorf("%d reservations are open, want the one that is not held", open)
			}
			f.finish(t)
			if n := f.engines[0].requests.Load(); n != 1 {
				t.Errorf("the engine got %d requests, want 1", n)
			}
		})
	}
}

// A service that is about to end sends on what it holds, and nothing is lost.
func TestDrainWhileHeld(t *testing.T) {
	for _, mode := range holdModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f := startHolding(t, mode, 2, forLong, patience)
			held := []*waiting{f.ask(t), f.ask(t), f.ask(t)}
			drained := make(chan struct{})
			go func() { f.server.Drain(t.Context()); close(drained) }()
			for range held {
				next(t, "decision", f.events.decided)
			}
			f.ended(t, "drain", float64(len(held)))
			f.answer(t)
			for _, w := range held {
				r := next(t, "answer", w.answered)
				if body, err := io.ReadAll(r.body); err != nil || r.code != http.StatusOK || string(body) != answer() {
					t.Errorf("answer: %v %s %q", err, r.status, body)
				}
			}
			next(t, "end of the drain", drained)
		})
	}
}

// Nothing is held for longer than is allowed, though Envoy would wait on.
func TestDispatchAtMaxHold(t *testing.T) {
	for _, mode := range holdModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			const max = time.Second
			f := startHolding(t, mode, 2, max, patience)
			w := f.ask(t)
			d := next(t, "decision", f.events.decided)
			if d.Held < max {
				t.Errorf("held %s, want at least %s", d.Held, max)
			}
			f.ended(t, "max_hold", 1)
			f.finish(t)
			f.whole(t, next(t, "answer", w.answered), d)
		})
	}
}

// An endpoint that is lost while a request is held is not waited for; without
// any the client hears so at once.
func TestEndpointsLostWhileHeld(t *testing.T) {
	for _, mode := range holdModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f := startHolding(t, mode, 2, forLong, patience)
			all := f.picker.Endpoints()
			w := f.ask(t)
			f.picker.SetEndpoints(all[1:])
			f.engines[0].gate <- struct{}{} // a first token that releases nothing
			next(t, "first token", f.events.firstToken)
			none(t, "decision", f.events.decided)
			f.engines[1].gate <- struct{}{}
			d := next(t, "decision", f.events.decided)
			if d.Endpoint().Address != f.engines[1].address {
				t.Errorf("sent to %s, want %s", d.Endpoint().Address, f.engines[1].address)
			}
			f.engines[1].gate <- struct{}{}
			f.whole(t, next(t, "answer", w.answered), d)

			f.busy = append(f.busy, post(t, f.proxy, busyPrompt))
			next(t, "decision", f.events.decided)
			w = f.ask(t)
			f.picker.SetEndpoints(nil)
			r := next(t, "answer", w.answered)
			var fault struct {
				Error struct{ Type string }
			}
			if err := json.NewDecoder(r.body).Decode(&fault); err != nil || r.code != http.StatusServiceUnavailable || fault.Error.Type != "ServiceUnavailableError" {
				t.Errorf("answer: %v %s %+v", err, r.status, fault)
			}
			f.finish(t)
		})
	}
}

// 2,000 requests are held at the same time; each is answered, by our choice, and
// nothing is left booked.
func TestManyHeld(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			const n, wave = 2000, 100
			f := startHolding(t, mode, 2, forLong, patience)
			failed := make(chan []string, n/wave)
			for i := range n / wave {
				go func() { failed <- parallel(t, f.proxy, wave, completion(strings.Repeat("word ", 100))) }()
				f.eventuallyHeld(t, float64((i+1)*wave))
			}
			if got := f.engines[0].requests.Load() + f.engines[1].requests.Load(); got != 2 {
				t.Errorf("the engines have %d requests, want the 2 that keep them busy", got)
			}
			if open := f.picker.Stats().Open; open != 2 {
				t.Errorf("%d reservations are open, want 2", open)
			}
			f.finish(t)
			for range n / wave {
				if failed := next(t, "answers", failed); len(failed) > 0 {
					t.Errorf("%d of %d failed, the first: %s", len(failed), wave, failed[0])
				}
			}
			eventually(t, "nothing is booked", func() bool { return f.picker.Stats().Open == 0 })
			f.ended(t, "event", n)
			for range n + 2 {
				if end := next(t, "end", f.events.ended); end.outcome != scoring.OutcomeComplete {
					t.Errorf("ended %s", end.outcome)
				}
			}
			for _, name := range []string{"message_timeouts", "failure_mode_allowed"} {
				if got := f.proxy.stat(t, "http.clients.ext_proc."+name); got != 0 {
					t.Errorf("Envoy counts %s %d times", name, got)
				}
			}
		})
	}
}
