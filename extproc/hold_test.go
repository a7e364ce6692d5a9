package extproc

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// maxHold is how long the holding fixtures hold a request at most.
const maxHold = 20 * time.Second

// holding makes the picker one that holds.
func holding(_ *Config, d *Deps) {
	cfg := scoring.DefaultConfig()
	cfg.Policy = scoring.PolicyTTFT
	cfg.Hold.Enabled, cfg.Hold.Max = true, maxHold
	picker, err := scoring.NewPicker(cfg, time.Now, rand.New(rand.NewPCG(3, 4)))
	if err != nil {
		panic(err)
	}
	picker.SetEndpoints(d.Picker.Endpoints())
	d.Picker = picker
}

// long is a prompt that keeps an engine busy for far longer than a step, also
// when all that is known of its progress is that it has begun.
var long = "{" + strings.Repeat("x", 100_000) + "}"

// fill gives each of n endpoints a long prompt and returns the streams.
func fill(t *testing.T, f *fixture, n int) []*client {
	t.Helper()
	var streams []*client
	for range n {
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		if m := c.one(t, reqBody(long, true)); header(m, envoy.HeaderEndpoint) == "" {
			t.Fatalf("an idle endpoint is not chosen: %v", m)
		}
		streams = append(streams, c)
	}
	return streams
}

// ended is a context that is.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// heldNow checks how many streams are held.
func heldNow(t *testing.T, f *fixture, want float64) {
	t.Helper()
	if got := gaugeValue(t, f, phaseHeld); got != want {
		t.Errorf("%v streams are held, want %v", got, want)
	}
}

// holdsEnded checks how often each cause ended a hold, and that each is measured.
func (f *fixture) holdsEnded(t *testing.T, want map[holdCause]int) {
	t.Helper()
	total := 0
	for _, cause := range []holdCause{holdEvent, holdMax, holdDrain, holdOff, holdCancelled} {
		if got := testutil.ToFloat64(f.metrics.holds.WithLabelValues(string(cause))); got != float64(want[cause]) {
			t.Errorf("%v holds ended by %s, want %d", got, cause, want[cause])
		}
		total += want[cause]
	}
	if got := sampleCount(t, f.metrics.holdTime); got != uint64(total) {
		t.Errorf("%d holds measured, want %d", got, total)
	}
}

func sampleCount(t *testing.T, h prometheus.Histogram) uint64 {
	t.Helper()
	families := prometheus.NewPedanticRegistry()
	families.MustRegister(h)
	got, err := families.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return got[0].GetMetric()[0].GetHistogram().GetSampleCount()
}

// "When the ext_proc server receives a request message and needs more time to
// process it, it sends back a ProcessingResponse message with a new timeout
// value"; "such a message can be sent at most once in a particular data plane
// ext_proc filter processing state". In full duplex no timeout runs.
func TestHeld(t *testing.T) {
	for _, c := range []struct {
		mode    filterv3.ProcessingMode_BodySendMode
		patient bool
	}{{buffered, false}, {partial, false}, {duplex, true}} {
		t.Run(c.mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(2), holding)
				busy := fill(t, f, 2)
				stream := f.open(t, c.mode, streamed)
				stream.say(t, completion())
				asked := stream.say(t, reqBody(long, true))
				heldNow(t, f, 1)
				if c.patient && len(asked) != 0 {
					t.Fatalf("answered while held: %v", asked)
				}
				if !c.patient && (len(asked) != 1 || asked[0].GetOverrideMessageTimeout().AsDuration() != maxHold+envoy.HoldMargin || asked[0].GetResponse() != nil) {
					t.Fatalf("told %v, want the new timeout alone", asked)
				}
				if len(f.decided) != 2 || f.picker.Stats().Open != 2 {
					t.Errorf("%d decided, %d booked, want the two that are not held", len(f.decided), f.picker.Stats().Open)
				}
				before := len(stream.answers())
				time.Sleep(5 * time.Second)
				busy[1].say(t, respBody("data: x\n\n", false))
				answers := stream.answers()[before:]
				if len(answers) == 0 || header(answers[0], envoy.HeaderEndpoint) == "" {
					t.Fatalf("answers after the release: %v", answers)
				}
				if c.mode == duplex {
					if text, end := joined(t, answers[1:], (*extprocv3.ProcessingResponse).GetRequestBody); string(text) != long || !end {
						t.Errorf("%d bytes of the body came back, end %v", len(text), end)
					}
				}
				d := f.decided[2]
				if d.Endpoint().ID != f.decided[1].Endpoint().ID || d.Held != 5*time.Second {
					t.Errorf("held %s, then sent to %s, want 5s, %s", d.Held, d.Endpoint().Name, f.decided[1].Endpoint().Name)
				}
				heldNow(t, f, 0)
				f.holdsEnded(t, map[holdCause]int{holdEvent: 1})
			})
		})
	}
}

