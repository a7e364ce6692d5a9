package envoy_test

import (
	"bytes"
	"io"
	"path/filepath"
	"testing"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// watcher is a second ext_proc filter that shows us the answer and waits for
// nothing, as gateways have it whose routing filter has no response phase.
const watcher = `                  - name: watcher
                    typed_config:
                      '@type': type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
                      grpc_service: {envoy_grpc: {cluster_name: firsttoken}}
                      failure_mode_allow: true
                      observability_mode: true
                      deferred_close_timeout: 0.1s
                      processing_mode: {request_header_mode: SKIP, response_header_mode: SKIP, response_body_mode: STREAMED}
                      response_attributes: [response.code, upstream.address]
                      metadata_options: {forwarding_namespaces: {untyped: [firsttoken]}}
`

// A filter that only watches tells the first token of another filter's
// decision, by the decision's id.
func TestWatchingFilter(t *testing.T) {
	// Nothing waits for the watcher, so that a whole answer may be logged
	// before its first chunk is shown.
	seen := make(chan struct{})
	paused := func(e *engine) { e.pause = func() { <-seen } }
	engines := []*engine{startEngine(t, paused), startEngine(t, paused)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	config := withModes(t, config(s, engines...), "FULL_DUPLEX_STREAMED", "SEND", "NONE")
	at := []byte("                  - name: envoy.filters.http.ext_proc\n")
	if bytes.Count(config, at) != 1 {
		t.Fatalf("no place for the filter in\n%s", config)
	}
	p := startEnvoyWith(t, bytes.Replace(config, at, append([]byte(watcher), at...), 1))
	for range 4 {
		resp := post(t, p, completion("hello"))
		next(t, "decision", s.events.decided)
		next(t, "first token", s.events.firstToken)
		seen <- struct{}{}
		if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %s %q", err, resp.status, body)
		}
		if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete {
			t.Errorf("ended %s", end.outcome)
		}
	}
}

// A sidecar is reached over a unix socket.
func TestUnixSocket(t *testing.T) {
	e := startEngine(t)
	address := "unix:" + filepath.Join(t.TempDir(), "s")
	l, err := extproc.Listen(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	s := startServiceOn(t, l, scoring.PolicyTrapezoid, e)
	s.address = address
	p := startEnvoy(t, config(s, e))
	resp := post(t, p, completion("hello"))
	if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
		t.Fatalf("answer: %v %s %q", err, resp.status, body)
	}
	next(t, "decision", s.events.decided)
	next(t, "first token", s.events.firstToken)
	if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete || end.served != e.address {
		t.Errorf("ended %+v", end)
	}
}
