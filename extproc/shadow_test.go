package extproc

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/scoring"
)

// show says a message that is only shown, to which nothing may be answered.
func (c *client) show(t *testing.T, m *extprocv3.ProcessingRequest) {
	t.Helper()
	m.ObservabilityMode = true
	if got := c.say(t, m); len(got) != 0 {
		t.Fatalf("%d answers to what is only shown: %v", len(got), got)
	}
}

// shown begins a stream that shows a completion with its body in chunks.
func (f *fixture) shown(t *testing.T, request string, chunks ...string) *client {
	t.Helper()
	c := f.open(t, streamed, streamed)
	c.show(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "content-type", "application/json", "x-request-id", request))
	for i, chunk := range chunks {
		c.show(t, reqBody(chunk, i == len(chunks)-1))
	}
	return c
}

// shadowCount is how often the metric was counted with a label.
func shadowCount(f *fixture, result string) float64 {
	return testutil.ToFloat64(f.metrics.shadowDecisions.WithLabelValues(result))
}

// poolReady is the record of the request r that was sent to an endpoint just now.
func poolReady(ip string) *datav3.HTTPAccessLogEntry {
	r := over(ip)
	r.CommonProperties.AccessLogType = datav3.AccessLogType_UpstreamPoolReady
	r.Response = nil
	return r
}

// over is the record of the end of the request r, of which only its own id is
// known.
func over(ip string) *datav3.HTTPAccessLogEntry {
	r := record("", ip, 200, nil)
	r.Request = &datav3.HTTPRequestProperties{RequestId: "r"}
	return r
}

// What would have been chosen is what is chosen where we are asked.
func TestShadowDecidesAsAStream(t *testing.T) {
	for _, chunks := range [][]string{
		{"{ a prompt }"},
		{"{ a longer ", "prompt, ", "plain }"},
		{`{ model:m }`},
		{"not an object"},
		{"{ model:other }"},
	} {
		t.Run(strings.Join(chunks, "|"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked, shown := newFixture(t, pool(3)), newFixture(t, pool(3))
				for range 4 {
					c := asked.open(t, buffered, streamed)
					c.one(t, completion())
					c.one(t, reqBody(strings.Join(chunks, ""), true))
					s := shown.shown(t, "", chunks...)
					if s.isOpen() {
						s.show(t, respHeaders("200", true))
						s.close(errCancelled)
					}
					c.close(errCancelled)
				}
				if len(asked.decided) != len(shown.decided) {
					t.Fatalf("%d decisions for requests that are shown, %d where we are asked", len(shown.decided), len(asked.decided))
				}
				for i := range asked.decided {
					a, s := asked.decided[i], shown.decided[i]
					if diff := cmp.Diff(a.Prompt, s.Prompt, cmpopts.IgnoreFields(scoring.Prompt{}, "Received")); diff != "" {
						t.Errorf("prompt (-asked +shown):\n%s", diff)
					}
					if len(a.Candidates) != len(s.Candidates) || a.Reason != s.Reason || a.Policy != s.Policy {
						t.Errorf("asked %d candidates %s, shown %d %s", len(a.Candidates), a.Reason, len(s.Candidates), s.Reason)
					}
				}
				if skipped := testutil.ToFloat64(shown.metrics.shadowSkipped.WithLabelValues("refused")); int(skipped) != 4-len(asked.decided) {
					t.Errorf("%v of 4 requests are refused, want %d", skipped, 4-len(asked.decided))
				}
			})
		})
	}
}

