package extproc

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// Each test is headed by the sentence of the protocol that it holds us to.

// "for every received ProcessingRequest, the server must send back exactly one
// ProcessingResponse message" (unless full duplex).
func TestOneAnswerForEachMessage(t *testing.T) {
	for _, mode := range []filterv3.ProcessingMode_BodySendMode{none, streamed, buffered, partial} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(2))
				c := f.open(t, mode, streamed)
				if m := c.one(t, completion()); m.GetRequestHeaders() == nil {
					t.Errorf("headers answered by %v", m)
				}
				if m := c.one(t, reqBody("{}", mode != streamed)); m.GetRequestBody() == nil {
					t.Errorf("body answered by %v", m)
				}
				if mode == streamed {
					c.one(t, reqBody("{}", true))
				}
				if m := c.one(t, reqTrailers()); m.GetRequestTrailers() == nil {
					t.Errorf("trailers answered by %v", m)
				}
				if m := c.one(t, respHeaders("200", false)); m.GetResponseHeaders() == nil {
					t.Errorf("response headers answered by %v", m)
				}
				if m := c.one(t, respBody("data: x\n\n", false)); m.GetResponseBody() == nil {
					t.Errorf("response body answered by %v", m)
				}
				if len(f.decided) != 1 {
					t.Errorf("%d decisions for one request", len(f.decided))
				}
			})
		})
	}
}

// "When responding to an HttpBody request, header mutations will only take
// effect if the current processing mode for the body is BUFFERED".
func TestWhereTheChoiceIsTold(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    filterv3.ProcessingMode_BodySendMode
		headers bool // sent to us
		at      int  // index of the message whose answer tells it; -1: nowhere
		source  scoring.TokenSource
	}{
		{"buffered", buffered, true, 1, scoring.TokensEstimated},
		{"buffered, headers skipped", buffered, false, 0, scoring.TokensEstimated},
		{"streamed: by load, with the headers", streamed, true, 0, scoring.TokensNone},
		{"streamed, headers skipped: the headers have left", streamed, false, -1, ""},
		{"no body mode: by load, with the headers", none, true, 0, scoring.TokensNone},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(3))
				stream := f.open(t, c.mode, none)
				var answers []*extprocv3.ProcessingResponse
				if c.headers {
					answers = append(answers, stream.one(t, completion()))
				}
				answers = append(answers, stream.one(t, reqBody("{ a prompt }", true)))
				for i, m := range answers {
					told := header(m, envoy.HeaderEndpoint)
					if (i == c.at) != (told != "") {
						t.Errorf("answer %d tells %q", i, told)
					}
				}
				if c.at < 0 {
					if len(f.decided) != 0 {
						t.Error("booked what cannot be obeyed")
					}
					return
				}
				if got := f.decided[0].Prompt.Source; got != c.source {
					t.Errorf("tokens from %s, want %s", got, c.source)
				}
			})
		})
	}
}

// "Pick is given twice, with equal values: request header
// x-gateway-destination-endpoint, and dynamic metadata envoy.lb ->
// x-gateway-destination-endpoint", with clear_route_cache and raw_value; each
// way can be switched off.
func TestHowTheChoiceIsTold(t *testing.T) {
	for _, c := range []struct {
		name      string
		change    func(*Config)
		addresses int // in header and metadata
		cluster   bool
	}{
		{"all", func(*Config) {}, 3, true},
		{"one address", func(c *Config) { c.Fallbacks = 0 }, 1, true},
		{"one next best", func(c *Config) { c.Fallbacks = 1 }, 2, true},
		{"no cluster", func(c *Config) { c.ClusterHeader = false }, 3, false},
		{"cluster alone", func(c *Config) { c.DestinationHeader, c.DestinationMetadata = false, false }, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(5), func(cfg *Config, _ *Deps) { c.change(cfg) })
				stream := f.open(t, buffered, streamed)
				stream.one(t, completion())
				m := stream.one(t, reqBody("{}", true))
				d := f.decided[0]
				told, meta := header(m, envoy.HeaderEndpoint), metadata(m, "envoy.lb", envoy.HeaderEndpoint)
				if told != meta {
					t.Errorf("header %q, metadata %q", told, meta)
				}
				var want []string
				for _, candidate := range d.Candidates[:c.addresses] {
					want = append(want, candidate.Endpoint.Address)
				}
				if told != strings.Join(want, ",") {
					t.Errorf("told %q, want %q", told, want)
				}
				for _, address := range want {
					if _, err := netip.ParseAddrPort(address); err != nil {
						t.Errorf("not ip:port: %v", err)
					}
				}
				if got := header(m, envoy.HeaderCluster); (got == d.Endpoint().Cluster) != c.cluster {
					t.Errorf("cluster %q", got)
				}
				if !m.GetRequestBody().GetResponse().GetClearRouteCache() {
					t.Error("the route cache stays")
				}
				for i, h := range mutation(m).GetSetHeaders() {
					if h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD || h.GetHeader().GetValue() != "" {
						t.Errorf("header %d is not an overwriting raw value: %v", i, h)
					}
				}
				for key, want := range map[string]string{"id": d.ID, "endpoint": d.Endpoint().Address, "reason": string(d.Reason)} {
					if got := metadata(m, "firsttoken", key); got != want {
						t.Errorf("metadata %s is %q, want %q", key, got, want)
					}
				}
				if n := len(m.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()); n > 1 {
					t.Errorf("%d keys under envoy.lb, and one more than the balancer's hides it", n)
				}
			})
		})
	}
}

