package extproc

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// leftTo is how many requests were left to Envoy because of something.
func (f *fixture) leftTo(cause string) float64 {
	return testutil.ToFloat64(f.metrics.off.lefts.WithLabelValues(cause))
}

// alone checks that an answer removes the control headers and tells no choice.
func alone(t *testing.T, m *extprocv3.ProcessingResponse) {
	t.Helper()
	for _, name := range envoy.ControlHeaders {
		if !removes(m, name) {
			t.Errorf("%s is not removed: %v", name, m)
		}
	}
	if len(mutation(m).GetSetHeaders()) > 0 || m.GetDynamicMetadata() != nil {
		t.Errorf("a choice is told: %v", m)
	}
}

// While the service is off every request passes as it is, without the client's
// control headers, in every body mode, and also what the service would refuse.
// Nothing is sized, booked or shown to anybody.
func TestOff(t *testing.T) {
	for _, body := range []string{"{}", "no JSON", "{model:unknown }"} {
		for _, mode := range []filterv3.ProcessingMode_BodySendMode{none, streamed, buffered, partial, duplex} {
			t.Run(mode.String()+" "+body, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(2), func(_ *Config, d *Deps) {
						d.Encoder = encoderFunc(func(context.Context, prompt.Request) (*scoring.Prompt, error) {
							t.Error("a request is sized")
							return unsized(), nil
						})
					})
					f.SetChoosing(false)
					f.SetChoosing(false) // again changes nothing
					if f.Choosing() || testutil.ToFloat64(f.metrics.off.choosing) != 0 {
						t.Error("it says that it chooses")
					}
					c := f.open(t, mode, streamed)
					alone(t, c.one(t, completion()))
					switch mode { //nolint:exhaustive // none has no body, and GRPC is duplex
					case duplex:
						// Each piece goes on as it comes.
						for _, piece := range []string{body[:1], body[1:]} {
							got, _ := joined(t, c.say(t, reqBody(piece, false)), (*extprocv3.ProcessingResponse).GetRequestBody)
							if string(got) != piece {
								t.Errorf("%q came back as %q", piece, got)
							}
						}
						c.one(t, reqTrailers())
					case buffered, partial, streamed:
						if m := c.one(t, reqBody(body, true)); mutation(m) != nil {
							t.Errorf("the body is answered by %v", m)
						}
					}
					c.one(t, with(respBody("data: x\n\n", false), 200, "10.0.0.2:8000"))
					if c.isOpen() {
						t.Error("the stream goes on after the first chunk, which tells nothing")
					}
					if got := f.leftTo("off"); got != 1 {
						t.Errorf("left to Envoy %v times, want 1", got)
					}
					if stats := f.picker.Stats(); stats.Open != 0 || len(f.decided)+len(f.ends)+len(f.tokens) != 0 {
						t.Errorf("%d bookings, told %d decisions", stats.Open, len(f.decided))
					}
				})
			})
		}
	}
}

// A client that does not show us headers is left alone at the body.
func TestOffWithoutHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		f.SetChoosing(false)
		c := f.open(t, buffered, streamed)
		alone(t, c.one(t, reqBody("{}", true)))
		if got := f.leftTo("off"); got != 1 {
			t.Errorf("left to Envoy %v times, want 1", got)
		}
	})
}

// Switched on again, choices are made again.
func TestOnAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		for range 3 {
			f.SetChoosing(false)
			alone(t, f.open(t, buffered, streamed).one(t, completion()))
			f.SetChoosing(true)
			if !f.Choosing() || testutil.ToFloat64(f.metrics.off.choosing) != 1 {
				t.Error("it says that it does not choose")
			}
			c := f.open(t, buffered, streamed)
			c.one(t, completion())
			if m := c.one(t, reqBody("{}", true)); header(m, envoy.HeaderEndpoint) == "" {
				t.Errorf("no choice: %v", m)
			}
		}
	})
}

// Switching off leaves what was told before: its stream goes on, its first token
// and its end are taken in.
func TestOffKeepsBookings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		c.one(t, reqBody("{plain}", true))
		f.SetChoosing(false)
		synctest.Wait()
		if open := f.picker.Stats().Open; open != 1 || !c.isOpen() {
			t.Fatalf("%d bookings, stream open %v", open, c.isOpen())
		}
		c.one(t, with(respBody("{}", false), 200, "10.0.0.1:8000"))
		c.one(t, respBody("", true))
		if got := f.outcomes(); len(got) != 1 || got[0] != scoring.OutcomeComplete {
			t.Errorf("ended %v", got)
		}
	})
}

