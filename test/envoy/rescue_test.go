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

// tryDeadline is that of each try, whatever was learned of the engines' speed.
const tryDeadline = time.Second

// rescuing sets the deadline of each try.
func rescuing(c *extproc.Config, _ *extproc.Deps) {
	c.Rescue.Enabled, c.Rescue.Floor, c.Rescue.Max = true, tryDeadline, tryDeadline
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
		for _, n := range []int{2, 4} {
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

// What a client writes into Envoy's own headers sets neither deadline nor tries,
// whether the service gives the request a deadline or not.
func TestClientsTryHeaders(t *testing.T) {
	for _, c := range []struct{ name, body string }{
		{"streamed", completion("x")},
		{"not streamed", strings.Replace(completion("x"), `"stream":true`, `"stream":false`, 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			proceed := make(chan struct{})
			slow := func(e *engine) { e.hold = func(*http.Request) { <-proceed } }
			engines := []*engine{startEngine(t, slow), startEngine(t, slow)}
			r := startRescue(t, nil, engines...)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.proxy.clients+"/v1/completions", strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			for name, value := range map[string]string{
				envoy.HeaderTryTimeout: "1", "x-envoy-upstream-rq-timeout-ms": "1", envoy.HeaderMaxRetries: "7",
				"x-envoy-retry-on": "5xx", "x-envoy-hedge-on-per-try-timeout": "true",
			} {
				req.Header.Set(name, value)
			}
			answered := make(chan int, 1)
			go func() {
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					answered <- 0
					return
				}
				t.Cleanup(func() { resp.Body.Close() })
				answered <- resp.StatusCode
			}()
			began := time.Now()
			d := next(t, "decision", r.events.decided)
			at, not := other(d.Endpoint().Address, engines...)
			eventually(t, "a hundred times the client's timeout has passed", func() bool { return time.Since(began) > 100*time.Millisecond })
			if n, m := at.requests.Load(), not.requests.Load(); m != 0 {
				t.Errorf("%d and %d requests came to the engines, want one to the first", n, m)
			}
			close(proceed)
			if code := next(t, "answer", answered); code != http.StatusOK {
				t.Errorf("status %d", code)
			}
		})
	}
}

// Envoy's patience with the service is above the longest deadline. Were it not,
// headers would go to the client before their first token, and a try that hangs
// could not be given up any more: the client would wait for ever.
func TestRescueNeedsPatience(t *testing.T) {
	t.Parallel()
	hang := failures[1].fail
	engines := []*engine{startEngine(t, hang), startEngine(t, hang)}
	r := startRescue(t, nil, engines...)
	c := config(r.service, engines...)
	c.Rescue, c.Listen, c.Admin = &envoy.Rescue{Longest: tryDeadline}, "127.0.0.1:0", "127.0.0.1:0"
	text, err := envoy.Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	const from, to = "message_timeout: 6s", "message_timeout: 0.300s"
	if !strings.Contains(string(text), from) {
		t.Fatalf("%s is not in the config", from)
	}
	short := startEnvoyWith(t, []byte(strings.Replace(string(text), from, to, 1)))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, short.clients+"/v1/completions", strings.NewReader(completion("x")))
	if err != nil {
		t.Fatal(err)
	}
	if resp := do(t, req); resp.code != http.StatusOK {
		t.Errorf("answer: %s, want the engine's headers before their time", resp.status)
	}
	leave()
	if resp := post(t, r.proxy, completion("x")); resp.code != http.StatusGatewayTimeout {
		t.Errorf("answer: %s, want 504 with the patience that Envoy is given", resp.status)
	}
}