// An endpoint that is not ready is never named, not as a next best either.
func TestUnreadyIsNeverNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		endpoints := pool(4)
		endpoints[1].Ready, endpoints[3].Ready = false, false
		f := newFixture(t, endpoints)
		for range 20 {
			c := f.open(t, buffered, none)
			c.one(t, completion())
			m := c.one(t, reqBody("{}", true))
			for address := range strings.SplitSeq(header(m, envoy.HeaderEndpoint), ",") {
				if address == endpoints[1].Address || address == endpoints[3].Address {
					t.Fatalf("named %s", address)
				}
			}
		}
	})
}

// "Strip the control headers and any client-sent x-gateway-destination-endpoint*
// before forwarding": every control header is either set by us or removed, with
// and without a choice.
func TestControlHeadersAreOurs(t *testing.T) {
	for _, mode := range []filterv3.ProcessingMode_BodySendMode{none, streamed, buffered, duplex} {
		for _, kind := range []struct {
			name    string
			ready   bool
			cluster string
		}{{"choice", true, "c"}, {"choice without cluster", true, ""}, {"no choice", false, ""}} {
			t.Run(mode.String()+" "+kind.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					endpoints := pool(2)
					for i := range endpoints {
						endpoints[i].Ready, endpoints[i].Cluster = kind.ready, kind.cluster
					}
					f := newFixture(t, endpoints)
					c := f.open(t, mode, none)
					// Another path: without endpoints Envoy chooses.
					answers := c.say(t, reqHeaders(false, ":method", "POST", ":path", "/v1/embeddings"))
					answers = append(answers, c.say(t, reqBody("{}", true))...)
					for _, name := range envoy.ControlHeaders {
						ours := slices.ContainsFunc(answers, func(m *extprocv3.ProcessingResponse) bool {
							return removes(m, name) || header(m, name) != ""
						})
						if !ours {
							t.Errorf("%s of a client passes", name)
						}
					}
					for _, m := range answers {
						if len(mutation(m).GetRemoveHeaders()) > 0 && !m.GetRequestHeaders().GetResponse().GetClearRouteCache() &&
							!m.GetRequestBody().GetResponse().GetClearRouteCache() {
							t.Error("what a removed header matched stays in the route cache")
						}
					}
				})
			})
		}
	}
}

// Control headers that a client sent are removed before its body is there:
// Envoy lets the request pass where the body is never answered.
func TestControlHeadersGoAtOnce(t *testing.T) {
	for _, name := range envoy.ControlHeaders {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(2))
				c := f.open(t, buffered, none)
				m := c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", strings.ToUpper(name), "10.0.0.9:8000"))
				if !removes(m, name) || !m.GetRequestHeaders().GetResponse().GetClearRouteCache() {
					t.Errorf("it stays until the body is answered: %v", m)
				}
			})
		})
	}
}

