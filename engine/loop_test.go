package engine

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firsttoken/firsttoken/simulator"
)

// stepped is an engine whose steps of one small request take 11 ms.
func stepped() *loop {
	p := simulator.Profile{
		Name: "plain", Token: .001, StepFloor: .010, StepOverhead: .001,
		KVTokens: 1000, BatchTokens: 100, MaxSeqs: 4,
	}
	cfg := DefaultConfig()
	cfg.Models = []string{"m"}
	return newLoop(simulator.New(p, simulator.Options{}), 2, newMetrics(&cfg, time.Now()))
}

func oneJob(prompt, output int) *job {
	return &job{
		progress:    make(chan struct{}, 1),
		generations: []*generation{{request: simulator.Request{PromptTokens: prompt, OutputTokens: output}}},
	}
}

// times submits a job of one generation and tells when each token came.
func times(t *testing.T, l *loop, j *job) []time.Duration {
	t.Helper()
	for _, g := range j.generations {
		g.job = j
	}
	begin := time.Now()
	if err := l.submit(j); err != nil {
		t.Fatal(err)
	}
	var at []time.Duration
	for {
		<-j.progress
		s := l.standings(j, nil)[0]
		for len(at) < s.tokens {
			at = append(at, time.Since(begin))
		}
		if s.done {
			return at
		}
	}
}

func running(t *testing.T, l *loop) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		l.run(ctx)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func TestTokensComeWhenTheirStepsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := stepped() // everything takes twice as long
		running(t, l)
		got := times(t, l, oneJob(150, 3))
		want := []time.Duration{ // 101 + 51, then 11 each
			304 * time.Millisecond, 326 * time.Millisecond, 348 * time.Millisecond,
		}
		for i := range want {
			if d := got[i] - want[i]; d < -time.Microsecond || d > time.Microsecond {
				t.Errorf("token %d after %s, want %s", i, got[i], want[i])
			}
		}
		// Idle in between changes nothing.
		time.Sleep(time.Hour)
		if got := times(t, l, oneJob(5, 1)); got[0] != 22*time.Millisecond {
			t.Errorf("after an idle hour the first token took %s", got[0])
		}
	})
}

func TestAStepUnderWayTakesTheNewSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := stepped()
		l.setSlow(1000)
		running(t, l)
		time.AfterFunc(time.Second, func() { l.setSlow(100) })
		time.AfterFunc(2*time.Second, func() { l.setSlow(0) })
		if got := times(t, l, oneJob(5, 1)); got[0] != 2*time.Second {
			t.Errorf("the first token took %s, want the 2 s until the engine was healed", got[0])
		}
		l.setSlow(10)
		if got := times(t, l, oneJob(5, 1)); got[0] != 220*time.Millisecond {
			t.Errorf("ten times as slow the first token took %s", got[0])
		}
	})
}

func TestAJobIsSubmittedWholeOrNotAtAll(t *testing.T) {
	l := stepped()
	j := oneJob(10, 1)
	j.generations = append(j.generations, &generation{job: j, request: simulator.Request{PromptTokens: 2000, OutputTokens: 1}})
	if err := l.submit(j); err == nil {
		t.Fatal("a request larger than the memory was taken")
	}
	if s := l.sim.Stats(); s.Waiting != 0 || len(l.live) != 0 {
		t.Errorf("%+v, %d live", s, len(l.live))
	}
}