// A body that is on its way in full duplex goes on with its next piece.
func TestOffWithinABody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, duplex, streamed)
		if got := c.say(t, completion()); len(got) != 0 {
			t.Fatalf("answered before the body: %v", got)
		}
		c.say(t, reqBody("{1", false))
		f.SetChoosing(false)
		got := c.say(t, reqBody("2", false))
		alone(t, got[0])
		text, _ := joined(t, got[1:], (*extprocv3.ProcessingResponse).GetRequestBody)
		if string(text) != "{12" {
			t.Errorf("the body goes on as %q", text)
		}
		f.SetChoosing(true) // comes too late for this one
		text, end := joined(t, c.say(t, reqBody("3}", true)), (*extprocv3.ProcessingResponse).GetRequestBody)
		if string(text) != "3}" || !end {
			t.Errorf("the rest goes on as %q, ended %v", text, end)
		}
		if len(f.decided) != 0 {
			t.Error("a choice was made")
		}
	})
}

// Who is being sized, asked about or held at that moment is let go, although
// switching on follows at once; nothing stays booked.
func TestOffLetsGo(t *testing.T) {
	hang := func(ctx context.Context) { <-ctx.Done(); time.Sleep(time.Hour) }
	for _, stage := range []struct {
		name   string
		change func(*Config, *Deps)
	}{
		{"sizing", func(_ *Config, d *Deps) {
			d.Encoder = encoderFunc(func(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
				if string(r.Body) != long {
					hang(ctx)
				}
				return encode(ctx, r)
			})
		}},
		{"asking", func(_ *Config, d *Deps) {
			d.Encoder = encoderFunc(func(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
				p, err := encode(ctx, r)
				if err == nil && string(r.Body) != long {
					p.Sequences[0].TokenIDs, p.Sequences[0].Usable = make([]uint32, p.Length()), p.Length()
				}
				return p, err
			})
			d.Ask = func(ctx context.Context, _ *scoring.Prompt) func() { hang(ctx); return func() {} }
		}},
		{"holding", holding},
	} {
		for _, mode := range []filterv3.ProcessingMode_BodySendMode{buffered, duplex} {
			t.Run(stage.name+" "+mode.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(1), holding, stage.change)
					fill(t, f, 1)
					c := f.open(t, mode, streamed)
					c.say(t, completion())
					before := len(c.answers())
					c.say(t, reqBody("{short}", true))
					if got := c.answers()[before:]; len(got) > 1 || len(got) == 1 && got[0].GetOverrideMessageTimeout() == nil {
						t.Fatalf("answered: %v", got)
					}
					before, began := len(c.answers()), time.Now()
					f.SetChoosing(false)
					f.SetChoosing(true)
					synctest.Wait()
					got := c.answers()[before:]
					if len(got) == 0 || time.Since(began) != 0 {
						t.Fatalf("not answered at once: %v after %s", got, time.Since(began))
					}
					alone(t, got[0])
					if mode == duplex {
						if text, end := joined(t, got[1:], (*extprocv3.ProcessingResponse).GetRequestBody); string(text) != "{short}" || !end {
							t.Errorf("the body goes on as %q, ended %v", text, end)
						}
					}
					if open := f.picker.Stats().Open; open != 1 {
						t.Errorf("%d bookings, want the one that keeps the endpoint busy", open)
					}
					if got := f.leftTo("off"); got != 1 {
						t.Errorf("left to Envoy %v times, want 1", got)
					}
					if stage.name == "holding" {
						f.holdsEnded(t, map[holdCause]int{holdOff: 1})
						heldNow(t, f, 0)
					}
					c.close(io.EOF)
					time.Sleep(2 * time.Hour) // what hangs ends within the bubble
				})
			})
		}
	}
}

// What is only shown to us is weighed while the service is off, and belongs to no
// arm.
func TestShadowBesideSwitchAndArms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		all := canary.DefaultConfig()
		all.Arms = []canary.Arm{{Name: "plain", Weight: 1, Policy: canary.PolicyEnvoy}}
		f.SetArms(all)
		f.SetChoosing(false)
		c := f.shown(t, "r", "{ a prompt }")
		f.record(poolReady("10.0.0.2"))
		c.show(t, with(respBody("data: x\n\n", false), 200, "10.0.0.2:8000"))
		if len(f.decided) != 1 || f.decided[0].Arm != "" {
			t.Errorf("told decisions %v", f.decided)
		}
		if assigned, _, _, _ := f.armOf(t, "plain"); assigned != 0 || f.leftTo("off") != 0 {
			t.Errorf("%v requests of the arm, %v left to Envoy", assigned, f.leftTo("off"))
		}
	})
}