// "Order in FDS: hold back the headers response until the body has ended; then
// headers response, then the body as StreamedResponse chunks, last with
// end_of_stream. Chunks of at most 62,000 bytes".
func TestFullDuplex(t *testing.T) {
	requestBodyOf := func(m *extprocv3.ProcessingResponse) *extprocv3.BodyResponse { return m.GetRequestBody() }
	body := "{" + strings.Repeat("0123456789", 30_000) + "}"
	for _, declared := range []bool{true, false} {
		for _, n := range []int{1, 7, 62_000, 62_001, len(body)} {
			t.Run("", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(2))
					c := f.open(t, duplex, duplex)
					if !declared {
						c = f.openUndeclared(t) // "absent: answer as in FULL_DUPLEX_STREAMED"
					}
					if got := c.say(t, completion()); len(got) != 0 {
						t.Fatalf("headers answered before the body: %v", got)
					}
					sent := body[:min(len(body), 3*n)]
					for piece := range slices.Chunk([]byte(sent), n) {
						if got := c.say(t, reqBody(string(piece), false)); len(got) != 0 {
							t.Fatalf("answered before the body has ended: %v", got)
						}
					}
					got := c.say(t, reqBody("", true))
					if len(got) < 2 || header(got[0], envoy.HeaderEndpoint) == "" || got[0].GetRequestHeaders() == nil {
						t.Fatalf("the first answer is not that to the headers: %v", got)
					}
					if text, end := joined(t, got[1:], requestBodyOf); string(text) != sent || !end {
						t.Errorf("%d bytes came back of %d, end %v", len(text), len(sent), end)
					}
				})
			})
		}
	}
	t.Run("trailers end the body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, duplex, none)
			c.say(t, completion())
			c.say(t, reqBody("{}", false))
			got := c.say(t, reqTrailers())
			if len(got) != 3 || got[0].GetRequestHeaders() == nil || got[2].GetRequestTrailers() == nil {
				t.Fatalf("answers: %v", got)
			}
			if text, end := joined(t, got[1:2], requestBodyOf); string(text) != "{}" || end {
				t.Errorf("body %q, end %v", text, end)
			}
		})
	})
	t.Run("no body: headers answered at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, duplex, none)
			if m := c.one(t, reqHeaders(true, ":method", "GET", ":path", "/v1/models")); header(m, envoy.HeaderEndpoint) == "" {
				t.Errorf("answer: %v", m)
			}
		})
	})
	t.Run("empty body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, duplex, none)
			c.say(t, completion())
			if got := c.say(t, reqBody("", true)); len(got) != 2 {
				t.Fatalf("answers: %v", got)
			}
		})
	})
	t.Run("too long for us and no generation: passed on as it comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2), func(c *Config, _ *Deps) { c.BodyLimit = 10 })
			c := f.open(t, duplex, none)
			c.say(t, reqHeaders(false, ":method", "POST", ":path", "/v1/audio/transcriptions"))
			c.say(t, reqBody("0123456789", false))
			got := c.say(t, reqBody("a", false))
			got = append(got, c.say(t, reqBody("bc", false))...)
			got = append(got, c.say(t, reqBody("", true))...)
			if text, end := joined(t, got[1:], requestBodyOf); string(text) != "0123456789abc" || !end {
				t.Errorf("body %q, end %v", text, end)
			}
			if f.decided[0].Prompt.Source != scoring.TokensNone {
				t.Errorf("decided by %v", f.decided[0].Prompt)
			}
		})
	})
	t.Run("headers skipped: the body passes, nothing is booked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, duplex, none)
			got := c.say(t, reqBody("{", false))
			got = append(got, c.say(t, reqBody("}", true))...)
			if text, end := joined(t, got, requestBodyOf); string(text) != "{}" || !end || len(f.decided) != 0 {
				t.Errorf("body %q, end %v, %d decisions", text, end, len(f.decided))
			}
		})
	})
}

// An Envoy too old to declare its modes that skips headers is one that
// buffers.
func TestUndeclaredBodyFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.openUndeclared(t)
		m := reqBody("{}", true)
		m.Attributes = map[string]*structpb.Struct{"f": {Fields: map[string]*structpb.Value{
			"request.path": structpb.NewStringValue("/v1/completions"),
		}}}
		if got := c.one(t, m); header(got, envoy.HeaderEndpoint) == "" {
			t.Errorf("answer: %v", got)
		}
	})
}

// "The router learns path and id from request_attributes" where headers are
// skipped.
func TestPathFromAttributes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen prompt.Request
		f := newFixture(t, pool(1), func(_ *Config, d *Deps) {
			d.Encoder = encoderFunc(func(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
				seen = r
				return encode(ctx, r)
			})
		})
		c := f.open(t, buffered, none)
		m := reqBody("{}", true)
		m.Attributes = map[string]*structpb.Struct{"f": {Fields: map[string]*structpb.Value{
			"request.path": structpb.NewStringValue("/v1/completions?x=1"), "request.method": structpb.NewStringValue("POST"),
		}}}
		c.one(t, m)
		if seen.Path != "/v1/completions?x=1" || seen.Method != http.MethodPost {
			t.Errorf("encoder saw %+v", seen)
		}
	})
}

