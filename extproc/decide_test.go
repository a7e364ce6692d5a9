package extproc

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// What is answered by us, and what never is.
func TestRefusals(t *testing.T) {
	two := pool(2)
	two[1].Models = []string{"n", "alias"}
	unready := pool(1)
	unready[0].Ready = false
	unknown := pool(2)
	unknown[1].Models = nil
	for _, c := range []struct {
		name      string
		endpoints []scoring.Endpoint
		path      string
		body      string
		status    int // 0: passed
		want      string
	}{
		{"not an object", pool(1), "/v1/completions", "hello", 400, `{"error":{"message":"not an object","type":"Bad Request","param":"body","code":400}}`},
		{"with a query", pool(1), "/v1/chat/completions?v=1", "hello", 400, ""},
		{"not an object, elsewhere", pool(1), "/v1/embeddings", "hello", 0, ""},
		{"no model of several", two, "/v1/completions", "{}", 400, `{"error":{"message":"The request names no model and more than one is served. Valid aliases: alias, m, n.","type":"BadRequestError","param":"model","code":400}}`},
		{"no model of several, elsewhere", two, "/v1/embeddings", "{}", 0, ""},
		{"unknown model", two, "/v1/completions", "{model:nope }", 404, "{\"error\":{\"message\":\"The model `nope` does not exist. Valid aliases: alias, m, n.\",\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}"},
		{"unknown model, responses", two, "/v1/responses", "{model:nope }", 404, "{\"error\":{\"message\":\"The model `nope` does not exist. Valid aliases: alias, m, n.\",\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}"},
		{"unknown model, messages", two, "/v1/messages?beta=true", "{model:nope }", 404, "{\"type\":\"error\",\"error\":{\"type\":\"NotFoundError\",\"message\":\"The model `nope` does not exist. Valid aliases: alias, m, n.\"}}"},
		{"counting tokens generates none", two, "/v1/messages/count_tokens", "{model:nope }", 0, ""},
		{"unknown model, elsewhere", two, "/v1/embeddings", "{model:nope }", 0, ""},
		{"perhaps known model", unknown, "/v1/completions", "{model:nope }", 0, ""},
		{"alias", two, "/v1/completions", "{model:alias }", 0, ""},
		{"no ready endpoint", unready, "/v1/completions", "{}", 503, `{"error":{"message":"No engine that serves this request is ready.","type":"ServiceUnavailableError","param":null,"code":503}}`},
		{"no endpoint", nil, "/v1/chat/completions", "{}", 503, ""},
		{"no ready endpoint, elsewhere", unready, "/v1/models", "{}", 0, ""},
		{"long", pool(1), "/v1/completions", "{" + strings.Repeat("x", 100) + "}", 413, `{"error":{"message":"The request body is larger than 64 bytes.","type":"RequestEntityTooLargeError","param":null,"code":413}}`},
		{"long, elsewhere", pool(1), "/v1/embeddings", "{" + strings.Repeat("x", 100) + "}", 0, ""},
		{"empty: the engine's to refuse", pool(1), "/v1/completions", "", 0, ""},
	} {
		for _, mode := range []string{"buffered", "duplex"} {
			t.Run(c.name+" "+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, c.endpoints, func(c *Config, _ *Deps) { c.BodyLimit = 64 })
					stream := f.open(t, buffered, streamed)
					if mode == "duplex" {
						stream = f.open(t, duplex, none)
					}
					stream.say(t, reqHeaders(false, ":method", "POST", ":path", c.path))
					answers := stream.say(t, reqBody(c.body, true))
					last := answers[len(answers)-1].GetImmediateResponse()
					if c.status == 0 {
						if last != nil || !stream.isOpen() {
							t.Fatalf("refused: %v", last)
						}
						return
					}
					if len(answers) != 1 || int(last.GetStatus().GetCode()) != c.status || stream.isOpen() {
						t.Fatalf("answers %v, open %v, want one %d", answers, stream.isOpen(), c.status)
					}
					if got := string(last.GetBody()); (c.want != "" && got != c.want) || !json.Valid(last.GetBody()) {
						t.Errorf("body %s, want %s", got, c.want)
					}
					if !strings.HasPrefix(last.GetDetails(), "firsttoken_") {
						t.Errorf("details %q", last.GetDetails())
					}
					if open := f.picker.Stats().Open; open != 0 {
						t.Errorf("%d reservations are open", open)
					}
				})
			})
		}
	}
}

// A cut body is no fault of the request.
func TestPartialBodyIsNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		c := f.open(t, partial, none)
		c.one(t, completion())
		m := c.one(t, reqBody("[cut", false))
		if header(m, envoy.HeaderEndpoint) == "" {
			t.Errorf("answer: %v", m)
		}
		if got := f.decided[0].Prompt.Source; got != scoring.TokensEstimated {
			t.Errorf("tokens from %s", got)
		}
	})
}