// The booking, its estimate and the first token are those of the endpoint that
// serves, by Envoy's word.
func TestShadowFollowsWhoServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(3))
		c := f.shown(t, "r", "{ a", " prompt }")
		if len(f.decided) != 0 {
			t.Error("told of before it is known who serves")
		}
		time.Sleep(time.Second)
		c.show(t, with(respHeaders("200", false), 200, "10.0.0.2:8000"))
		if len(f.decided) != 1 || f.decided[0].Endpoint().Address != "10.0.0.2:8000" {
			t.Fatalf("decided %+v", f.decided)
		}
		result := "differed"
		if f.decided[0].Shadow.Choice.Endpoint.Address == "10.0.0.2:8000" {
			result = "agreed"
		}
		if s := f.picker.Stats().Endpoints[1]; s.Waiting != 1 {
			t.Errorf("%d wait at the endpoint that serves, want 1", s.Waiting)
		}
		time.Sleep(time.Second)
		c.show(t, respBody("data: x\n\n", false))
		if c.isOpen() {
			t.Error("open after the first chunk: every further one would cost as much")
		}
		if !slices.Equal(f.tokens, []time.Duration{2 * time.Second}) {
			t.Errorf("first tokens %v, want one after 2s", f.tokens)
		}
		// The stream is over for us; the access log tells the end.
		f.record(over("10.0.0.2"))
		if want := []ending{{f.decided[0].ID, scoring.OutcomeComplete, "10.0.0.2:8000"}}; !slices.Equal(f.ends, want) {
			t.Errorf("ended %v, want %v", f.ends, want)
		}
		if shadowCount(f, result) != 1 || f.shadows.byRequest.Len() != 0 || f.shadows.streams.Load() != 0 {
			t.Errorf("%v %s, %d requests and %d streams are left", shadowCount(f, result), result, f.shadows.byRequest.Len(), f.shadows.streams.Load())
		}
	})
}

// The access log tells who serves when a request leaves, long before an answer
// that is not streamed; a second try moves the booking.
func TestShadowByAccessLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(3))
		c := f.shown(t, "r", "{ plain }")
		f.record(poolReady("10.0.0.3"))
		if len(f.decided) != 1 || f.decided[0].Endpoint().Address != "10.0.0.3:8000" || f.picker.Stats().Endpoints[2].Waiting != 1 {
			t.Fatalf("decided %+v", f.decided)
		}
		f.record(poolReady("10.0.0.2"))
		if got := f.picker.Stats().Endpoints; got[1].Waiting+got[1].Decoding != 1 || got[2].Waiting+got[2].Decoding != 0 {
			t.Errorf("not moved: %+v", got)
		}
		c.show(t, with(respBody("{}", true), 200, "10.0.0.2:8000"))
		c.close(errCancelled)
		f.record(over("10.0.0.2"))
		if want := []ending{{f.decided[0].ID, scoring.OutcomeComplete, "10.0.0.2:8000"}}; !slices.Equal(f.ends, want) || len(f.decided) != 1 {
			t.Errorf("ended %v, want %v; %d decisions", f.ends, want, len(f.decided))
		}
	})
	t.Run("before the decision", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(3))
			c := f.shown(t, "r", "{")
			if c.show(t, reqBody(" a ", false)); len(f.decided) != 0 {
				t.Fatal("decided before the body has ended")
			}
			f.record(poolReady("10.0.0.3"))
			c.show(t, reqBody("}", true))
			if len(f.decided) != 1 || f.decided[0].Endpoint().Address != "10.0.0.3:8000" {
				t.Errorf("decided %+v", f.decided)
			}
		})
	})
	t.Run("two requests with one id", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			f.shown(t, "r", "{ a }")
			f.shown(t, "r", "{ b }")
			f.record(poolReady("10.0.0.1"))
			f.record(over("10.0.0.1"))
			if len(f.decided) != 0 || len(f.ends) != 0 {
				t.Errorf("%d decisions, %d ends by an id that says nothing", len(f.decided), len(f.ends))
			}
		})
	})
}

