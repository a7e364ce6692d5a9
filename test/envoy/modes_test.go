package envoy_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// Envoy itself takes both variants that `firsttoken envoy bootstrap` prints,
// with addresses, names, https and a unix socket in them.
func TestEnvoyValidatesBootstrap(t *testing.T) {
	for _, route := range []envoy.Route{envoy.RouteOverrideHost, envoy.RouteClusterHeader} {
		for _, service := range []string{"127.0.0.1:9002", "firsttoken.example.com:9002", "unix:/run/firsttoken/extproc.sock"} {
			t.Run(string(route)+" "+service, func(t *testing.T) {
				config, err := envoy.Bootstrap(envoy.Config{
					Listen: "0.0.0.0:8080", Admin: "127.0.0.1:9901", Service: service, Route: route, SkipVerify: true,
					BodyLimit: 32 << 20, DecisionDeadline: 500 * time.Millisecond,
					Endpoints: []envoy.Endpoint{
						{Address: "10.0.0.1:8000"},
						{Address: "[2001:db8::1]:8000"},
						{Address: "engine.example.com:443", TLS: true, Cluster: "far"},
						{Address: "10.0.0.3:8443", TLS: true},
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(t.TempDir(), "envoy.yaml")
				if err := os.WriteFile(file, config, 0o600); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command(envoyBinary(t), "--mode", "validate", "--config-path", file, "--use-dynamic-base-id").CombinedOutput()
				if err != nil {
					t.Errorf("%v: %s\n%s", err, out, config)
				}
				for line := range strings.Lines(string(out)) {
					if strings.Contains(line, "[warning]") && strings.Contains(line, "deprecated") {
						t.Errorf("deprecated: %s", line)
					}
				}
			})
		}
	}
}

// withModes is the recommended config with other body modes.
func withModes(t *testing.T, c envoy.Config, request, trailers, response string) []byte {
	t.Helper()
	c.Listen, c.Admin = "127.0.0.1:0", "127.0.0.1:0"
	config, err := envoy.Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range []struct{ key, from, to string }{
		{"request_body_mode: ", "BUFFERED", request},
		{"request_trailer_mode: ", "SKIP", trailers},
		{"response_body_mode: ", "STREAMED", response},
	} {
		if bytes.Count(config, []byte(edit.key+edit.from)) != 1 {
			t.Fatalf("%s%s is not in the config once:\n%s", edit.key, edit.from, config)
		}
		config = bytes.Replace(config, []byte(edit.key+edit.from), []byte(edit.key+edit.to), 1)
	}
	if response == "FULL_DUPLEX_STREAMED" { // Envoy asks for it
		config = bytes.Replace(config, []byte("response_trailer_mode: SKIP"), []byte("response_trailer_mode: SEND"), 1)
	}
	return config
}

// Every mode obeys the choice, gives the answer intact and, where the response
// is shown to us, tells the first token. The end comes by the access log at the
// latest.
func TestBodyModes(t *testing.T) {
	for _, mode := range []struct {
		request, trailers, response string
		firstToken                  bool
	}{
		{"BUFFERED", "SKIP", "NONE", false},
		{"BUFFERED", "SEND", "STREAMED", true},
		{"BUFFERED", "SKIP", "FULL_DUPLEX_STREAMED", true},
		{"BUFFERED_PARTIAL", "SKIP", "STREAMED", true},
		{"STREAMED", "SKIP", "NONE", false},
		{"STREAMED", "SKIP", "STREAMED", false},
		{"FULL_DUPLEX_STREAMED", "SEND", "NONE", false},
		{"FULL_DUPLEX_STREAMED", "SEND", "STREAMED", true},
		{"FULL_DUPLEX_STREAMED", "SEND", "FULL_DUPLEX_STREAMED", true},
		{"NONE", "SKIP", "STREAMED", false},
	} {
		t.Run(mode.request+" "+mode.response, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t)}
			s := startService(t, scoring.PolicyRoundRobin, engines...)
			p := startEnvoyWith(t, withModes(t, config(s, engines...), mode.request, mode.trailers, mode.response))
			for _, prompt := range []string{"a short one", strings.Repeat("a long one ", 100_000)} {
				resp := post(t, p, completion(prompt))
				body, err := io.ReadAll(resp.body)
				if err != nil || resp.code != http.StatusOK || string(body) != answer() {
					t.Fatalf("answer: %v %s %q", err, resp.status, body)
				}
				d := next(t, "decision", s.events.decided)
				if got := resp.header.Get("x-firsttoken-endpoint"); got != d.Endpoint().Address {
					t.Errorf("served by %s, chosen %s", got, d.Endpoint().Address)
				}
				if mode.firstToken {
					next(t, "first token", s.events.firstToken)
				}
				if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete || end.served != d.Endpoint().Address {
					t.Errorf("ended %+v, want complete at %s", end, d.Endpoint().Address)
				}
			}
			if got, want := engines[0].bytes.Load()+engines[1].bytes.Load(), int64(1_100_000+11+2*len(completion(""))); got != want {
				t.Errorf("engines read %d bytes, want %d", got, want)
			}
		})
	}
}

// A request without a body is routed by load, and by our word.
func TestRequestWithoutBody(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "STREAMED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			e := startEngine(t)
			s := startService(t, scoring.PolicyTrapezoid, e)
			p := startEnvoyWith(t, withModes(t, config(s, e), mode, "SEND", "STREAMED"))
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.clients+"/v1/models", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			if resp := do(t, req); resp.code != http.StatusOK {
				t.Errorf("answer: %s", resp.status)
			}
			if d := next(t, "decision", s.events.decided); d.Prompt.Source != scoring.TokensNone {
				t.Errorf("tokens from %s, want none", d.Prompt.Source)
			}
		})
	}
}
