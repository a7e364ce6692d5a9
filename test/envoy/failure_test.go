package envoy_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// The first choice of half of the requests is dead: Envoy goes on to the next
// best, none of 200 parallel requests fails, the bookings follow, and the dead
// endpoint is probed at once.
func TestRetryGoesToTheNextBest(t *testing.T) {
	dead, alive := deadEngine(t), startEngine(t)
	s := startService(t, scoring.PolicyRoundRobin, dead, alive)
	p := startEnvoy(t, config(s, dead, alive))
	const n = 200
	failed := parallel(t, p, n, completion(strings.Repeat("word ", 1000)))
	if len(failed) > 0 {
		t.Errorf("%d of %d failed, the first: %s", len(failed), n, failed[0])
	}
	moved := 0
	for range n {
		end := next(t, "end", s.events.ended)
		if end.outcome != scoring.OutcomeComplete || end.served != alive.address {
			t.Errorf("ended %+v, want complete at %s", end, alive.address)
		}
		if end.decision.Endpoint().Address == dead.address {
			moved++
			if probed := next(t, "probe", s.events.probed); probed != dead.address {
				t.Errorf("probed %s, want %s", probed, dead.address)
			}
		}
	}
	if moved != n/2 {
		t.Errorf("%d requests moved, want %d", moved, n/2)
	}
	if stats := s.picker.Stats(); stats.Open != 0 {
		t.Errorf("%d reservations are left", stats.Open)
	}
}

// One cluster for each endpoint: the choice is obeyed, a dead endpoint gives a
// clean 503 and is probed, and a request without a choice goes to the pool.
func TestClusterHeader(t *testing.T) {
	alive, dead := startEngine(t), deadEngine(t)
	s := startService(t, scoring.PolicyRoundRobin, alive, dead)
	c := config(s, alive, dead)
	c.Route = envoy.RouteClusterHeader
	p := startEnvoy(t, c)
	for range 6 {
		resp := post(t, p, completion("hello"))
		body, err := io.ReadAll(resp.body)
		if err != nil {
			t.Fatal(err)
		}
		d, end := next(t, "decision", s.events.decided), next(t, "end", s.events.ended)
		want, outcome := http.StatusOK, scoring.OutcomeComplete
		if d.Endpoint().Address == dead.address {
			want, outcome = http.StatusServiceUnavailable, scoring.OutcomeError
			if probed := next(t, "probe", s.events.probed); probed != dead.address {
				t.Errorf("probed %s, want %s", probed, dead.address)
			}
		}
		if resp.code != want || end.outcome != outcome {
			t.Errorf("at %s: %s %s, ended %s", d.Endpoint().Address, resp.status, body, end.outcome)
		}
	}
}

// A choice without a cluster of its own, one of several addresses of a name, is
// obeyed by the pool.
func TestClusterHeaderWithoutCluster(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t), startEngine(t)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	list := endpoints(engines)
	for i := range list {
		list[i].Cluster = ""
	}
	s.picker.SetEndpoints(list)
	c := config(s, engines...)
	c.Route = envoy.RouteClusterHeader
	p := startEnvoy(t, c)
	for range 12 {
		resp := post(t, p, completion("hello"))
		if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %s %q", err, resp.status, body)
		}
		d := next(t, "decision", s.events.decided)
		if got := resp.header.Get("x-firsttoken-endpoint"); got != d.Endpoint().Address {
			t.Errorf("served by %s, chosen %s", got, d.Endpoint().Address)
		}
	}
}

// An engine that refuses did not give a first token.
func TestErrorIsNoFirstToken(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			e := startEngine(t, func(e *engine) { e.refuse = http.StatusBadRequest })
			s := startService(t, scoring.PolicyTrapezoid, e)
			p := startEnvoyWith(t, withModes(t, config(s, e), mode, "SEND", "STREAMED"))
			resp := post(t, p, completion("hello"))
			if resp.code != http.StatusBadRequest {
				t.Errorf("answer: %s", resp.status)
			}
			if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeError {
				t.Errorf("ended %s, want %s", end.outcome, scoring.OutcomeError)
			}
			none(t, "first token", s.events.firstToken)
			if open := s.picker.Stats().Open; open != 0 {
				t.Errorf("%d reservations are left", open)
			}
		})
	}
}

// A client that leaves frees its booking, before the first token and after.
func TestCancel(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		for _, response := range []string{"NONE", "STREAMED"} {
			t.Run(mode+" "+response, func(t *testing.T) {
				e := startEngine(t, func(e *engine) { e.hold = func(r *http.Request) { <-r.Context().Done() } })
				s := startService(t, scoring.PolicyTrapezoid, e)
				p := startEnvoyWith(t, withModes(t, config(s, e), mode, "SEND", response))
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.clients+"/v1/completions", strings.NewReader(completion("hello")))
				if err != nil {
					t.Fatal(err)
				}
				do(t, req) // the headers came
				next(t, "decision", s.events.decided)
				if open := s.picker.Stats().Open; open != 1 {
					t.Errorf("%d reservations are open, want 1", open)
				}
				leave()
				next(t, "cancel at the engine", e.cancelled)
				// Without response phase a buffered stream ends alike for both.
				end := next(t, "end", s.events.ended)
				if want := scoring.OutcomeCancelled; end.outcome != want && response != "NONE" {
					t.Errorf("ended %s, want %s", end.outcome, want)
				}
				if open := s.picker.Stats().Open; open != 0 {
					t.Errorf("%d reservations are left", open)
				}
			})
		}
	}
}