// Behind another router only it knows who serves; where it says nothing the
// request is booked nowhere, and its first token is measured all the same.
func TestShadowBesideAnotherRouter(t *testing.T) {
	for _, c := range []struct{ header, value, served string }{
		{"", "", ""},
		{"x-served-by", "", ""},
		{"x-served-by", "http://10.0.0.2:8000/", "10.0.0.2:8000"},
		{"x-served-by", "10.0.0.2:8000", "10.0.0.2:8000"},
		{"x-served-by", "192.0.2.1:1", ""},
	} {
		t.Run(fmt.Sprintf("%s=%s", c.header, c.value), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(3), func(cfg *Config, _ *Deps) { cfg.Shadow.ServedHeader = c.header })
				s := f.shown(t, "r", "{ a }")
				m := respHeaders("200", false)
				m.GetResponseHeaders().Headers.Headers = append(m.GetResponseHeaders().GetHeaders().GetHeaders(),
					&corev3.HeaderValue{Key: "X-Served-By", RawValue: []byte(c.value)})
				s.show(t, with(m, 200, "10.1.1.1:8001"))
				s.show(t, respBody("data: x\n\n", false))
				if len(f.decided) != 1 || len(f.tokens) != 1 {
					t.Fatalf("%d decisions, %d first tokens", len(f.decided), len(f.tokens))
				}
				d := f.decided[0]
				if d.Shadow.Placed != (c.served != "") || d.Shadow.Placed && d.Endpoint().Address != c.served {
					t.Errorf("placed %v at %s, want %q", d.Shadow.Placed, d.Endpoint().Address, c.served)
				}
				if unknown := shadowCount(f, "unknown"); (unknown == 1) != (c.served == "") {
					t.Errorf("%v unknown", unknown)
				}
				waiting := 0
				for _, e := range f.picker.Stats().Endpoints {
					waiting += e.Waiting + e.Decoding
				}
				if (waiting == 1) != (c.served != "") {
					t.Errorf("%d requests are booked", waiting)
				}
				if _, known := d.Reservation.Estimate(); known != (c.served != "") {
					t.Errorf("an estimate is compared with another endpoint's time: %v", known)
				}
			})
		})
	}
}

// What is kept is bounded, what is not watched is counted, and nothing stays.
func TestShadowLimits(t *testing.T) {
	const big = 400
	limits := func(cfg *Config, _ *Deps) {
		cfg.BodyLimit, cfg.Shadow.Streams, cfg.Shadow.BodyBytes = big, 3, 2*big
	}
	for _, c := range []struct {
		cause string
		play  func(t *testing.T, f *fixture)
	}{
		{"too_large", func(t *testing.T, f *fixture) {
			t.Helper()
			f.shown(t, "", strings.Repeat("x", big), "x")
		}},
		{"streams", func(t *testing.T, f *fixture) {
			t.Helper()
			for range 3 {
				f.shown(t, "", "{")
			}
			f.open(t, streamed, streamed).show(t, completion())
		}},
		{"bytes", func(t *testing.T, f *fixture) {
			t.Helper()
			var open []*client
			for range 3 {
				open = append(open, f.shown(t, ""))
			}
			for _, c := range open {
				c.show(t, reqBody(strings.Repeat("x", big*3/4), false))
			}
		}},
		{"no_body", func(t *testing.T, f *fixture) {
			t.Helper()
			for _, mode := range []filterv3.ProcessingMode_BodySendMode{buffered, duplex, partial} {
				f.open(t, mode, streamed).show(t, completion())
			}
		}},
	} {
		t.Run(c.cause, func(t *testing.T) {
			var f *fixture
			synctest.Test(t, func(t *testing.T) {
				f = newFixture(t, pool(2), limits)
				c.play(t, f)
				for _, cause := range []string{"too_large", "streams", "bytes", "no_body", "refused", "cut"} {
					want := 0.0
					if cause == c.cause {
						want = map[bool]float64{true: 3, false: 1}[cause == "no_body"]
					}
					if got := testutil.ToFloat64(f.metrics.shadowSkipped.WithLabelValues(cause)); got != want {
						t.Errorf("%v skipped for %s, want %v", got, cause, want)
					}
				}
			})
			if f.shadows.streams.Load() != 0 || f.shadows.bytes.Load() != 0 {
				t.Errorf("%d streams and %d bytes are left", f.shadows.streams.Load(), f.shadows.bytes.Load())
			}
		})
	}
}

// A request that Envoy ends before all of it was seen is counted.
func TestShadowThatIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.shown(t, "r", "{", " a")
		f.shown(t, "s", "{ a }").close(errCancelled)
		if c.isOpen() {
			c.close(errCancelled)
		}
		d := f.open(t, streamed, streamed)
		d.show(t, completion())
		d.close(errCancelled)
		if got := testutil.ToFloat64(f.metrics.shadowSkipped.WithLabelValues("cut")); got != 1 {
			t.Errorf("%v cut, want 1", got)
		}
		if len(f.decided) != 2 || len(f.ends) != 2 {
			t.Errorf("%d decisions, %d ends of requests whose answers nobody saw", len(f.decided), len(f.ends))
		}
	})
}