// The last engine that is tried is not given up while it gives others first
// tokens: the client waits, and gets its answer.
func TestRescueWaitsForTheBusy(t *testing.T) {
	t.Parallel()
	const slow = "slow"
	proceed := make(chan struct{})
	busy := func(e *engine) {
		e.hold = func(r *http.Request) {
			if r.Header.Get("x-test") == slow {
				select {
				case <-proceed:
				case <-r.Context().Done():
				}
			}
		}
	}
	engines := []*engine{startEngine(t, busy), startEngine(t, busy)}
	r := startRescue(t, nil, engines...)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.proxy.clients+"/v1/completions", strings.NewReader(completion("x")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("x-test", slow)
	answered := make(chan *http.Response, 1)
	go func() {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			t.Cleanup(func() { resp.Body.Close() })
		}
		answered <- resp
	}()
	// Others are served by both all the while.
	others := startLoad(t, r.proxy, 2)
	if view := next(t, "rescue", r.rescued); view.Outcome != "lifted" || view.Tries != 2 || len(view.Missed) != 1 {
		t.Errorf("rescue: %+v", view)
	}
	if m := next(t, "missed deadline", r.missed); m.silent {
		t.Errorf("%s is taken to hang, though it serves others", m.address)
	}
	others.reach(t, others.done.Load()+100)
	if failed := others.stop(); len(failed) > 0 {
		t.Errorf("%d others failed, the first: %s", len(failed), failed[0])
	}
	resp := next(t, "headers", answered) //nolint:bodyclose // by the goroutine that asked, at the end
	if resp == nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("answer: %+v", resp)
	}
	close(proceed)
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != answer() {
		t.Errorf("answer: %v %q", err, text)
	}
	none(t, "engine taken for hung", r.missed)
	r.nothingLeft(t)
}

// Under load one of three engines begins to hang: no request is lost, none is
// computed more often than it may be, and the booking of each is released once.
// The engine gets nothing more once the service leaves it out.
func TestRescueUnderLoad(t *testing.T) {
	for _, failure := range failures {
		t.Run(failure.name, func(t *testing.T) {
			t.Parallel()
			var ill atomic.Bool
			fail := func(e *engine) {
				var failing engine
				failure.fail(&failing)
				sometimes := func(f func(*http.Request)) func(*http.Request) {
					if f == nil {
						return nil
					}
					return func(r *http.Request) {
						if ill.Load() {
							f(r)
						}
					}
				}
				e.accept, e.hold = sometimes(failing.accept), sometimes(failing.hold)
			}
			engines := []*engine{startEngine(t, fail), startEngine(t), startEngine(t)}
			r := startRescue(t, nil, engines...)
			// As discovery does it.
			leaveOut := make(chan struct{})
			go func() {
				defer close(leaveOut)
				for m := range r.missed {
					// It may have given a first token after it got a request that it
					// will not answer.
					if m.address != engines[0].address {
						t.Errorf("%+v missed a deadline", m)
					}
					list := endpoints(engines)
					list[0].Ready = false
					r.picker.SetEndpoints(list)
				}
			}()
			clients := startLoad(t, r.proxy, 16)
			clients.reach(t, 300)
			ill.Store(true)
			clients.reach(t, clients.done.Load()+1000)
			if failed := clients.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), clients.done.Load(), failed[0])
			}
			if failure.late {
				before := engines[0].requests.Load()
				again := startLoad(t, r.proxy, 4)
				again.reach(t, 100)
				again.stop()
				if got := engines[0].requests.Load(); got != before {
					t.Errorf("the engine that hangs got %d more requests", got-before)
				}
				clients.done.Add(again.done.Load())
			}
			ends := map[string]bool{}
			for range clients.done.Load() {
				end := next(t, "end", r.events.ended)
				if ends[end.decision.ID] || end.outcome != scoring.OutcomeComplete {
					t.Errorf("%s ended %s, before: %v", end.decision.ID, end.outcome, ends[end.decision.ID])
				}
				ends[end.decision.ID] = true
			}
			r.nothingLeft(t)
			none(t, "second end", r.events.ended)
			close(r.missed)
			<-leaveOut
			computed, again := int64(0), int64(0)
			for _, e := range engines {
				computed += e.requests.Load()
			}
			for len(r.rescued) > 0 {
				view := <-r.rescued
				if view.Outcome != "answered" || view.Tries > 3 {
					t.Errorf("rescue: %+v", view)
				}
				again += int64(view.Tries - 1)
			}
			// A reset may come before the service has seen that the engine began.
			if extra := computed - clients.done.Load(); extra < again || failure.late && extra != again {
				t.Errorf("computed %d times for %d requests; %d more are accounted for", computed, clients.done.Load(), again)
			}
		})
	}
}

