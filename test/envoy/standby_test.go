package envoy_test

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// replica is a service as a process of its own, whose stop and start again at the
// same address a test sees.
type replica struct {
	engines []*engine
	process *os.Process
	address string
	exited  <-chan error
}

func startReplica(t *testing.T, engines ...*engine) *replica {
	t.Helper()
	r := &replica{engines: engines}
	r.process, r.address, r.exited = startProcess(t, engines...)
	return r
}

// signal sends s; one that ends the process is waited for.
func (r *replica) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := r.process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if s == syscall.SIGKILL || s == syscall.SIGTERM {
		next(t, "end of the service", r.exited)
	}
}

// restart starts it anew at its address.
func (r *replica) restart(t *testing.T) {
	t.Helper()
	r.process, _, r.exited = startProcessOn(t, r.address, r.engines...)
}

// startPair runs an active service, its standby, and an Envoy that knows both.
func startPair(t *testing.T, mode envoy.BodyMode, engines ...*engine) (active, standby *replica, p *proxy) {
	t.Helper()
	active, standby = startReplica(t, engines...), startReplica(t, engines...)
	c := config(&service{address: active.address}, engines...)
	c.Standby, c.BodyMode = []string{standby.address}, mode
	c.DecisionDeadline = extproc.DefaultConfig().DecisionDeadline
	return active, standby, startEnvoy(t, c)
}

// asked is how many streams for choices a service has had.
func (p *proxy) asked(t *testing.T, r *replica) int {
	t.Helper()
	_, text := p.ask(t, "/clusters")
	for line := range strings.Lines(text) {
		if total, ok := strings.CutPrefix(line, "firsttoken::"+r.address+"::rq_total::"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(total))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("Envoy does not know %s", r.address)
	return 0
}

// takesOver waits until a service is asked, and the other one is not any more.
func (p *proxy) takesOver(t *testing.T, l *load, r, other *replica) {
	t.Helper()
	eventually(t, "the other service is asked", func() bool {
		before, idle := p.asked(t, r), p.asked(t, other)
		l.reach(t, l.done.Load()+32)
		return p.asked(t, r) > before && p.asked(t, other) == idle
	})
}

// The active service ends, dies or hangs under load: its standby goes on, no
// request is lost, and next to none goes without a choice. It comes back, and all
// are asked of it again.
func TestStandbyTakesOver(t *testing.T) {
	for _, mode := range []envoy.BodyMode{envoy.BodyBuffered, envoy.BodyFullDuplex} {
		for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGTERM, "hung": syscall.SIGSTOP} {
			t.Run(string(mode)+" "+name, func(t *testing.T) {
				t.Parallel()
				engines := []*engine{startEngine(t), startEngine(t)}
				active, standby, p := startPair(t, mode, engines...)
				load := startLoad(t, p, 8)
				load.reach(t, 300)
				if n := p.asked(t, standby); n != 0 {
					t.Errorf("the standby was asked %d times beside a healthy active", n)
				}
				active.signal(t, signal)
				load.reach(t, load.done.Load()+300)
				p.takesOver(t, load, standby, active)
				load.reach(t, load.done.Load()+300)
				if signal == syscall.SIGSTOP {
					active.signal(t, syscall.SIGCONT)
				} else {
					active.restart(t)
				}
				p.takesOver(t, load, active, standby)
				load.reach(t, load.done.Load()+300)
				failed := load.stop()
				if len(failed) > 0 {
					t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
				}
				// Of one that hangs, Envoy waits for as long as it does for any; and on a
				// busy machine a health check may come too late now and then.
				if free := load.done.Load() - load.chosen.Load(); free > load.done.Load()/20 {
					t.Errorf("%d of %d requests went without a choice", free, load.done.Load())
				}
			})
		}
	}
}