// What the service answers itself, in the shape of the engine's errors.
func TestImmediateResponses(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		e := startEngine(t)
		s := startService(t, scoring.PolicyTrapezoid, e)
		p := startEnvoyWith(t, withModes(t, config(s, e), mode, "SEND", "STREAMED"))
		unready := startService(t, scoring.PolicyTrapezoid)
		q := startEnvoyWith(t, withModes(t, config(unready, e), mode, "SEND", "STREAMED"))
		for _, c := range []struct {
			name   string
			proxy  *proxy
			body   string
			status int
			kind   string
		}{
			{"not JSON", p, "hello", http.StatusBadRequest, "Bad Request"},
			{"unknown model", p, `{"model":"nope","prompt":"x"}`, http.StatusNotFound, "NotFoundError"},
			{"too large", p, completion(strings.Repeat("x", bodyLimit)), http.StatusRequestEntityTooLarge, "RequestEntityTooLargeError"},
			{"no ready endpoint", q, completion("x"), http.StatusServiceUnavailable, "ServiceUnavailableError"},
		} {
			t.Run(mode+" "+c.name, func(t *testing.T) {
				resp := post(t, c.proxy, c.body)
				var got struct {
					Error struct {
						Message, Type string
						Code          int
					}
				}
				if err := json.NewDecoder(resp.body).Decode(&got); err != nil {
					t.Fatal(err)
				}
				if resp.code != c.status || got.Error.Code != c.status || got.Error.Type != c.kind || got.Error.Message == "" {
					t.Errorf("%s %+v, want %d %s", resp.status, got, c.status, c.kind)
				}
				if kind := resp.header.Get("content-type"); kind != "application/json" {
					t.Errorf("content-type %q", kind)
				}
			})
		}
		if n := e.requests.Load(); n != 0 {
			t.Errorf("the engine got %d requests, want 0", n)
		}
	}
}

// A client cannot choose the engine, whether the service is there or not.
func TestClientsControlHeaders(t *testing.T) {
	aim, other := startEngine(t), startEngine(t)
	s := startService(t, scoring.PolicyTrapezoid, other) // knows of other only
	for _, c := range []struct {
		name string
		up   bool
	}{{"service up", true}, {"service down", false}} {
		for _, route := range []envoy.Route{envoy.RouteOverrideHost, envoy.RouteClusterHeader} {
			t.Run(c.name+" "+string(route), func(t *testing.T) {
				cfg := config(s, aim, other)
				if !c.up {
					cfg.Service = deadEngine(t).address
				}
				cfg.Route = route
				p := startEnvoy(t, cfg)
				before := aim.requests.Load()
				const n = 30
				for range n {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+"/v1/completions", strings.NewReader(completion("hello")))
					if err != nil {
						t.Fatal(err)
					}
					for _, name := range envoy.ControlHeaders {
						req.Header.Set(name, aim.address)
					}
					req.Header.Set(envoy.HeaderCluster, "engine-"+aim.address)
					resp := do(t, req)
					if _, err := io.Copy(io.Discard, resp.body); err != nil || resp.code != http.StatusOK {
						t.Fatalf("answer: %v %s", err, resp.status)
					}
				}
				got := aim.requests.Load() - before
				switch {
				case c.up && got != 0:
					t.Errorf("the engine named by the client got %d of %d requests", got, n)
				case !c.up && got == n:
					t.Errorf("the engine named by the client got all %d requests", n)
				}
				var lists []string
				for len(aim.seen)+len(other.seen) > 0 {
					var h http.Header
					select {
					case h = <-aim.seen:
					case h = <-other.seen:
					}
					lists = append(lists, h.Get(envoy.HeaderEndpoint), h.Get(envoy.HeaderCluster), h.Get(envoy.HeaderEndpoint+"-subset"))
				}
				for _, v := range lists {
					if strings.Contains(v, aim.address) {
						t.Fatalf("an engine saw the client's control header: %q", v)
					}
				}
			})
		}
	}
}

// parallel sends n requests at once and returns what went wrong.
func parallel(t *testing.T, p *proxy, n int, body string) (failed []string) {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: n}
	defer transport.CloseIdleConnections()
	var mu sync.Mutex // guards failed
	fail := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, text)
	}
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+"/v1/completions", strings.NewReader(body))
			if err != nil {
				fail(err.Error())
				return
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				fail(err.Error())
				return
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK || string(text) != answer() {
				fail(resp.Status + " " + string(text))
			}
		})
	}
	all.Wait()
	return failed
}