// rescueEnv makes the service of a process of its own rescue.
const rescueEnv = "FIRSTTOKEN_TEST_RESCUE"

// The service is killed while it keeps an answer's headers back, while answers
// stream, and under load: Envoy lets them go by itself, and nothing is lost. With
// it dead, answers pass as well.
func TestRescueServiceKilled(t *testing.T) {
	t.Setenv(rescueEnv, "1")
	for _, c := range []struct {
		name   string
		engine func(e *engine, proceed chan struct{})
		// held: the client has no headers before the service is killed.
		held bool
	}{
		{"while held", func(e *engine, proceed chan struct{}) {
			e.hold = func(*http.Request) { <-proceed }
		}, true},
		{"during streams", func(e *engine, proceed chan struct{}) {
			e.pause = func() { <-proceed }
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = 4
			proceed := make(chan struct{})
			like := func(e *engine) { c.engine(e, proceed) }
			engines := []*engine{startEngine(t, like), startEngine(t, like)}
			process, address, exited := startProcess(t, engines...)
			cfg := config(&service{address: address}, engines...)
			cfg.Rescue = &envoy.Rescue{Longest: tryDeadline}
			r := &rescue{proxy: startEnvoy(t, cfg)}
			var asked []*waiting
			for range n {
				asked = append(asked, r.ask(t, completion("hello")))
			}
			var begun []reply
			if c.held {
				// The access log's stream, and two of each request: one waits for the
				// request's end, one keeps the headers back.
				eventually(t, "all are held", func() bool { return r.proxy.stat(t, "cluster.firsttoken.upstream_rq_active") >= 2*n })
				for _, w := range asked {
					none(t, "answer before its first token", w.answered)
				}
			} else {
				for _, w := range asked {
					begun = append(begun, next(t, "answer", w.answered))
				}
			}
			if err := process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = next(t, "end of the service", exited)
			if c.held {
				for _, w := range asked {
					begun = append(begun, next(t, "answer", w.answered))
				}
			}
			close(proceed)
			for _, resp := range begun {
				if text, err := io.ReadAll(resp.body); err != nil || resp.code != http.StatusOK || string(text) != answer() {
					t.Errorf("answer: %v %s %q", err, resp.status, text)
				}
			}
			for range n {
				if text, err := io.ReadAll(post(t, r.proxy, completion("hello")).body); err != nil || string(text) != answer() {
					t.Errorf("answer without the service: %v %q", err, text)
				}
			}
		})
	}
	t.Run("under load", func(t *testing.T) {
		engines := []*engine{startEngine(t), startEngine(t)}
		process, address, exited := startProcess(t, engines...)
		cfg := config(&service{address: address}, engines...)
		cfg.Rescue = &envoy.Rescue{Longest: tryDeadline}
		load := startLoad(t, startEnvoy(t, cfg), 8)
		load.reach(t, 500)
		if load.chosen.Load() == 0 {
			t.Error("the service chose for no request")
		}
		if err := process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = next(t, "end of the service", exited)
		load.reach(t, load.done.Load()+1000)
		if failed := load.stop(); len(failed) > 0 {
			t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
		}
	})
}

// By xDS Envoy is told the same.
func TestRescueByXDS(t *testing.T) {
	t.Parallel()
	var turn atomic.Bool
	hang := firstOf(&turn, failures[1].fail)
	engines := []*engine{startEngine(t, hang), startEngine(t, hang)}
	r := startRescue(t, nil, engines...)
	c := config(r.service, engines...)
	c.Rescue = &envoy.Rescue{Longest: tryDeadline}
	m := startManagement(t, c, "127.0.0.1:0")
	var members []envoy.Member
	for _, e := range engines {
		members = append(members, envoy.Member{Address: e.address, Cluster: cluster(e), Health: envoy.Healthy})
	}
	m.SetMembers(members)
	r.proxy = startDynamicEnvoy(t, c, m, envoy.StateOfTheWorld)
	resp := r.ask(t, completion("hello")).whole(t)
	d := next(t, "decision", r.events.decided)
	if _, good := other(d.Endpoint().Address, engines...); resp.header.Get("x-firsttoken-endpoint") != good.address {
		t.Errorf("answered by %s, want %s", resp.header.Get("x-firsttoken-endpoint"), good.address)
	}
	if view := next(t, "rescue", r.rescued); view.Outcome != "answered" || len(view.Missed) != 1 {
		t.Errorf("rescue: %+v", view)
	}
}

