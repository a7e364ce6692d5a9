package envoy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// tryDeadline is that of each try: while nothing was learned of the engines' speed
// it is the longest one.
const tryDeadline = time.Second

// rescuing sets the deadline of each try.
func rescuing(c *extproc.Config, _ *extproc.Deps) {
	c.Rescue.Enabled, c.Rescue.Floor, c.Rescue.Max = true, 100*time.Millisecond, tryDeadline
}

// misses are what the service tells of endpoints that missed a deadline.
type misses struct {
	missed  chan miss
	alive   chan string
	rescued chan extproc.Rescue
}

type miss struct {
	address string
	silent  bool
}

func newMisses() *misses {
	const room = 1 << 16
	return &misses{missed: make(chan miss, room), alive: make(chan string, room), rescued: make(chan extproc.Rescue, room)}
}

func (m *misses) hear(_ *extproc.Config, d *extproc.Deps) {
	d.Missed = func(address string, silent bool) { m.missed <- miss{address, silent} }
	d.Alive = func(address string) { m.alive <- address }
	d.Rescued = func(_ string, r extproc.Rescue) {
		if r.Outcome != "" {
			m.rescued <- r
		}
	}
}

// rescue is a service that rescues, its Envoy and what it tells.
type rescue struct {
	*service
	*misses
	proxy *proxy
}

// startRescue serves the engines by turns, the first one first.
func startRescue(t *testing.T, change func(*envoy.Config), engines ...*engine) *rescue {
	t.Helper()
	l, err := extproc.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rescue{misses: newMisses()}
	r.service = startServiceFrom(t, l, choosing(scoring.PolicyRoundRobin), endpoints(engines), func(c *extproc.Config, d *extproc.Deps) {
		rescuing(c, d)
		r.hear(c, d)
	})
	c := config(r.service, engines...)
	c.Rescue = &envoy.Rescue{Longest: tryDeadline}
	if change != nil {
		change(&c)
	}
	r.proxy = startEnvoy(t, c)
	return r
}

// The ways in which an engine gives no first token.
var failures = []struct {
	name string
	fail func(*engine)
	// late: it is given up at its deadline.
	late bool
}{
	{"no headers", func(e *engine) { e.accept = func(r *http.Request) { <-r.Context().Done() } }, true},
	{"headers, then silence", func(e *engine) { e.hold = func(r *http.Request) { <-r.Context().Done() } }, true},
	{"headers, then reset", func(e *engine) { e.hold = func(*http.Request) { panic(http.ErrAbortHandler) } }, false},
}

// ask sends a request whose answer is waited for elsewhere.
func (r *rescue) ask(t *testing.T, body string) *waiting {
	t.Helper()
	w := &waiting{answered: make(chan reply, 1), failed: make(chan error, 1)}
	ctx, leave := context.WithCancel(t.Context())
	t.Cleanup(leave)
	w.leave = leave
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.proxy.clients+"/v1/completions", strings.NewReader(body))
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
	return w
}

// whole reads an answer and checks that it is good.
func (w *waiting) whole(t *testing.T) reply {
	t.Helper()
	r := next(t, "answer", w.answered)
	if text, err := io.ReadAll(r.body); err != nil || r.code != http.StatusOK || string(text) != answer() {
		t.Fatalf("answer: %v %s %q", err, r.status, text)
	}
	return r
}

// firstOf makes an engine fail in the given way for the first request of all that
// share the turn, and serve all others.
func firstOf(turn *atomic.Bool, fail func(*engine)) func(*engine) {
	return func(e *engine) {
		var failing engine
		fail(&failing)
		once := func(f func(*http.Request)) func(*http.Request) {
			if f == nil {
				return nil
			}
			return func(r *http.Request) {
				if turn.CompareAndSwap(false, true) {
					f(r)
				}
			}
		}
		e.accept, e.hold = once(failing.accept), once(failing.hold)
	}
}

// other is the engine with another address.
func other(address string, engines ...*engine) (at, not *engine) {
	if engines[0].address == address {
		return engines[0], engines[1]
	}
	return engines[1], engines[0]
}

// Whatever way an engine fails before its first token, the request goes to the
// next best one: the client sees nothing of it, the engine is told to stop, the
// booking follows, and the endpoint is named.
func TestRescue(t *testing.T) {
	for _, failure := range failures {
		for _, mode := range []envoy.BodyMode{envoy.BodyBuffered, envoy.BodyFullDuplex} {
			t.Run(failure.name+" "+string(mode), func(t *testing.T) {
				t.Parallel()
				var turn atomic.Bool
				reset := make(chan struct{})
				fail := failure.fail
				if !failure.late {
					fail = func(e *engine) {
						e.hold = func(*http.Request) { <-reset; panic(http.ErrAbortHandler) }
					}
				}
				engines := []*engine{startEngine(t, firstOf(&turn, fail)), startEngine(t, firstOf(&turn, fail))}
				r := startRescue(t, func(c *envoy.Config) { c.BodyMode = mode }, engines...)
				began := time.Now()
				w := r.ask(t, completion("hello"))
				if !failure.late {
					// Not before the service has seen that the engine began to answer.
					eventually(t, "the try is shown", func() bool { return r.value(t, "firsttoken_streams", "try") == 1 })
					close(reset)
				}
				resp := w.whole(t)
				took := time.Since(began)
				d := next(t, "decision", r.events.decided)
				bad, good := other(d.Endpoint().Address, engines...)
				if at := resp.header.Get("x-firsttoken-endpoint"); at != good.address {
					t.Fatalf("answered by %s, want %s", at, good.address)
				}
				if failure.late {
					next(t, "cancel at the engine", bad.cancelled)
					if m := next(t, "missed deadline", r.missed); m.address != bad.address || !m.silent {
						t.Errorf("missed: %+v, want %s, silent", m, bad.address)
					}
					if took < tryDeadline {
						t.Errorf("given up after %s, before the deadline", took)
					}
				}
				view := next(t, "rescue", r.rescued)
				if view.Outcome != "answered" || view.Tries != 2 || view.Deadline != tryDeadline {
					t.Errorf("rescue: %+v", view)
				}
				if want := map[bool]int{true: 1}[failure.late]; len(view.Missed) != want {
					t.Errorf("missed by %q, want %d", view.Missed, want)
				}
				next(t, "first token", r.events.firstToken)
				if end := next(t, "end", r.events.ended); end.outcome != scoring.OutcomeComplete || end.served != good.address {
					t.Errorf("ended %s at %s, want complete at %s", end.outcome, end.served, good.address)
				}
				r.nothingLeft(t)
				none(t, "second end", r.events.ended)
				if got := bad.requests.Load() + good.requests.Load(); got != 2 {
					t.Errorf("computed %d times, want twice", got)
				}
			})
		}
	}
}

