package envoy_test

import (
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// In full duplex a filter that only watches tells the first token; the choice is
// obeyed, answers are intact, ends are told, and no stream stays open.
func TestFullDuplex(t *testing.T) {
	seen := make(chan struct{})
	paused := func(e *engine) { e.pause = func() { <-seen } }
	engines := []*engine{startEngine(t, paused), startEngine(t, paused)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	c := config(s, engines...)
	c.BodyMode = envoy.BodyFullDuplex
	p := startEnvoy(t, c)
	for _, prompt := range []string{"hello", strings.Repeat("a long one ", 40_000)} {
		for range 2 {
			resp := post(t, p, completion(prompt))
			d := next(t, "decision", s.events.decided)
			next(t, "first token", s.events.firstToken)
			seen <- struct{}{}
			if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
				t.Fatalf("answer: %v %s %q", err, resp.status, body)
			}
			if got := resp.header.Get("x-firsttoken-endpoint"); got != d.Endpoint().Address {
				t.Errorf("served by %s, chosen %s", got, d.Endpoint().Address)
			}
			if end := next(t, "end", s.events.ended); end.decision.ID != d.ID || end.outcome != scoring.OutcomeComplete {
				t.Errorf("ended %+v", end)
			}
		}
	}
	if n := s.picker.Stats().Open; n != 0 {
		t.Errorf("%d reservations are left", n)
	}
	eventually(t, "no ext_proc stream is open", func() bool {
		return p.stat(t, "cluster.firsttoken.upstream_rq_active") <= 1 // the access log's own
	})
}

// The first choice of half of the requests is dead: in full duplex too they go on
// to the next best.
func TestFullDuplexRetries(t *testing.T) {
	dead, alive := deadEngine(t), startEngine(t)
	s := startService(t, scoring.PolicyRoundRobin, dead, alive)
	c := config(s, dead, alive)
	c.BodyMode = envoy.BodyFullDuplex
	p := startEnvoy(t, c)
	const n = 40
	if failed := parallel(t, p, n, completion(strings.Repeat("word ", 20_000))); len(failed) > 0 {
		t.Errorf("%d of %d failed, the first: %s", len(failed), n, failed[0])
	}
	for range n {
		if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete || end.served != alive.address {
			t.Errorf("ended %+v, want complete at %s", end, alive.address)
		}
	}
}

// Answers that have begun come to their end whatever becomes of the service.
func TestKilledDuringStreams(t *testing.T) {
	for _, mode := range []envoy.BodyMode{envoy.BodyBuffered, envoy.BodyFullDuplex} {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
			t.Run(string(mode)+" "+signal.String(), func(t *testing.T) {
				t.Parallel()
				proceed := make(chan struct{})
				e := startEngine(t, func(e *engine) { e.pause = func() { <-proceed } })
				r := startReplica(t, e)
				c := config(&service{address: r.address}, e)
				c.BodyMode, c.DecisionDeadline = mode, extproc.DefaultConfig().DecisionDeadline
				p := startEnvoy(t, c)
				var answers []reply
				for range 16 {
					answers = append(answers, post(t, p, completion("hello")))
				}
				r.signal(t, signal)
				eventually(t, "Envoy knows", func() bool { return p.stat(t, "cluster.firsttoken.membership_healthy") == 0 })
				close(proceed)
				for i, a := range answers {
					if body, err := io.ReadAll(a.body); err != nil || string(body) != answer() {
						t.Errorf("answer %d: %v %s %q", i, err, a.status, body)
					}
				}
			})
		}
	}
}

// In full duplex a service that dies alone costs what it was asked before Envoy
// noticed, and one that hangs does not keep anybody for ever. Afterwards
// requests go through without a choice.
func TestFullDuplexAlone(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			e := startEngine(t)
			r := startReplica(t, e)
			c := config(&service{address: r.address}, e)
			c.BodyMode, c.DecisionDeadline = envoy.BodyFullDuplex, extproc.DefaultConfig().DecisionDeadline
			p := startEnvoy(t, c)
			load := startLoad(t, p, 8)
			load.reach(t, 100)
			r.signal(t, signal)
			eventually(t, "Envoy knows", func() bool { return p.stat(t, "cluster.firsttoken.membership_healthy") == 0 })
			// What was asked before has its answer, or its error, by now or soon.
			load.reach(t, load.done.Load()+100)
			began := time.Now()
			failed := load.stop()
			t.Logf("%s: %d failed of %d, stopped in %s", signal, len(failed), load.done.Load(), time.Since(began))
			for _, text := range failed {
				if !strings.HasPrefix(text, "503 ") {
					t.Errorf("failed with %s, want 503", text)
					break
				}
			}
			for range 50 {
				if resp := post(t, p, completion("hello")); resp.code != http.StatusOK {
					t.Errorf("answer: %s", resp.status)
				}
			}
		})
	}
}
