package envoy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

// A streamed completion in the recommended config: the choice is obeyed, the
// first chunk is the first token, the stream is let go after it, the answer is
// intact, and the access log tells the end.
func TestBufferedRequestStreamedResponse(t *testing.T) {
	token := make(chan struct{})
	held := func(e *engine) {
		e.hold = func(r *http.Request) {
			select {
			case <-token:
			case <-r.Context().Done():
			}
		}
	}
	engines := []*engine{startEngine(t, held), startEngine(t, held), startEngine(t, held)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	p := startEnvoy(t, config(s, engines...))

	for range 2 * len(engines) {
		resp := post(t, p, completion("once upon a time"))
		d := next(t, "decision", s.events.decided)
		none(t, "first token before the first chunk", s.events.firstToken)
		token <- struct{}{}
		next(t, "first token", s.events.firstToken)
		body, err := io.ReadAll(resp.body)
		if err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %q", err, body)
		}
		end := next(t, "end", s.events.ended)
		if end.decision.ID != d.ID || end.outcome != scoring.OutcomeComplete || end.served != d.Endpoint().Address {
			t.Errorf("ended %+v, want complete at %s", end, d.Endpoint().Address)
		}
		if got := resp.header.Get("x-firsttoken-endpoint"); got != d.Endpoint().Address {
			t.Errorf("served by %s, chosen %s", got, d.Endpoint().Address)
		}
		if got := resp.header.Get("x-firsttoken-reason"); got != string(d.Reason) {
			t.Errorf("reason %q, want %q", got, d.Reason)
		}
	}
	for _, e := range engines {
		if got := e.requests.Load(); got != 2 {
			t.Errorf("engine %s got %d requests, want 2", e.address, got)
		}
	}
	eventually(t, "no ext_proc stream is open", func() bool {
		return p.stat(t, "cluster.firsttoken.upstream_rq_active") <= 1 // the access log's own
	})
}

// completion is the body of a streamed completion.
func completion(prompt string) string {
	return `{"model":"m","stream":true,"prompt":"` + prompt + `"}`
}

// reply is an answer whose headers came. Its body is closed when the test ends.
type reply struct {
	code   int
	status string
	header http.Header
	body   io.Reader
}

// post sends a completion.
func post(t *testing.T, p *proxy, body string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+"/v1/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("content-type", "application/json")
	return do(t, req)
}

// do sends a request and waits for the headers of the answer.
func do(t *testing.T, req *http.Request) reply {
	t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return reply{resp.StatusCode, resp.Status, resp.Header, resp.Body}
}