// Whatever becomes of the encoder, the request is routed in time.
func TestEncoderFails(t *testing.T) {
	for _, c := range []struct {
		name   string
		encode encoderFunc
		cause  string
		after  time.Duration
	}{
		{"hangs until its deadline", func(ctx context.Context, _ prompt.Request) (*scoring.Prompt, error) {
			<-ctx.Done()
			return &scoring.Prompt{Source: scoring.TokensEstimated}, nil
		}, causeDeadline, 500 * time.Millisecond},
		{"overruns its deadline", func(context.Context, prompt.Request) (*scoring.Prompt, error) {
			time.Sleep(5 * time.Second) // the bubble's clock
			return nil, errors.New("too late")
		}, causeDeadline, 500*time.Millisecond + encoderGrace},
		{"fails", func(context.Context, prompt.Request) (*scoring.Prompt, error) { return nil, errors.New("no") }, causeEncoder, 0},
		{"panics", func(context.Context, prompt.Request) (*scoring.Prompt, error) { panic("no") }, causeEncoder, 0},
	} {
		for _, mode := range []string{"buffered", "duplex"} {
			t.Run(c.name+" "+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(2), func(_ *Config, d *Deps) { d.Encoder = c.encode })
					stream := f.open(t, buffered, streamed)
					if mode == "duplex" {
						stream = f.open(t, duplex, none)
					}
					stream.say(t, completion())
					began := time.Now()
					answers := stream.say(t, reqBody("{}", true))
					if len(answers) == 0 { // the encoder waits
						time.Sleep(time.Minute)
						synctest.Wait()
						answers = stream.answers()
					}
					if len(f.decided) != 1 || f.decided[0].Time.Sub(began) != c.after {
						t.Fatalf("%d decisions, want one after %s", len(f.decided), c.after)
					}
					if !slices.ContainsFunc(answers, func(m *extprocv3.ProcessingResponse) bool { return header(m, envoy.HeaderEndpoint) != "" }) {
						t.Errorf("answers: %v", answers)
					}
					if got := f.decided[0].Prompt.Source; got != scoring.TokensEstimated {
						t.Errorf("tokens from %s", got)
					}
					if n := testutil.ToFloat64(f.metrics.fallbacks.WithLabelValues(c.cause)); n != 1 {
						t.Errorf("fallback %s counted %v times", c.cause, n)
					}
				})
			})
		}
	}
}

// A model that we could not read is not one that the client left out.
func TestUnreadModelIsNotMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		two := pool(2)
		two[1].Models = []string{"n"}
		f := newFixture(t, two, func(_ *Config, d *Deps) {
			d.Encoder = encoderFunc(func(context.Context, prompt.Request) (*scoring.Prompt, error) { return nil, errors.New("no") })
		})
		c := f.open(t, buffered, none)
		c.one(t, completion())
		if m := c.one(t, reqBody("{}", true)); m.GetImmediateResponse() != nil {
			t.Errorf("refused: %v", m)
		}
	})
}

// A client that promises a long body does not get the memory for it.
func TestContentLengthIsNotTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		for _, promise := range []string{"33554432", "-1", "99999999999999999999", "x"} {
			st := &stream{Server: f.Server, conn: f.open(t, duplex, none), dialect: dialect{request: bodyDuplex, declared: true}}
			if err := st.handle(reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "content-length", promise)); err != nil {
				t.Fatal(err)
			}
			if cap(st.body) > 1<<20 {
				t.Errorf("content-length %s: %d bytes set aside", promise, cap(st.body))
			}
		}
	})
}

// The phases of a stream are counted and add up to nothing at its end.
func TestStreamPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		in := func(p phase) float64 { return testutil.ToFloat64(f.metrics.streams.WithLabelValues(string(p))) }
		c := f.open(t, duplex, duplex)
		c.say(t, completion())
		if in(phaseReceiving) != 1 {
			t.Error("not receiving")
		}
		c.say(t, reqBody("{}", true))
		if in(phaseReceiving) != 0 || in(phaseWaiting) != 1 {
			t.Error("not waiting")
		}
		c.say(t, respBody("data: x\n\n", false))
		if in(phaseWaiting) != 0 || in(phaseAnswering) != 1 {
			t.Error("not answering")
		}
		c.close(errEOF)
		for _, p := range []phase{phaseReceiving, phaseDeciding, phaseWaiting, phaseAnswering} {
			if in(p) != 0 {
				t.Errorf("%v streams are %s", in(p), p)
			}
		}
	})
}
