package bench

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func ask(t *testing.T, target Target, handler http.HandlerFunc) (Answer, *Error) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	target.BaseURL, target.Model = server.URL+"/v1", "m"
	c := NewClient(target)
	t.Cleanup(c.Close)
	return c.Ask(t.Context(), &Chat{Messages: []Message{{"user", "hi"}}, MaxTokens: 2}, nil)
}

func TestAsk(t *testing.T) {
	a, fault := ask(t, Target{Key: "secret"}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		want := `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":2,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}`
		if r.URL.Path != "/v1/chat/completions" || string(body) != want {
			t.Errorf("%s got %s, want %s", r.URL.Path, body, want)
		}
		if got := r.Header.Get("Authorization"); got != "Bearer secret" {
			t.Errorf("Authorization: %q", got)
		}
		w.Header().Set("x-firsttoken-id", "7")
		_, _ = io.WriteString(w, goodStream)
	})
	if fault != nil {
		t.Fatal(fault)
	}
	if a.Text != "Hello" || a.ID != "7" || a.Usage != (Usage{12, 2, 8, true}) {
		t.Errorf("answer %+v", a)
	}
	if a.FirstToken <= 0 || a.LastToken < a.FirstToken || a.End < a.LastToken {
		t.Errorf("first token %s, last %s, end %s", a.FirstToken, a.LastToken, a.End)
	}
}

// The first event of a chat names the role only: its text is no token yet.
func TestTheFirstTokenIsTheFirstContent(t *testing.T) {
	role, rest, _ := strings.Cut(goodStream, "\n\n")
	late := make(chan struct{})
	var told time.Time
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, role+"\n\n")
		_ = http.NewResponseController(w).Flush()
		<-late
		told = time.Now()
		_, _ = io.WriteString(w, rest)
	}))
	defer server.Close()
	c := NewClient(Target{BaseURL: server.URL, Model: "m"})
	defer c.Close()
	before := time.Now()
	// Content comes only after this moment, whatever the machine does meanwhile.
	time.AfterFunc(time.Millisecond, func() { close(late) })
	a, fault := c.Ask(t.Context(), &Chat{MaxTokens: 2}, nil)
	if fault != nil {
		t.Fatal(fault)
	}
	if first := a.Sent.Add(a.FirstToken); first.Before(told) || a.Sent.Before(before) {
		t.Errorf("first token at %s, before its text was sent at %s", first, told)
	}
}

func TestMisbehavingServers(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		kind    Kind
		detail  string
	}{
		{"503", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":{"message":"no ready endpoint"}}`, http.StatusServiceUnavailable)
		}, "status_503", "no ready endpoint"},
		{"never a token", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, Timeout, "time limit"},
		{"never an answer", func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, Timeout, "time limit"},
		{"cut in the middle", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, goodStream[:200])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, Cut, "unexpected"},
		{"cut before the headers", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, Connect, "EOF"},
		{"error JSON with status 200", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "data: {\"error\":{\"message\":\"CUDA\"}}\n\n")
		}, ErrorEvent, "CUDA"},
		{"not a stream", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"choices":[]}`) }, Cut, "unexpected"},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := Target{}
			if c.kind == Timeout {
				target.Timeout = 10 * time.Millisecond
			}
			a, fault := ask(t, target, c.handler)
			if fault == nil || fault.Kind != c.kind || !strings.Contains(fault.Detail, c.detail) {
				t.Fatalf("fault %v, want %s with %q", fault, c.kind, c.detail)
			}
			if a.End <= 0 {
				t.Errorf("end %s", a.End)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	c := NewClient(Target{BaseURL: server.URL})
	if _, fault := c.Ask(t.Context(), &Chat{}, nil); fault == nil || fault.Kind != Connect {
		t.Errorf("fault %v, want %s", fault, Connect)
	}
}

// A connection that has served one answer serves the next: no more are opened
// than there are answers at once.
func TestConnectionsAreKept(t *testing.T) {
	const atOnce, rounds = 8, 20
	var opened atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, goodStream)
		_ = http.NewResponseController(w).Flush() // what ends the body comes in a packet of its own
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c := NewClient(Target{BaseURL: server.URL, Model: "m"})
	defer c.Close()
	for range rounds {
		var all sync.WaitGroup
		for range atOnce {
			all.Go(func() {
				if _, fault := c.Ask(t.Context(), &Chat{MaxTokens: 2}, nil); fault != nil {
					t.Error(fault)
				}
			})
		}
		all.Wait()
	}
	// The transport may begin to dial for a request that then gets a connection
	// which has just become free, so a few more are possible; one for each request
	// would be 160.
	if n := opened.Load(); n > 2*atOnce {
		t.Errorf("%d connections for %d requests, %d at once", n, atOnce*rounds, atOnce)
	}
}

func TestTokenize(t *testing.T) {
	status := http.StatusOK
	answer := `{"count":3,"max_model_len":10,"tokens":[1,2,3]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		if r.URL.Path != "/tokenize" || body["prompt"] != "a b" || body["model"] != "m" || body["add_special_tokens"] != false {
			t.Errorf("%s got %v", r.URL.Path, body)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	defer server.Close()
	c := NewClient(Target{BaseURL: server.URL + "/v1/", Model: "m"})
	defer c.Close()
	if n, err := c.Tokenize(t.Context(), "a b"); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, answer = range []string{"", "{}", "[]", "{"} {
		if _, err := c.Tokenize(t.Context(), "a b"); err == nil {
			t.Errorf("no error for %q", answer)
		}
	}
	status = http.StatusNotFound
	if _, err := c.Tokenize(t.Context(), "a b"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("error %v", err)
	}
}
