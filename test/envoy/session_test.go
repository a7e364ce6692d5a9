package envoy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// sessionKey is the header that tells a request's session.
const sessionKey = "x-user-id"

// The requests of a session go to one engine, however many come at once; when an
// engine goes only its own sessions move, and when it is back they are back. Not one
// request is lost.
func TestSessionsStayTogether(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t), startEngine(t)}
	s := startServiceFrom(t, listenService(t), choosing(scoring.PolicySession), endpoints(engines), func(cfg *extproc.Config, _ *extproc.Deps) { cfg.SessionKey = sessionKey })
	p := startEnvoy(t, config(s, engines...))
	const sessions, each = 24, 5

	all := homes(t, s, p, sessions, each)
	used := make(map[string]int)
	for _, home := range all {
		used[home]++
	}
	if len(used) != len(engines) {
		t.Errorf("sessions by engine: %v, want some at each of %d", used, len(engines))
	}
	gone := engines[1].address
	s.picker.SetEndpoints(append(endpoints(engines)[:1:1], endpoints(engines)[2:]...))
	for id, home := range homes(t, s, p, sessions, each) {
		if home == gone || all[id] != gone && home != all[id] {
			t.Errorf("%s was at %s and is at %s, when %s went", id, all[id], home, gone)
		}
	}
	s.picker.SetEndpoints(endpoints(engines))
	for id, home := range homes(t, s, p, sessions, each) {
		if home != all[id] {
			t.Errorf("%s was at %s and is at %s, with all engines back", id, all[id], home)
		}
	}
	if stats := s.picker.Stats(); stats.Open != 0 {
		t.Errorf("%d reservations are left", stats.Open)
	}
}

// homes sends requests of many sessions at once and returns where each session's
// were served, which must be one engine.
func homes(t *testing.T, s *service, p *proxy, sessions, each int) map[string]string {
	t.Helper()
	var mu sync.Mutex // guards at
	at := make(map[string]string)
	var all sync.WaitGroup
	for n := range sessions * each {
		all.Go(func() {
			id := fmt.Sprint("user-", n%sessions)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+"/v1/completions", strings.NewReader(completion("hello")))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set(sessionKey, id)
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			served := resp.Header.Get("x-firsttoken-endpoint")
			if err != nil || resp.StatusCode != http.StatusOK || string(body) != answer() || resp.Header.Get("x-firsttoken-reason") != string(scoring.ReasonSession) {
				t.Errorf("%s: %v, %s, because %s", id, err, resp.Status, resp.Header.Get("x-firsttoken-reason"))
			}
			mu.Lock()
			defer mu.Unlock()
			if before, known := at[id]; known && before != served {
				t.Errorf("%s was served by %s and by %s", id, before, served)
			}
			at[id] = served
		})
	}
	all.Wait()
	for range sessions * each {
		if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete {
			t.Errorf("ended %+v", end)
		}
	}
	return at
}