// Of what a service that dies was sent Envoy keeps 64 KB to send it again. Longer
// prompts go without a choice; in full duplex those are lost that it had been asked
// and had not answered, one of each client, and none after them. (Lost is also one
// whose answer had left in part, which a short one does not.)
func TestStandbyTakesLongPrompts(t *testing.T) {
	const clients = 4
	for _, c := range []struct {
		mode         envoy.BodyMode
		bytes, loses int
	}{
		{envoy.BodyBuffered, 500_000, 0},
		{envoy.BodyFullDuplex, 10_000, 0},
		{envoy.BodyFullDuplex, 500_000, clients},
	} {
		t.Run(fmt.Sprintf("%s %d", c.mode, c.bytes), func(t *testing.T) {
			t.Parallel()
			active, standby, p := startPair(t, c.mode, startEngine(t), startEngine(t))
			load := startLoadOf(t, p, clients, completion(strings.Repeat("long ", c.bytes/5)))
			load.reach(t, 2*clients)
			active.signal(t, syscall.SIGKILL)
			load.reach(t, load.done.Load()+clients)
			p.takesOver(t, load, standby, active)
			if failed := load.stop(); len(failed) > c.loses {
				t.Errorf("%d of %d failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
		})
	}
}

// Records of requests that end at once all arrive, also while the connection that
// brings them is still being opened.
func TestEndsOfABurst(t *testing.T) {
	const n = 300
	proceed := make(chan struct{})
	e := startEngine(t, func(e *engine) { e.pause = func() { <-proceed } })
	s := startService(t, scoring.PolicyTrapezoid, e)
	c := config(s, e)
	// So that records have a connection of their own, which is not there yet.
	c.Standby = []string{deadEngine(t).address}
	p := startEnvoy(t, c)
	var answers []reply
	for range n {
		answers = append(answers, post(t, p, completion("hello")))
		next(t, "first token", s.events.firstToken)
	}
	close(proceed)
	for _, a := range answers {
		if text, err := io.ReadAll(a.body); err != nil || string(text) != answer() {
			t.Fatalf("answer: %v %s %q", err, a.status, text)
		}
	}
	for range n {
		next(t, "end", s.events.ended)
	}
	if open := s.picker.Stats().Open; open != 0 {
		t.Errorf("%d reservations are left", open)
	}
}

// Whichever service made a choice hears of its request's end, also where another
// has become the first to ask since, and where it has become that again.
func TestEndsReachWhoDecided(t *testing.T) {
	for _, mode := range []envoy.BodyMode{envoy.BodyBuffered, envoy.BodyFullDuplex} {
		t.Run(string(mode), func(t *testing.T) {
			proceed := make(chan struct{})
			e := startEngine(t, func(e *engine) { e.pause = func() { <-proceed } })
			active, standby := startService(t, scoring.PolicyTrapezoid, e), startService(t, scoring.PolicyTrapezoid, e)
			c := config(active, e)
			c.Standby, c.BodyMode = []string{standby.address}, mode
			p := startEnvoy(t, c)
			// healthy waits until Envoy thinks so of the active.
			healthy := func(is bool) {
				t.Helper()
				active.server.SetReady(is)
				eventually(t, "Envoy knows the active's health", func() bool {
					_, text := p.ask(t, "/clusters")
					return strings.Contains(text, "firsttoken::"+active.address+"::health_flags::healthy") == is
				})
			}
			type request struct {
				by     *service
				answer reply
				id     string
			}
			var open []request
			// begin asks until by has chosen: Envoy's workers learn a moment later
			// than its admin page shows.
			begin := func(by *service) {
				t.Helper()
				for chosen := (*service)(nil); chosen != by; {
					answer := post(t, p, completion("hello"))
					var d *scoring.Decision
					select {
					case d = <-active.events.decided:
						chosen = active
					case d = <-standby.events.decided:
						chosen = standby
					}
					open = append(open, request{chosen, answer, d.ID})
				}
			}
			begin(active)
			healthy(false)
			begin(standby)
			begin(standby)
			healthy(true)
			begin(active)
			begin(active)
			for _, r := range open {
				if stats := r.by.picker.Stats(); stats.Open == 0 {
					t.Error("nothing is booked while answers go on")
				}
			}
			close(proceed)
			for _, r := range open {
				if text, err := io.ReadAll(r.answer.body); err != nil || string(text) != answer() {
					t.Errorf("answer: %v %s %q", err, r.answer.status, text)
				}
			}
			for _, s := range []*service{active, standby} {
				want := make(map[string]bool)
				for _, r := range open {
					want[r.id] = r.by == s
				}
				for _, is := range want {
					if !is {
						continue
					}
					if end := next(t, "end", s.events.ended); !want[end.decision.ID] || end.outcome != scoring.OutcomeComplete {
						t.Errorf("ended %+v", end)
					}
				}
				if n := s.picker.Stats().Open; n != 0 {
					t.Errorf("%d reservations are left", n)
				}
				none(t, "end", s.events.ended)
			}
		})
	}
}
