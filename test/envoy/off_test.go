package envoy_test

import (
	"io"
	"net/http"
	"syscall"
	"testing"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// Under load choosing is switched off and on many times: every request is answered,
// by our word or by Envoy's, and nothing stays booked. Once it is off, none is by
// ours.
func TestSwitchUnderLoad(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t)}
			s := startService(t, scoring.PolicyRoundRobin, engines...)
			p := startEnvoyWith(t, withModes(t, config(s, engines...), mode, "SEND", "STREAMED"))
			const n, flips = 1200, 40
			v := newSurvey(t, p)
			ended := make(chan struct{})
			go func() { v.ask(n, nil); close(ended) }()
			for i := range flips {
				eventually(t, "requests go on", func() bool { return v.done.Load() >= int64(i*n/(flips+2)) })
				s.server.SetChoosing(i%2 == 1)
			}
			next(t, "last answer", ended)
			v.answered(t, n)
			left := s.value(t, "firsttoken_left_to_envoy_total", "off")
			if v.chosen == 0 || left == 0 || v.chosen+int(left) != n {
				t.Errorf("chosen for %d and left %v of %d", v.chosen, left, n)
			}
			eventually(t, "nothing is booked", func() bool { return s.picker.Stats().Open == 0 })

			s.server.SetChoosing(false)
			v = newSurvey(t, p)
			v.ask(200, nil)
			v.answered(t, 200)
			if v.chosen != 0 || s.value(t, "firsttoken_choosing", "") != 0 {
				t.Errorf("switched off, and chosen for %d; firsttoken_choosing %v", v.chosen, s.value(t, "firsttoken_choosing", ""))
			}
			for _, name := range []string{"message_timeouts", "failure_mode_allowed"} {
				if got := p.stat(t, "http.clients.ext_proc."+name); got != 0 {
					t.Errorf("Envoy counts %s %d times", name, got)
				}
			}
		})
	}
}

// What is held when choosing is switched off goes on at once by Envoy's word, and
// is answered.
func TestSwitchLetsGoOfWhatIsHeld(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f := startHolding(t, mode, 2, forLong, patience)
			held := []*waiting{f.ask(t), f.ask(t), f.ask(t)}
			f.server.SetChoosing(false)
			f.eventuallyHeld(t, 0)
			f.ended(t, "off", float64(len(held)))
			none(t, "decision", f.events.decided)
			if open := f.picker.Stats().Open; open != 2 {
				t.Errorf("%d reservations are open, want those of the busy engines", open)
			}
			f.answer(t) // also those whose streams had begun before
			for _, w := range held {
				r := next(t, "answer", w.answered)
				if body, err := io.ReadAll(r.body); err != nil || r.code != http.StatusOK || string(body) != answer() {
					t.Errorf("answer: %v %s %q", err, r.status, body)
				}
				if reason := r.header.Get(envoy.HeaderReason); reason != "" {
					t.Errorf("chosen by our word: %s", reason)
				}
			}
			eventually(t, "nothing is booked", func() bool { return f.picker.Stats().Open == 0 })
		})
	}
}

// The service is killed while Envoy gives it a share, and dead afterwards: every
// request is answered, and Envoy's own statistics tell that it chooses.
func TestCanaryServiceKilled(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	process, address, exited := startProcess(t, engines...)
	c := config(&service{address: address}, engines...)
	c.Canary = &envoy.Canary{Percent: 50}
	p := startEnvoy(t, c)
	load := startLoad(t, p, 8)
	load.reach(t, 200)
	if load.chosen.Load() == 0 {
		t.Error("the service chose for no request")
	}
	if healthy := p.stat(t, "cluster.firsttoken.membership_healthy"); healthy != 1 {
		t.Errorf("%d services are healthy, want 1", healthy)
	}
	if err := process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-exited
	load.reach(t, load.done.Load()+600)
	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
	}
	eventually(t, "Envoy knows that the service is gone", func() bool { return p.stat(t, "cluster.firsttoken.membership_healthy") == 0 })
	eventually(t, "Envoy counts that it went on without the service", func() bool {
		return p.stat(t, "http.clients.ext_proc.failure_mode_allowed") > 0
	})
	v := newSurvey(t, p)
	v.ask(100, nil)
	v.answered(t, 100)
	if v.chosen != 0 {
		t.Errorf("a dead service chose %d times", v.chosen)
	}
}