// What ends a hold besides a first token: the request is answered once, by the
// best endpoint of the moment, and booked once.
func TestHoldEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(f *fixture, busy []*client)
		cause  holdCause
		at     string // the endpoint's name; empty: either
		refuse int    // the status of a refusal
	}{
		{"it is held for as long as is allowed", func(*fixture, []*client) { time.Sleep(maxHold) }, holdMax, "", 0},
		{"the service drains", func(f *fixture, _ []*client) { f.Drain(ended()) }, holdDrain, "", 0},
		{"a request ends", func(_ *fixture, busy []*client) { busy[0].close(errEOF) }, holdEvent, "10.0.0.1:8000", 0},
		{"an endpoint comes", func(f *fixture, _ []*client) { f.picker.SetEndpoints(pool(3)) }, holdEvent, "10.0.0.3:8000", 0},
		{"an endpoint is lost, the other gives a first token", func(f *fixture, busy []*client) {
			f.picker.SetEndpoints(pool(1))
			synctest.Wait()
			if got := gaugeValue(t, f, phaseHeld); got != 1 {
				t.Errorf("%v held while the only endpoint left is busy, want 1", got)
			}
			busy[0].say(t, respBody("data: x\n\n", false))
		}, holdEvent, "10.0.0.1:8000", 0},
		{"all endpoints are lost", func(f *fixture, _ []*client) { f.picker.SetEndpoints(nil) }, holdEvent, "", http.StatusServiceUnavailable},
		{"no endpoint is ready any more", func(f *fixture, _ []*client) {
			sick := pool(2)
			sick[0].Ready, sick[1].Ready = false, false
			f.picker.SetEndpoints(sick)
		}, holdEvent, "", http.StatusServiceUnavailable},
	} {
		for _, mode := range []filterv3.ProcessingMode_BodySendMode{buffered, duplex} {
			t.Run(c.name+" "+mode.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(2), holding)
					busy := fill(t, f, 2)
					slices.SortFunc(busy, func(a, b *client) int { // by endpoint
						return strings.Compare(header(a.answers()[1], envoy.HeaderCluster), header(b.answers()[1], envoy.HeaderCluster))
					})
					stream := f.open(t, mode, streamed)
					stream.say(t, completion())
					stream.say(t, reqBody(long, true))
					heldNow(t, f, 1)
					before := len(stream.answers())
					c.end(f, busy)
					synctest.Wait()
					answers := stream.answers()[before:]
					if len(answers) == 0 {
						t.Fatal("still held")
					}
					heldNow(t, f, 0)
					f.holdsEnded(t, map[holdCause]int{c.cause: 1})
					if c.refuse != 0 {
						if got := int(answers[0].GetImmediateResponse().GetStatus().GetCode()); got != c.refuse || len(f.decided) != 2 {
							t.Errorf("refused with %d, %d decisions, want %d, 2", got, len(f.decided), c.refuse)
						}
						return
					}
					if header(answers[0], envoy.HeaderEndpoint) == "" || len(f.decided) != 3 {
						t.Fatalf("answer %v, %d decisions, want 3", answers[0], len(f.decided))
					}
					if got := f.decided[2].Endpoint().Name; c.at != "" && got != c.at {
						t.Errorf("sent to %s, want %s", got, c.at)
					}
					if f.picker.Find(f.decided[2].ID) == nil {
						t.Error("not booked")
					}
				})
			})
		}
	}
}

// Who leaves while held is never booked, not even when it is released at the
// same moment.
func TestLeaveWhileHeld(t *testing.T) {
	for _, c := range []struct {
		name     string
		released bool
	}{{"held", false}, {"just released", true}} {
		for _, mode := range []filterv3.ProcessingMode_BodySendMode{buffered, duplex} {
			t.Run(c.name+" "+mode.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(1), holding)
					fill(t, f, 1)
					stream := f.open(t, mode, streamed)
					stream.say(t, completion())
					stream.say(t, reqBody(long, true))
					heldNow(t, f, 1)
					stream.hangUp()
					if c.released {
						f.picker.SetEndpoints(pool(2))
					}
					synctest.Wait()
					if stream.isOpen() {
						t.Error("the stream goes on")
					}
					heldNow(t, f, 0)
					if c.released {
						f.picker.SetEndpoints(pool(1)) // what is booked on the second is off the books, but open
					}
					if open := f.picker.Stats().Open; open != 1 {
						t.Errorf("%d reservations are open, want the one that was not held", open)
					}
					if !c.released {
						f.holdsEnded(t, map[holdCause]int{holdCancelled: 1})
					}
				})
			})
		}
	}
}

// Where Envoy cannot be asked for patience nothing is held any longer.
func TestHeldStreamBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1), holding)
		fill(t, f, 1)
		stream := f.open(t, buffered, streamed)
		stream.one(t, completion())
		stream.broken = errBroken
		stream.say(t, reqBody(long, true))
		if stream.isOpen() || f.picker.Stats().Open != 1 {
			t.Errorf("open %v, %d reservations, want the one that was not held", stream.isOpen(), f.picker.Stats().Open)
		}
		heldNow(t, f, 0)
		f.holdsEnded(t, map[holdCause]int{holdCancelled: 1})
	})
}

// A draining service holds nothing that comes now; what has no prompt is never
// held.
func TestNotHeld(t *testing.T) {
	for _, c := range []struct {
		name  string
		drain bool
		ask   []*extprocv3.ProcessingRequest
	}{
		{"draining", true, []*extprocv3.ProcessingRequest{completion(), reqBody(long, true)}},
		{"no body", false, []*extprocv3.ProcessingRequest{reqHeaders(true, ":method", "GET", ":path", "/v1/models")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(1), holding)
				fill(t, f, 1)
				if c.drain {
					f.Drain(ended())
				}
				stream := f.open(t, buffered, streamed)
				var last *extprocv3.ProcessingResponse
				for _, m := range c.ask {
					last = stream.one(t, m)
				}
				if header(last, envoy.HeaderEndpoint) == "" {
					t.Errorf("answer: %v", last)
				}
				f.holdsEnded(t, nil)
			})
		})
	}
}