// "First token: read it from the first body chunk (response STREAMED), then
// return nil from Process".
func TestFirstTokenThenGone(t *testing.T) {
	for _, request := range []filterv3.ProcessingMode_BodySendMode{buffered, duplex} {
		t.Run(request.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(2))
				c := f.open(t, request, streamed)
				c.say(t, completion())
				c.say(t, reqBody("{}", true))
				d := f.decided[0]
				time.Sleep(300 * time.Millisecond) // the bubble's clock
				c.one(t, with(respBody("data: x\n\n", false), 200, d.Endpoint().Address))
				if c.isOpen() || c.err != nil {
					t.Errorf("open %v, status %v", c.isOpen(), c.err)
				}
				if len(f.tokens) != 1 || f.tokens[0] != 300*time.Millisecond {
					t.Errorf("first tokens %v, want 300ms", f.tokens)
				}
				if f.picker.Find(d.ID) == nil || len(f.ends) != 0 {
					t.Error("the request is over, but only its stream is")
				}
			})
		})
	}
}

// "Response FDS: 5 of 6 hung or lost data. Never close early there".
func TestDuplexResponseIsFollowedToItsEnd(t *testing.T) {
	responseBodyOf := func(m *extprocv3.ProcessingResponse) *extprocv3.BodyResponse { return m.GetResponseBody() }
	for _, request := range []filterv3.ProcessingMode_BodySendMode{buffered, duplex} {
		t.Run(request.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(2))
				c := f.open(t, request, duplex)
				c.say(t, completion())
				c.say(t, reqBody("{}", true))
				c.one(t, respHeaders("200", false))
				long := strings.Repeat("x", 200_000)
				var got []*extprocv3.ProcessingResponse
				for _, m := range []*extprocv3.ProcessingRequest{respBody("data: x\n\n", false), respBody(long, false), respBody("", true)} {
					got = append(got, c.say(t, m)...)
					if !c.isOpen() {
						t.Fatal("closed early")
					}
				}
				if text, end := joined(t, got, responseBodyOf); string(text) != "data: x\n\n"+long || !end {
					t.Errorf("%d bytes came back, end %v", len(text), end)
				}
				if len(f.tokens) != 1 || !slices.Equal(f.outcomes(), []scoring.Outcome{scoring.OutcomeComplete}) {
					t.Errorf("first tokens %v, outcomes %v", f.tokens, f.outcomes())
				}
			})
		})
	}
}

// An answer that is not streamed comes when everything is generated: its first
// chunk is no first token, and its end is followed.
func TestPlainAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		c.one(t, reqBody("{plain}", true))
		c.one(t, with(respBody(`{"choices":`, false), 200, f.decided[0].Endpoint().Address))
		if !c.isOpen() || len(f.tokens) != 0 {
			t.Errorf("open %v, first tokens %v", c.isOpen(), f.tokens)
		}
		c.one(t, respBody(`[]}`, true))
		if c.isOpen() || !slices.Equal(f.outcomes(), []scoring.Outcome{scoring.OutcomeComplete}) {
			t.Errorf("open %v, outcomes %v", c.isOpen(), f.outcomes())
		}
	})
}

// A path whose requests are not read may answer with thousands of events, each
// of which would cost both sides as much as the first.
func TestEventsOfOtherPaths(t *testing.T) {
	for _, first := range []string{"data: {}\n\n", "event: response.created\n", ": ping\n\n"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, buffered, streamed)
			c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/other"))
			c.one(t, reqBody("{plain}", true))
			c.one(t, with(respBody(first, false), 200, f.decided[0].Endpoint().Address))
			if c.isOpen() || len(f.tokens) != 0 || len(f.ends) != 0 {
				t.Errorf("%q: open %v, first tokens %v, ends %v", first, c.isOpen(), f.tokens, f.ends)
			}
		})
	}
}