// nothingLeft waits until no booking and no stream is open.
func (r *rescue) nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is booked or watched", func() bool {
		return r.picker.Stats().Open == 0 && r.value(t, "firsttoken_streams", "try") == 0
	})
}

// Where no engine gives a first token the client gets a clean 504 in the shape of
// the engines' errors, after as many tries as there are endpoints and no more.
func TestRescueExhausted(t *testing.T) {
	for _, failure := range failures[:2] {
		for _, n := range []int{2, 3, 4} {
			t.Run(fmt.Sprintf("%s, %d engines", failure.name, n), func(t *testing.T) {
				t.Parallel()
				var engines []*engine
				for range n {
					engines = append(engines, startEngine(t, failure.fail))
				}
				r := startRescue(t, nil, engines...)
				began := time.Now()
				resp := post(t, r.proxy, completion("hello"))
				tries := min(n, 3)
				if took := time.Since(began); took < time.Duration(tries)*tryDeadline {
					t.Errorf("given up after %s, before %d deadlines", took, tries)
				}
				var fault struct {
					Error struct {
						Message, Type string
						Code          int
					}
				}
				if err := json.NewDecoder(resp.body).Decode(&fault); err != nil || resp.code != http.StatusGatewayTimeout ||
					fault.Error.Code != http.StatusGatewayTimeout || fault.Error.Type != "GatewayTimeoutError" || fault.Error.Message == "" {
					t.Errorf("answer: %v %s %+v", err, resp.status, fault)
				}
				if kind := resp.header.Get("content-type"); kind != "application/json" {
					t.Errorf("content-type %q", kind)
				}
				for range tries {
					if m := next(t, "missed deadline", r.missed); !m.silent {
						t.Errorf("%s is taken to be late, want silent", m.address)
					}
				}
				none(t, "further miss", r.missed)
				if view := next(t, "rescue", r.rescued); view.Outcome != "exhausted" || view.Tries != tries || len(view.Missed) != tries {
					t.Errorf("rescue: %+v", view)
				}
				if end := next(t, "end", r.events.ended); end.outcome != scoring.OutcomeError {
					t.Errorf("ended %s", end.outcome)
				}
				r.nothingLeft(t)
				total := 0
				for _, e := range engines {
					total += int(e.requests.Load())
					if e.requests.Load() > 1 {
						t.Errorf("%s got %d requests", e.address, e.requests.Load())
					}
				}
				if total != tries {
					t.Errorf("computed %d times, want %d", total, tries)
				}
			})
		}
	}
}

// An answer that is not streamed begins when it is whole, and is not cut; nor is
// a stream whose first token has come.
func TestRescueLeavesTheSlowAlone(t *testing.T) {
	unstreamed := strings.Replace(completion("x"), `"stream":true`, `"stream":false`, 1)
	wait := func() {
		timer := time.NewTimer(2*tryDeadline + tryDeadline/2)
		<-timer.C
	}
	for _, c := range []struct {
		name, body string
		slow       func(e *engine)
	}{
		{"not streamed, headers late", unstreamed, func(e *engine) { e.accept = func(*http.Request) { wait() } }},
		{"not streamed, body late", unstreamed, func(e *engine) { e.hold = func(*http.Request) { wait() } }},
		{"streamed, the second token late", completion("x"), func(e *engine) { e.pause = wait }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t, c.slow), startEngine(t, c.slow)}
			r := startRescue(t, nil, engines...)
			resp := post(t, r.proxy, c.body)
			d := next(t, "decision", r.events.decided)
			at, not := other(d.Endpoint().Address, engines...)
			if text, err := io.ReadAll(resp.body); err != nil || resp.code != http.StatusOK || string(text) != answer() || resp.header.Get("x-firsttoken-endpoint") != at.address {
				t.Errorf("answer: %v %s %q", err, resp.status, text)
			}
			if end := next(t, "end", r.events.ended); end.outcome != scoring.OutcomeComplete {
				t.Errorf("ended %s", end.outcome)
			}
			none(t, "missed deadline", r.missed)
			r.nothingLeft(t)
			if got := not.requests.Load(); got != 0 {
				t.Errorf("the other engine got %d requests", got)
			}
		})
	}
}