// A filter that shows neither bodies nor answers to our choices shows nothing.
func TestShownWithoutBodiesIsNoShadow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, none, streamed)
		c.show(t, completion())
		c.show(t, with(respBody("data: x\n\n", false), 200, "10.0.0.1:8000"))
		if len(f.decided) != 0 {
			t.Errorf("%d decisions", len(f.decided))
		}
	})
}

// What observers keep by the endpoint of a decision goes when they are told of the
// end of the same one: whoever is told late who serves changes nothing.
func TestShadowThatIsPlacedTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(3))
		c := f.shown(t, "r", "{ a }")
		c.show(t, respHeaders("200", false)) // by a filter without upstream.address
		c.show(t, respBody("data: x\n\n", false))
		f.record(over("10.0.0.3"))
		if len(f.decided) != 1 || f.decided[0].Shadow.Placed {
			t.Fatalf("decided %+v", f.decided)
		}
		if want := []ending{{f.decided[0].ID, scoring.OutcomeComplete, ""}}; !slices.Equal(f.ends, want) || f.endings[0].Shadow.Placed || f.endings[0].Endpoint().ID != f.decided[0].Endpoint().ID {
			t.Errorf("ended %v of another decision than was told, want %v", f.ends, want)
		}
	})
}

// Nobody is told of a decision whose end was told before, by its age.
func TestShadowThatHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(3))
		c := f.shown(t, "r", "{ a }")
		time.Sleep(time.Hour)
		expired := f.picker.Expire()
		if len(expired) != 1 {
			t.Fatalf("%d bookings expired", len(expired))
		}
		c.show(t, with(respHeaders("200", false), 200, "10.0.0.2:8000"))
		c.show(t, respBody("data: x\n\n", true))
		f.record(over("10.0.0.2"))
		if len(f.decided) != 0 || len(f.ends) != 0 || len(f.tokens) != 0 {
			t.Errorf("told of %d decisions, %d first tokens and %d ends of one that has expired", len(f.decided), len(f.tokens), len(f.ends))
		}
		if shadowCount(f, "unknown") != 1 {
			t.Error("it is not counted")
		}
	})
}

// Records of requests that nobody showed are not kept, and do not say that the
// Envoys which do show theirs log them.
func TestRecordsThatAreNoShadows(t *testing.T) {
	for _, name := range []string{"nothing is shown", "another Envoy shows", "of an arm"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(2))
				var c *client
				kept := 0
				if name != "nothing is shown" {
					c, kept = f.shown(t, "shown", "{ a }"), 1
				}
				entry := over("10.0.0.1")
				if name == "of an arm" {
					entry.CommonProperties.Metadata = labelledBy("another service")
				}
				f.record(entry)
				if name == "another Envoy shows" {
					kept++ // its stream may yet come
				}
				if got := f.shadows.byRequest.Len(); got != kept || f.shadows.logged.Load() {
					t.Errorf("%d requests are kept, want %d; logged: %v", got, kept, f.shadows.logged.Load())
				}
				if c == nil {
					return
				}
				c.close(errCancelled)
				if len(f.ends) != 1 {
					t.Errorf("%d ends of a request whose Envoy logs nothing, want 1", len(f.ends))
				}
			})
		})
	}
}

// What is only shown is not left to Envoy, which never asked.
func TestShadowIsNotLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, streamed, streamed)
		c.show(t, reqHeaders(false, ":method", "POST", ":path", "/other", "content-type", "application/json"))
		c.show(t, reqBody("{model:other }", true))
		if skipped := testutil.ToFloat64(f.metrics.shadowSkipped.WithLabelValues("refused")); skipped != 1 {
			t.Fatalf("%v refused", skipped)
		}
		if left := f.leftTo("unknown_model"); left != 0 {
			t.Errorf("left to Envoy %v times", left)
		}
	})
}

// A record that comes before its stream says that Envoy logs such requests.
func TestShadowWhoseRecordIsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		f.shown(t, "first", "{ a }")
		f.record(poolReady("10.0.0.2"))
		if c := f.shown(t, "r", "{ b }"); !f.shadows.logged.Load() || len(f.decided) != 1 {
			t.Errorf("not joined: %d decisions, logged %v", len(f.decided), f.shadows.logged.Load())
			c.close(errCancelled)
		}
	})
}