// On /v1/responses an engine sends response.created, with the whole request in it,
// and response.in_progress at once, before anything is computed: the first token
// is the first event after them, however the stream is cut into chunks.
func TestFirstTokenOfResponses(t *testing.T) {
	created := "event: response.created\ndata: {\"instructions\":\"" + strings.Repeat("x", 100) + "\"}\n\n"
	progress := "event: response.in_progress\ndata: {}\n\n"
	item := "event: response.output_item.added\ndata: {}\n\n"
	for _, chunks := range [][]string{
		{created, progress, item},
		{created + progress, item},
		{created[:60], created[60:], progress, item},
		{created[:60], created[60:] + progress[:32], progress[32:] + item},
		{created + progress + item},
		{"event: error\ndata: {}\n\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, buffered, streamed)
			c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/responses"))
			c.one(t, reqBody("{}", true))
			for i, chunk := range chunks {
				m := respBody(chunk, false)
				if i == 0 {
					m = with(m, 200, f.decided[0].Endpoint().Address)
				}
				c.one(t, m)
				if last := i == len(chunks)-1; (len(f.tokens) > 0) != last || c.isOpen() == last {
					t.Errorf("%q, chunk %d: first tokens %v, open %v", chunks, i, f.tokens, c.isOpen())
				}
			}
		})
	}
}

// "With response headers SKIP the server never sees the status; an error
// answer's body looks like a first token": response.code, the headers where
// they come, or for streamed answers the shape tell.
func TestErrorTeachesNothing(t *testing.T) {
	for _, c := range []struct {
		name     string
		messages []*extprocv3.ProcessingRequest
	}{
		{"by attribute", []*extprocv3.ProcessingRequest{with(respBody(`{"error":{}}`, false), 400, "")}},
		{"by headers", []*extprocv3.ProcessingRequest{respHeaders("503", false), respBody(`{"error":{}}`, false)}},
		{"by headers alone", []*extprocv3.ProcessingRequest{respHeaders("500", true)}},
		{"by shape", []*extprocv3.ProcessingRequest{respBody(`{"error":{}}`, false)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(2))
				stream := f.open(t, buffered, streamed)
				stream.one(t, completion())
				stream.one(t, reqBody("{}", true))
				for _, m := range c.messages {
					stream.one(t, m)
				}
				if len(f.tokens) != 0 || !slices.Equal(f.outcomes(), []scoring.Outcome{scoring.OutcomeError}) {
					t.Errorf("first tokens %v, outcomes %v", f.tokens, f.outcomes())
				}
				if stats := f.picker.Stats(); stats.Open != 0 || stats.Endpoints[0].QueuedArea+stats.Endpoints[1].QueuedArea != 0 {
					t.Errorf("booked: %+v", stats)
				}
			})
		})
	}
}

// "upstream.address other than booked (a retry): the booking moves there"; the
// endpoint that lost the request is probed.
func TestRetryMovesTheBooking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(3))
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		c.one(t, reqBody("{}", true))
		d := f.decided[0]
		next := d.Candidates[1].Endpoint.Address
		c.one(t, with(respBody("data: x\n\n", false), 200, next))
		if at, _ := d.Reservation.Endpoint(); at.Address != next {
			t.Errorf("booked at %s, served by %s", at.Address, next)
		}
		if want := []string{d.Endpoint().Address}; !slices.Equal(f.probes, want) {
			t.Errorf("probed %v, want %v", f.probes, want)
		}
	})
}

