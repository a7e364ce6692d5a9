package prompt_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// TestForeignPaths: /v1/responses and /v1/messages are rendered by the engine,
// with the body as it came; where nobody can, their length is guessed.
func TestForeignPaths(t *testing.T) {
	var seen atomic.Value
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen.Store(r.URL.Path + " " + string(body))
		fmt.Fprint(w, `{"request_id":"x","token_ids":[1,2,3],"features":null}`)
	}))
	defer engine.Close()
	registry := prometheus.NewRegistry()
	e := newEncoder(t, config(smallModel(), prompt.ModelConfig{Name: "alone", Mode: "native", Tokenizer: smallModel().Tokenizer}), prompt.Options{
		Metrics:  prompt.NewMetrics(registry),
		Endpoint: func(string) (string, bool) { return engine.URL, true },
	})
	for _, test := range []struct{ path, body string }{
		{prompt.ResponsesPath, `{"model":"small","stream":true,"cache_salt":"s","instructions":"Be brief.","input":"What is cached?"}`},
		{prompt.MessagesPath + "?beta=true", `{"model":"small","stream":true,"cache_salt":"s","system":"Be brief.","messages":[{"role":"user","content":"What is cached?"}]}`},
	} {
		path, _, _ := strings.Cut(test.path, "?")
		p, err := e.Encode(t.Context(), prompt.Request{Path: test.path, Body: []byte(test.body)})
		if err != nil || p.Source != scoring.TokensRemote || p.Length() != 3 || p.Sequences[0].Usable != 3 || p.Model != "small" || !p.Streamed || p.Salt != "s" {
			t.Errorf("%s: %+v, %v", test.path, p, err)
		}
		if want := path + "/render " + test.body; seen.Load() != want {
			t.Errorf("engine saw %q, want %q", seen.Load(), want)
		}
		// 24 bytes of text at four a token.
		p, err = e.Encode(t.Context(), prompt.Request{Path: test.path, Body: []byte(strings.Replace(test.body, "small", "alone", 1))})
		if err != nil || p.Source != scoring.TokensEstimated || p.Length() < 5 || p.Length() > 9 {
			t.Errorf("%s where engines are never asked: %+v, %v", test.path, p, err)
		}
		// The engine words its own errors there.
		p, err = e.Encode(t.Context(), prompt.Request{Path: test.path, Body: []byte(`{"model":`)})
		if err != nil || p.Source != scoring.TokensNone {
			t.Errorf("%s with a broken body: %+v, %v", test.path, p, err)
		}
	}
	if count(t, registry, "responses") != 1 || count(t, registry, "messages") != 1 {
		t.Error("requests that nobody could render are not counted by their reason")
	}
}

// TestEngineThatFailsIsSpared: after five failures in a row nobody asks it, others
// are asked instead; refusals are no failures.
func TestEngineThatFailsIsSpared(t *testing.T) {
	var asked, status atomic.Int32
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(int(status.Load()))
	}))
	defer engine.Close()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"token_ids":[7]}`)
	}))
	defer other.Close()
	registry := prometheus.NewRegistry()
	cfg := config(prompt.ModelConfig{Name: "m", Mode: "remote"})
	cfg.RemoteTimeout = time.Minute
	var engines atomic.Pointer[[]string] // asked for in turn
	var turn atomic.Int32
	e := newEncoder(t, cfg, prompt.Options{
		Metrics: prompt.NewMetrics(registry),
		Endpoint: func(string) (string, bool) {
			list := *engines.Load()
			return list[int(turn.Add(1))%len(list)], true
		},
	})
	encode := func(path string) *scoring.Prompt {
		t.Helper()
		p, err := e.Encode(t.Context(), prompt.Request{Path: path, Body: []byte(`{"prompt":"x","messages":[{"role":"user","content":"x"}],"input":"x","reasoning_effort":"low"}`)})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	engines.Store(&[]string{engine.URL})
	status.Store(http.StatusBadRequest)
	for range 20 {
		encode(prompt.MessagesPath)
	}
	if n := asked.Load(); n != 20 {
		t.Fatalf("an engine that refuses was asked %d times of 20", n)
	}
	asked.Store(0)
	status.Store(http.StatusInternalServerError)
	for range 20 {
		encode(prompt.MessagesPath)
	}
	if n := asked.Load(); n != 5 {
		t.Errorf("an engine that fails was asked %d times, want 5", n)
	}
	if n := count(t, registry, "remote_off"); n != 15 {
		t.Errorf("%v requests counted as remote_off, want 15", n)
	}
	// It may still render another path, and an engine without the endpoint counts
	// as one that fails.
	asked.Store(0)
	status.Store(http.StatusNotFound)
	for range 20 {
		encode(prompt.ResponsesPath)
	}
	if n := asked.Load(); n != 5 {
		t.Errorf("an engine without the endpoint was asked %d times, want 5", n)
	}
	engines.Store(&[]string{engine.URL, other.URL})
	for range 10 {
		if p := encode(prompt.ResponsesPath); p.Source != scoring.TokensRemote {
			t.Errorf("%+v; another engine could have been asked", p)
		}
	}
}

// TestRenderCallEndsWithTheClient, who is gone: the engine's own call is cut, and
// that is no failure of the engine's.
func TestRenderCallEndsWithTheClient(t *testing.T) {
	called, gone := make(chan struct{}), make(chan struct{})
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body) // only past it net/http sees the client go
		called <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	}))
	defer engine.Close()
	cfg := config(prompt.ModelConfig{Name: "m", Mode: "remote"})
	cfg.RemoteTimeout = time.Hour
	e := newEncoder(t, cfg, prompt.Options{Endpoint: func(string) (string, bool) { return engine.URL, true }})
	for range 10 { // more than it takes to spare an engine
		ctx, leave := context.WithCancel(t.Context())
		ended := make(chan *scoring.Prompt)
		go func() {
			p, _ := e.Encode(ctx, prompt.Request{Path: prompt.MessagesPath, Body: []byte(`{"messages":[]}`)})
			ended <- p
		}()
		<-called
		leave()
		if p := <-ended; p == nil || p.Source != scoring.TokensEstimated {
			t.Fatalf("%+v", p)
		}
		<-gone
	}
}

// TestRenderOverTLS: engines behind https are verified as the options say.
func TestRenderOverTLS(t *testing.T) {
	engine := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"token_ids":[7]}`)
	}))
	engine.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // it says who did not trust it
	engine.StartTLS()
	defer engine.Close()
	authority := x509.NewCertPool()
	authority.AddCert(engine.Certificate())
	for _, test := range []struct {
		tls  *tls.Config
		want scoring.TokenSource
	}{
		{&tls.Config{RootCAs: authority, MinVersion: tls.VersionTLS12}, scoring.TokensRemote},
		{nil, scoring.TokensEstimated},
	} {
		cfg := config(prompt.ModelConfig{Name: "m", Mode: "remote"})
		cfg.RemoteTimeout = time.Minute
		e := newEncoder(t, cfg, prompt.Options{TLS: test.tls, Endpoint: func(string) (string, bool) { return engine.URL, true }})
		p, err := e.Encode(t.Context(), prompt.Request{Path: prompt.MessagesPath, Body: []byte(`{"messages":[]}`)})
		if err != nil || p.Source != test.want {
			t.Errorf("%+v, %v; want %s", p, err, test.want)
		}
	}
}
