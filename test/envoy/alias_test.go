package envoy_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// listenService opens a port for a service.
func listenService(t *testing.T) net.Listener {
	t.Helper()
	l, err := extproc.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A client's other name for a model: the engine gets its own, and not one other
// byte is changed, whatever the length of the body and however the name is
// written. Content-Length tells the new length.
func TestAlias(t *testing.T) {
	long := strings.Repeat("once upon a time, ", 5<<20/18)
	bodies := []struct {
		name, path, sent, want string
	}{
		{"short", "/v1/completions", `{"model":"fast","prompt":"hello"}`, `{"model":"m","prompt":"hello"}`},
		{"long", "/v1/completions", `{"prompt":"` + long + `", "model" : "fast"}`, `{"prompt":"` + long + `", "model" : "m"}`},
		{
			"escaped", "/v1/chat/completions", `{"\u006dodel":"\u0066as\u0074","messages":[{"role":"user","content":"{\"model\":\"fast\"} é"}]}`,
			`{"\u006dodel":"m","messages":[{"role":"user","content":"{\"model\":\"fast\"} é"}]}`,
		},
		{"doubled", "/v1/completions", `{"model":"m","model":"fast","prompt":"fast","x":{"model":"fast"}}`, `{"model":"m","model":"m","prompt":"fast","x":{"model":"fast"}}`},
		{"the last counts", "/v1/completions", `{"model":"fast","model":"m","prompt":"fast"}`, `{"model":"fast","model":"m","prompt":"fast"}`},
		{"another path", "/v1/embeddings", `{"input":["fast"],"model":"fast"}`, `{"input":["fast"],"model":"m"}`},
		{"not an alias", "/v1/completions", `{"model":"m","prompt":"hello"}`, `{"model":"m","prompt":"hello"}`},
	}
	for _, mode := range []string{"BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, keepsBodies)
			s := startAliasService(t, e)
			trailers := "SKIP"
			if mode == "FULL_DUPLEX_STREAMED" {
				trailers = "SEND"
			}
			p := startEnvoyWith(t, withModes(t, config(s, e), mode, trailers, "STREAMED"))
			for _, b := range bodies {
				for _, chunked := range []bool{false, true} {
					var body io.Reader = strings.NewReader(b.sent)
					if chunked {
						body = struct{ io.Reader }{body} // whose length nobody knows
					}
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+b.path, body)
					if err != nil {
						t.Fatal(err)
					}
					req.Header.Set("content-type", "application/json")
					resp := do(t, req)
					if _, err := io.ReadAll(resp.body); err != nil || resp.code != http.StatusOK {
						t.Fatalf("%s: %v %s", b.name, err, resp.status)
					}
					got := next(t, "request", e.bodies)
					if got.body != b.want {
						t.Errorf("%s, chunked %t: engine read %d bytes, want %d: %.200q", b.name, chunked, len(got.body), len(b.want), got.body)
					}
					if got.length != -1 && got.length != int64(len(b.want)) {
						t.Errorf("%s, chunked %t: Content-Length %d, want %d", b.name, chunked, got.length, len(b.want))
					}
					if mode == "BUFFERED" && !chunked && got.length == -1 {
						t.Errorf("%s: no Content-Length", b.name)
					}
					if d := next(t, "decision", s.events.decided); d.Model != "m" || (d.Prompt.Alias == "fast") != (b.sent != b.want) {
						t.Errorf("%s: decided for model %q, alias %q", b.name, d.Model, d.Prompt.Alias)
					}
				}
			}
		})
	}
}

// A filter that keeps Content-Length in full duplex tells the new one.
func TestAliasKeepsLengthInFullDuplex(t *testing.T) {
	e := startEngine(t, keepsBodies)
	s := startAliasService(t, e)
	text := string(withModes(t, config(s, e), "FULL_DUPLEX_STREAMED", "SEND", "STREAMED"))
	at := "failure_mode_allow: true"
	if strings.Count(text, at) != 1 {
		t.Fatalf("no place for the switch in\n%s", text)
	}
	line := text[strings.LastIndex(text[:strings.Index(text, at)], "\n"):strings.Index(text, at)]
	p := startEnvoyWith(t, []byte(strings.Replace(text, at, at+line+"allow_content_length_header: true", 1)))
	if resp := post(t, p, `{"model":"fast","prompt":"hello"}`); resp.code != http.StatusOK {
		t.Fatal(resp.status)
	}
	want := `{"model":"m","prompt":"hello"}`
	if got := next(t, "request", e.bodies); got.body != want || got.length != int64(len(want)) {
		t.Errorf("engine read %q with Content-Length %d", got.body, got.length)
	}
}

// A held request is sent on under its model's name too.
func TestAliasOfHeldRequest(t *testing.T) {
	token := make(chan struct{})
	e := startEngine(t, keepsBodies, func(e *engine) {
		e.hold = func(r *http.Request) {
			select {
			case <-token:
			case <-r.Context().Done():
			}
		}
	})
	choice := scoring.DefaultConfig()
	choice.Hold.Enabled = true
	s := startServiceFrom(t, listenService(t), choice, endpoints([]*engine{e}), withAliases(t))
	c := config(s, e)
	c.MaxMessageTimeout = patience
	p := startEnvoy(t, c)
	answers := make(chan reply, 2)
	for range 2 {
		go func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+"/v1/completions", strings.NewReader(`{"model":"fast","stream":true,"prompt":"hello"}`))
			if err != nil {
				t.Error(err)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Error(err)
				answers <- reply{}
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			answers <- reply{code: resp.StatusCode}
		}()
	}
	for range 2 {
		if got := next(t, "request", e.bodies); got.body != `{"model":"m","stream":true,"prompt":"hello"}` {
			t.Errorf("engine read %q", got.body)
		}
		token <- struct{}{}
		if a := next(t, "answer", answers); a.code != http.StatusOK {
			t.Errorf("answer %d", a.code)
		}
	}
}

// startAliasService is startService with the real encoder and an alias.
func startAliasService(t *testing.T, engines ...*engine) *service {
	t.Helper()
	return startServiceFrom(t, listenService(t), choosing(scoring.PolicyTrapezoid), endpoints(engines), withAliases(t))
}

// withAliases sets the real encoder, to which fast is m.
func withAliases(t *testing.T) func(*extproc.Config, *extproc.Deps) {
	t.Helper()
	encoder, err := prompt.NewEncoder(prompt.DefaultConfig(), prompt.Options{Aliases: map[string]string{"fast": "m"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(encoder.Close)
	return func(_ *extproc.Config, d *extproc.Deps) { d.Encoder = encoder }
}
