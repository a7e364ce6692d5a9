package extproc

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// encodeIDs is encode with token ids, without which no source is asked.
func encodeIDs(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
	p, err := encode(ctx, r)
	if err == nil {
		n := p.Sequences[0].Length
		p.Sequences[0].TokenIDs, p.Sequences[0].Usable = make([]uint32, n), n
	}
	return p, err
}

// asker is a source that asks: it answers after a while, or when ctx ends.
type asker struct {
	takes time.Duration
	deaf  bool // it does not look at ctx
	// picked is how many requests are decided for when done is called.
	picked func() int

	asked atomic.Int32
	mu    sync.Mutex // guards done
	done  []int      // picked at each call of done
}

// dones are picked at each call of done so far.
func (a *asker) dones() []int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.done
}

func (a *asker) ask(ctx context.Context, _ *scoring.Prompt) func() {
	a.asked.Add(1)
	if a.deaf {
		time.Sleep(a.takes)
	} else {
		select {
		case <-time.NewTimer(a.takes).C:
		case <-ctx.Done():
		}
	}
	return func() {
		n := a.picked()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.done = append(a.done, n)
	}
}

// Whoever is asked what is cached, the request is routed in time, and the
// answer is kept until the choice is made.
func TestAsk(t *testing.T) {
	for _, c := range []struct {
		name  string
		asker *asker
		after time.Duration // to the decision
		late  float64
	}{
		{"at once", &asker{}, 0, 0},
		{"in time", &asker{takes: 400 * time.Millisecond}, 400 * time.Millisecond, 0},
		{"until the deadline", &asker{takes: time.Minute}, 500 * time.Millisecond, 1},
		{"past the deadline", &asker{takes: time.Minute, deaf: true}, 500 * time.Millisecond, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := c.asker
				f := newFixture(t, pool(2), func(_ *Config, d *Deps) { d.Encoder, d.Ask = encoderFunc(encodeIDs), source.ask })
				source.picked = func() int { return f.picker.Stats().Open }
				stream := f.open(t, buffered, streamed)
				stream.one(t, completion())
				began := time.Now()
				stream.say(t, reqBody("{}", true))
				time.Sleep(2 * time.Minute) // the bubble's clock: all have answered
				synctest.Wait()
				answers := stream.answers()
				if len(f.decided) != 1 || f.decided[0].Time.Sub(began) != c.after {
					t.Fatalf("%d decisions, want one after %s", len(f.decided), c.after)
				}
				if header(answers[len(answers)-1], envoy.HeaderEndpoint) == "" {
					t.Errorf("answers: %v", answers)
				}
				// Who is late is done whenever it is: nobody reads the answer.
				if done := source.dones(); source.asked.Load() != 1 || len(done) != 1 || c.late == 0 && done[0] != 1 {
					t.Errorf("asked %d times, done after decisions %v, want one after the first", source.asked.Load(), done)
				}
				if n := testutil.ToFloat64(f.metrics.fallbacks.WithLabelValues(causeAsk)); n != c.late {
					t.Errorf("counted late %v times, want %v", n, c.late)
				}
			})
		})
	}
}

// The encoder and whoever is asked share one deadline.
func TestAskHasWhatTheEncoderLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &asker{takes: time.Minute, picked: func() int { return 0 }}
		f := newFixture(t, pool(1), func(_ *Config, d *Deps) {
			d.Ask = source.ask
			d.Encoder = encoderFunc(func(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
				time.Sleep(300 * time.Millisecond)
				return encodeIDs(ctx, r)
			})
		})
		stream := f.open(t, buffered, streamed)
		stream.one(t, completion())
		began := time.Now()
		stream.say(t, reqBody("{}", true))
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(f.decided) != 1 || f.decided[0].Time.Sub(began) != f.cfg.DecisionDeadline {
			t.Fatalf("%d decisions, want one after %s", len(f.decided), f.cfg.DecisionDeadline)
		}
	})
}

// A source's fault costs the request what is cached, not its answer; who has no
// token ids is not asked at all; who is gone is not decided for.
func TestAskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1), func(_ *Config, d *Deps) {
			d.Encoder, d.Ask = encoderFunc(encodeIDs), func(context.Context, *scoring.Prompt) func() { panic("no") }
		})
		stream := f.open(t, buffered, streamed)
		stream.one(t, completion())
		if header(stream.one(t, reqBody("{}", true)), envoy.HeaderEndpoint) == "" {
			t.Error("no endpoint")
		}
		if n := testutil.ToFloat64(f.metrics.fallbacks.WithLabelValues(causeAsk)); n != 1 {
			t.Errorf("counted %v times", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		source := &asker{picked: func() int { return 0 }}
		f := newFixture(t, pool(1), func(_ *Config, d *Deps) { d.Ask = source.ask })
		stream := f.open(t, buffered, streamed)
		stream.one(t, completion())
		stream.one(t, reqBody("{}", true))
		if source.asked.Load() != 0 || len(f.decided) != 1 {
			t.Errorf("asked %d times for a prompt without token ids, %d decisions", source.asked.Load(), len(f.decided))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		source := &asker{takes: time.Minute, picked: func() int { return 0 }}
		f := newFixture(t, pool(1), func(_ *Config, d *Deps) { d.Encoder, d.Ask = encoderFunc(encodeIDs), source.ask })
		stream := f.open(t, buffered, streamed)
		stream.one(t, completion())
		stream.say(t, reqBody("{}", true))
		stream.hangUp()
		<-stream.done
		synctest.Wait()
		if len(f.decided) != 0 || len(source.dones()) != 1 || testutil.ToFloat64(f.metrics.fallbacks.WithLabelValues(causeAsk)) != 0 {
			t.Errorf("%d decisions for a client that left, done %d times", len(f.decided), len(source.dones()))
		}
	})
}