// Engines' errors pass at once, and so does what has no body.
func TestRescueLetsErrorsPass(t *testing.T) {
	t.Parallel()
	engines := []*engine{startEngine(t, func(e *engine) { e.refuse = http.StatusBadRequest }), startEngine(t, func(e *engine) { e.refuse = http.StatusBadRequest })}
	r := startRescue(t, nil, engines...)
	resp := post(t, r.proxy, completion("hello"))
	if text, err := io.ReadAll(resp.body); err != nil || resp.code != http.StatusBadRequest || !strings.Contains(string(text), "BadRequestError") {
		t.Errorf("answer: %v %s %q", err, resp.status, text)
	}
	if end := next(t, "end", r.events.ended); end.outcome != scoring.OutcomeError {
		t.Errorf("ended %s", end.outcome)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, r.proxy.clients+"/health", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if resp := do(t, req); resp.code != http.StatusBadRequest {
		t.Errorf("answer to HEAD: %s", resp.status)
	}
	none(t, "first token", r.events.firstToken)
	none(t, "missed deadline", r.missed)
	r.nothingLeft(t)
}

// A pinned engine's 503 is the client's: Envoy asks no other.
func TestRescueKeepsPins(t *testing.T) {
	t.Parallel()
	engines := []*engine{startEngine(t, func(e *engine) { e.refuse = http.StatusServiceUnavailable }), startEngine(t)}
	r := startRescue(t, nil, engines...)
	pin := "/v1/completions?id=" + strings.ReplaceAll(engines[0].address, ":", "%3A")
	if resp, text := call(t, r.proxy, http.MethodPost, pin, completion("hello")); resp.code != http.StatusServiceUnavailable {
		t.Errorf("%s %q", resp.status, text)
	}
	if n, m := engines[0].requests.Load(), engines[1].requests.Load(); n != 1 || m != 0 {
		t.Errorf("%d requests came to the pinned engine and %d to the other, want 1 and 0", n, m)
	}
	r.nothingLeft(t)
}

// A client that leaves while its answer is kept back frees the booking, and the
// engine is told.
func TestRescueClientLeaves(t *testing.T) {
	t.Parallel()
	engines := []*engine{startEngine(t, failures[1].fail), startEngine(t, failures[1].fail)}
	r := startRescue(t, nil, engines...)
	w := r.ask(t, completion("hello"))
	eventually(t, "the try is shown", func() bool { return r.value(t, "firsttoken_streams", "try") == 1 })
	w.leave()
	next(t, "end of the request", w.failed)
	d := next(t, "decision", r.events.decided)
	at, not := other(d.Endpoint().Address, engines...)
	next(t, "cancel at the engine", at.cancelled)
	if end := next(t, "end", r.events.ended); end.outcome != scoring.OutcomeCancelled {
		t.Errorf("ended %s", end.outcome)
	}
	r.nothingLeft(t)
	none(t, "missed deadline", r.missed)
	if n := not.requests.Load(); n != 0 {
		t.Errorf("the other engine got %d requests", n)
	}
}

// A websocket is no answer whose first token is waited for.
func TestRescueWebsocket(t *testing.T) {
	t.Parallel()
	e := startEngine(t)
	r := startRescue(t, nil, e)
	resp, conn, in := ask(t, r.proxy, "GET /v1/realtime HTTP/1.1\r\nhost: engines\r\nconnection: upgrade\r\nupgrade: websocket\r\n"+
		"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if resp.code != http.StatusSwitchingProtocols {
		t.Fatalf("answer: %s", resp.status)
	}
	const said = "hello"
	if _, err := io.WriteString(conn, said); err != nil {
		t.Fatal(err)
	}
	echo := make([]byte, len(said))
	if _, err := io.ReadFull(in, echo); err != nil || string(echo) != said {
		t.Errorf("echo: %v %q", err, echo)
	}
}