// "Stream end as a signal, by mode: BUFFERED or any response body mode: the
// ext_proc stream ends with the request. FDS with response_body_mode NONE: it
// ends right after the request phase and says nothing about the request. Ended
// before our answer was sent: the request is gone. Closed by us after the first
// chunk: already released".
func TestWhatTheStreamsEndMeans(t *testing.T) {
	chunk := func() *extprocv3.ProcessingRequest { return respBody("data: x\n\n", false) }
	last := func() *extprocv3.ProcessingRequest { return respBody("", true) }
	for _, c := range []struct {
		name              string
		request, response filterv3.ProcessingMode_BodySendMode
		messages          []*extprocv3.ProcessingRequest // after the body
		outcome           scoring.Outcome                // empty: still open
	}{
		{"buffered, no response", buffered, none, nil, scoring.OutcomeComplete},
		{"buffered partial, no response", partial, none, nil, scoring.OutcomeComplete},
		{"buffered, streamed response, none seen", buffered, streamed, nil, scoring.OutcomeCancelled},
		{"buffered, duplex response, cut", buffered, duplex, []*extprocv3.ProcessingRequest{chunk()}, scoring.OutcomeCancelled},
		{"buffered, duplex response, whole", buffered, duplex, []*extprocv3.ProcessingRequest{chunk(), last()}, scoring.OutcomeComplete},
		{"buffered, duplex response, trailers", buffered, duplex, []*extprocv3.ProcessingRequest{chunk(), respTrailers()}, scoring.OutcomeComplete},
		{"duplex, no response", duplex, none, nil, ""},
		{"streamed, no response", streamed, none, nil, ""},
		{"no body, no response", none, none, nil, ""},
		{"duplex, streamed response, none seen", duplex, streamed, nil, scoring.OutcomeCancelled},
		{"duplex both ways, cut", duplex, duplex, []*extprocv3.ProcessingRequest{chunk()}, scoring.OutcomeCancelled},
		{"streamed, streamed response, none seen", streamed, streamed, nil, scoring.OutcomeCancelled},
		{"closed by us after the first chunk", buffered, streamed, []*extprocv3.ProcessingRequest{chunk()}, ""},
	} {
		for _, end := range []error{errCancelled, errEOF} { // "The code says nothing"
			t.Run(c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(2))
					stream := f.open(t, c.request, c.response)
					stream.say(t, completion())
					stream.say(t, reqBody("{}", true))
					for _, m := range c.messages {
						stream.say(t, m)
					}
					stream.close(end)
					var want []scoring.Outcome
					if c.outcome != "" {
						want = append(want, c.outcome)
					}
					if got := f.outcomes(); !slices.Equal(got, want) {
						t.Errorf("outcomes %v, want %v", got, want)
					}
					if open := f.picker.Find(f.decided[0].ID) != nil; open != (c.outcome == "") {
						t.Errorf("open %v", open)
					}
				})
			})
		}
	}
	t.Run("an answer that may have no body, none seen", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, buffered, streamed)
			c.one(t, reqHeaders(true, ":method", "GET", ":path", "/health"))
			c.close(errCancelled)
			if want := []scoring.Outcome{scoring.OutcomeComplete}; !slices.Equal(f.outcomes(), want) {
				t.Errorf("outcomes %v, want %v", f.outcomes(), want)
			}
		})
	})
	t.Run("undeclared, no response seen", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.openUndeclared(t)
			c.say(t, completion())
			c.say(t, reqBody("{}", true))
			c.close(errEOF) // NGINX's shim half-closes after the body
			if len(f.ends) != 0 {
				t.Errorf("ended: %v", f.ends)
			}
		})
	})
	t.Run("before the body has ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, duplex, none)
			c.say(t, completion())
			c.say(t, reqBody("{", false))
			c.close(errEOF)
			if len(f.decided) != 0 {
				t.Error("decided for a client that left")
			}
		})
	})
	t.Run("while deciding", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2), func(_ *Config, d *Deps) {
				d.Encoder = encoderFunc(func(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
					<-ctx.Done()
					return encode(ctx, r)
				})
			})
			c := f.open(t, buffered, streamed)
			c.one(t, completion())
			c.say(t, reqBody("{}", true))
			c.hangUp()
			synctest.Wait()
			if c.isOpen() || len(f.decided) != 0 {
				t.Errorf("open %v, %d decisions", c.isOpen(), len(f.decided))
			}
		})
	})
	t.Run("before our answer was sent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(2))
			c := f.open(t, buffered, streamed)
			c.one(t, completion())
			c.broken = errBroken
			c.say(t, reqBody("{}", true))
			if want := []scoring.Outcome{scoring.OutcomeCancelled}; c.isOpen() || !slices.Equal(f.outcomes(), want) {
				t.Errorf("open %v, outcomes %v", c.isOpen(), f.outcomes())
			}
		})
	})
}

// "A value of true indicates that the server should not respond to this
// message": a second filter that only watches is found by the decision's id,
// and let go after the first chunk.
func TestObservabilityMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, duplex, none)
		c.say(t, completion())
		answers := c.say(t, reqBody("{}", true))
		id := metadata(answers[0], "firsttoken", "id")
		c.close(errCancelled)

		watch := f.open(t, none, streamed)
		m := with(respBody("data: x\n\n", false), 200, f.decided[0].Endpoint().Address)
		m.ObservabilityMode = true
		m.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"firsttoken": {Fields: map[string]*structpb.Value{"id": structpb.NewStringValue(id)}},
		}}
		if got := watch.say(t, m); len(got) != 0 || watch.isOpen() {
			t.Errorf("answers %v, open %v", got, watch.isOpen())
		}
		if len(f.tokens) != 1 || len(f.decided) != 1 {
			t.Errorf("first tokens %v, %d decisions", f.tokens, len(f.decided))
		}
	})
}
