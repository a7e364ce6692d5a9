package prompt_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/test/shared"
)

// twin is an engine that encodes with a Model of its own, and what is around
// it in the service.
type twin struct {
	*prompt.IDCheck
	encoder *prompt.Encoder
	server  *httptest.Server
	log     bytes.Buffer
	now     time.Time

	mu     sync.Mutex // guards the following fields
	model  *prompt.Model
	clock  time.Time                                         // the engine's
	waited time.Duration                                     // for answers
	calls  int                                               // but for detokenize
	ready  bool                                              // as the service knows it
	answer func(w http.ResponseWriter, r *http.Request) bool // true: it answered instead
}

// newTwin makes one of our model and the engine's.
func newTwin(t *testing.T, ours, engines prompt.ModelConfig) *twin {
	t.Helper()
	w := &twin{model: engineModel(t, engines), clock: noon, now: noon, ready: true}
	w.server = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.server.Close)
	cfg := prompt.DefaultConfig()
	ours.Name = "m"
	cfg.Models = []prompt.ModelConfig{ours}
	cfg.RemoteTimeout = 10 * time.Second
	options := prompt.Options{
		Log: slog.New(slog.NewTextHandler(&w.log, nil)),
		Endpoint: func(string) (string, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.server.URL + "/", w.ready
		},
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return noon.Add(w.waited)
		},
	}
	var err error
	if w.encoder, err = prompt.NewEncoder(cfg, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.encoder.Close)
	if err := w.encoder.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.IDCheck = prompt.NewIDCheck(w.encoder, options, prometheus.NewRegistry())
	return w
}

// engineModels are those that tests took for their engines, by their settings:
// a tokenizer takes a second to load. They live as long as the process.
var engineModels sync.Map

func engineModel(t *testing.T, cfg prompt.ModelConfig) *prompt.Model {
	t.Helper()
	key := fmt.Sprintf("%+v", cfg)
	if m, ok := engineModels.Load(key); ok {
		return m.(*prompt.Model) //nolint:forcetypeassert // the map holds nothing else
	}
	m, err := prompt.LoadModel(cfg)
	if errors.Is(err, native.ErrNotBuilt) {
		t.Skip("this build has no native tokenizer")
	}
	if err != nil {
		t.Fatal(err)
	}
	engineModels.Store(key, m)
	return m
}

func (w *twin) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *twin) serve(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	if r.URL.Path != "/detokenize" {
		w.calls++
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if w.answer != nil && w.answer(rw, r) {
		return
	}
	switch path := strings.TrimSuffix(r.URL.Path, "/render"); path {
	case "/detokenize":
		var in struct{ Tokens []uint32 }
		_ = json.Unmarshal(body, &in)
		text, err := w.model.Decode(r.Context(), in.Tokens)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(rw).Encode(map[string]string{"prompt": text})
	case "/v1/chat/completions", "/v1/completions":
		encoded, err := w.model.Encode(r.Context(), prompt.Request{Path: path, Body: body}, w.clock)
		if fault, ok := errors.AsType[*prompt.RequestError](err); ok {
			http.Error(rw, fault.Message, fault.Status)
			return
		}
		list := []map[string]any{}
		for _, p := range encoded.Prompts {
			list = append(list, map[string]any{"token_ids": p.TokenIDs})
		}
		if path == "/v1/chat/completions" {
			_ = json.NewEncoder(rw).Encode(list[0])
			return
		}
		_ = json.NewEncoder(rw).Encode(list)
	default:
		http.NotFound(rw, r)
	}
}

// steps lets the check do its work for a while.
func (w *twin) steps(t *testing.T, long time.Duration) {
	t.Helper()
	for end := w.now.Add(long); w.now.Before(end); {
		w.now = w.now.Add(time.Second)
		w.Step(t.Context(), w.now)
	}
}

// ask is a request of a client.
func (w *twin) ask(t *testing.T, path, body string) *scoring.Prompt {
	t.Helper()
	r := prompt.Request{Path: path, Body: []byte(body)}
	p, err := w.encoder.Encode(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	w.Offer(r, p)
	return p
}

func (w *twin) status(t *testing.T) prompt.IDStatus {
	t.Helper()
	rows := w.Status()
	if len(rows) != 1 {
		t.Fatalf("%d rows, want 1", len(rows))
	}
	return rows[0]
}

const (
	chat = "/v1/chat/completions"
	text = "/v1/completions"
	// clientText is what no log may ever have.
	clientText = "zebra-secret"
	clientBody = `{"model":"m","messages":[{"role":"user","content":"my ` + clientText + ` is blue"}]}`
)

func family(t *testing.T, name string) prompt.ModelConfig {
	t.Helper()
	return prompt.ModelConfig{Tokenizer: filepath.Join(shared.Dir(t), "tokenizers", name)}
}

// anyModel is for what is the same with every family: it takes no time to load.
func anyModel() prompt.ModelConfig { return prompt.ModelConfig{Tokenizer: smallTokenizer} }

// TestIDsEqual: our own prompts and then requests are compared, and nothing
// changes.
func TestIDsEqual(t *testing.T) {
	for name, cfg := range map[string]prompt.ModelConfig{"small": anyModel(), "llama3.1": family(t, "llama3.1")} {
		w := newTwin(t, cfg, cfg)
		w.steps(t, 10*time.Second)
		s := w.status(t)
		if s.Equal != 5 || s.Checked != 5 {
			t.Errorf("%s: of 5 prompts %+v\n%s", name, s, w.log.String())
		}
		for range 10 {
			w.ask(t, chat, clientBody)
		}
		w.steps(t, time.Minute)
		if s := w.status(t); s.Equal != 6 || s.Differing != 0 || s.RemoteSince != nil || s.Unknown != "" {
			t.Errorf("%s: %+v", name, s)
		}
		if p := w.ask(t, chat, clientBody); p.Source != scoring.TokensNative {
			t.Errorf("%s: source %s", name, p.Source)
		}
	}
}

// TestIDsDiffer: each way in which an engine may be set up otherwise is named
// with its fix, and its ids are used from then on.
func TestIDsDiffer(t *testing.T) {
	dated := func() prompt.ModelConfig {
		cfg := anyModel()
		cfg.ChatTemplate = shared.File(t, "tokenizers", "llama3.1", "chat_template.llama3.2.jinja")
		return cfg
	}
	timed := filepath.Join(t.TempDir(), "timed.jinja")
	if err := os.WriteFile(timed, []byte(`{% for m in messages %}{{ strftime_now("%H:%M") }} {{ m.content }}{% endfor %}`), 0o600); err != nil {
		t.Fatal(err)
	}
	timedModel := func() prompt.ModelConfig {
		cfg := anyModel()
		cfg.ChatTemplate = timed
		return cfg
	}
	for _, c := range []struct {
		name          string
		ours, engines prompt.ModelConfig
		clock         time.Duration
		request       string
		cause, fix    string
		texts         [2]string // what shows on each side
	}{
		{
			name: "template", ours: anyModel(), engines: timedModel(),
			request: "system and user", cause: "chat template", fix: "chat_template", texts: [2]string{"<|im_start|>system", "12:00 You are"},
		},
		{
			name: "date", ours: dated(), engines: dated(), clock: 13 * time.Hour,
			request: "system and user", cause: "date or time", fix: "time_zone", texts: [2]string{"15 Jan 2026", "16 Jan 2026"},
		},
		{
			name: "time", ours: timedModel(), engines: timedModel(), clock: -150 * time.Minute,
			request: "system and user", cause: "-2.5 hours", fix: "time_zone", texts: [2]string{"12:00", "09:30"},
		},
		{
			name: "no BOS here", ours: func() prompt.ModelConfig {
				cfg := family(t, "llama3.1")
				cfg.AddBOS = "never"
				return cfg
			}(), engines: family(t, "llama3.1"),
			request: "plain text", cause: "the engine puts special tokens (<|begin_of_text|>)", fix: "add_bos: always", texts: [2]string{"Once", "<|begin_of_text|>Once"},
		},
		{
			name: "no BOS there", ours: family(t, "llama3.1"), engines: func() prompt.ModelConfig {
				cfg := family(t, "llama3.1")
				cfg.AddBOS = "never"
				return cfg
			}(),
			request: "plain text", cause: "this process puts special tokens", fix: "add_bos: never", texts: [2]string{"<|begin_of_text|>Once", "Once"},
		},
		{
			name: "tokenizer", ours: timedModel(), engines: func() prompt.ModelConfig {
				cfg := family(t, "qwen2.5")
				cfg.ChatTemplate = timed
				return cfg
			}(),
			request: "system and user", cause: "tokenizer is another one", fix: "tokenizer folder", texts: [2]string{"of F", "of France"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwin(t, c.ours, c.engines)
			w.set(func() { w.clock = noon.Add(c.clock) })
			if p := w.ask(t, chat, clientBody); p.Source != scoring.TokensNative {
				t.Fatalf("source %s before anything was compared", p.Source)
			}
			w.steps(t, 10*time.Second)
			s := w.status(t)
			if s.RemoteSince == nil || s.Difference == nil || s.Differing == 0 {
				t.Fatalf("not noticed: %+v\n%s", s, w.log.String())
			}
			d := s.Difference
			if d.Request != c.request || !strings.Contains(d.Cause, c.cause) || !strings.Contains(d.Fix, c.fix) || d.Engine != w.server.URL {
				t.Errorf("%+v, want %q with cause %q and fix %q", d, c.request, c.cause, c.fix)
			}
			if !strings.Contains(d.Ours, c.texts[0]) || !strings.Contains(d.Theirs, c.texts[1]) || len([]rune(d.Ours)) > 40 || len([]rune(d.Theirs)) > 40 {
				t.Errorf("texts %q and %q, want %q", d.Ours, d.Theirs, c.texts)
			}
			for _, part := range []string{c.cause, "level=ERROR", "request=", "fix="} {
				if !strings.Contains(w.log.String(), part) {
					t.Errorf("the log lacks %q:\n%s", part, w.log.String())
				}
			}
			if n := strings.Count(w.log.String(), "level=ERROR"); n != 1 {
				t.Errorf("%d errors logged, want one:\n%s", n, w.log.String())
			}

			// The engine's ids are used, but for those that a client gives.
			p := w.ask(t, chat, clientBody)
			want, err := w.model.Encode(t.Context(), prompt.Request{Path: chat, Body: []byte(clientBody)}, noon.Add(c.clock))
			if err != nil || p.Source != scoring.TokensRemote || !slices.Equal(p.Sequences[0].TokenIDs, want.Prompts[0].TokenIDs) {
				t.Errorf("%s: %+v, want the engine's %v (%v)", p.Source, p.Sequences, want, err)
			}
			for _, body := range []string{`{"model":"m","prompt":[1,2,3]}`, `{"model":"m","prompt":[[1,2],[3]]}`} {
				if p := w.ask(t, text, body); p.Source != scoring.TokensGiven {
					t.Errorf("%s: source %s", body, p.Source)
				}
			}

			// When the engine is set right, this process encodes again.
			w.set(func() { w.clock, w.model = noon, engineModel(t, c.ours) })
			w.steps(t, 3*20*time.Second+10*time.Second)
			if s := w.status(t); s.RemoteSince != nil || s.Difference != nil {
				t.Errorf("still remote: %+v", s)
			}
			if p := w.ask(t, chat, clientBody); p.Source != scoring.TokensNative {
				t.Errorf("source %s", p.Source)
			}
			if strings.Contains(w.log.String(), clientText) {
				t.Errorf("a client's text was logged:\n%s", w.log.String())
			}
		})
	}
}

// TestIDsOfRequestDiffer: what only a request shows is noticed, kept to be
// compared again, and its text shown nowhere.
func TestIDsOfRequestDiffer(t *testing.T) {
	w := newTwin(t, anyModel(), anyModel())
	wrong := true
	w.set(func() {
		w.answer = func(rw http.ResponseWriter, r *http.Request) bool {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !wrong || !bytes.Contains(body, []byte(clientText)) {
				return false
			}
			_, _ = io.WriteString(rw, `{"token_ids":[1,2,3]}`)
			return true
		}
	})
	w.steps(t, 10*time.Second)
	w.ask(t, chat, clientBody)
	w.steps(t, 10*time.Second)
	s := w.status(t)
	if s.RemoteSince == nil || s.Difference.Request != "request" || s.Difference.Ours+s.Difference.Theirs != "" {
		t.Fatalf("%+v %+v", s, s.Difference)
	}
	// Our own prompts are equal all the time, which proves nothing.
	w.steps(t, 5*time.Minute)
	if s := w.status(t); s.RemoteSince == nil {
		t.Errorf("%+v", s)
	}
	w.set(func() { wrong = false })
	w.steps(t, 2*time.Minute)
	if s := w.status(t); s.RemoteSince != nil {
		t.Errorf("%+v", s)
	}
	if strings.Contains(w.log.String(), clientText) {
		t.Errorf("a client's text was logged:\n%s", w.log.String())
	}
}

// TestIDsTick: a template that prints the time may be rendered a second later
// by the engine.
func TestIDsTick(t *testing.T) {
	timed := filepath.Join(t.TempDir(), "timed.jinja")
	if err := os.WriteFile(timed, []byte(`{% for m in messages %}{{ strftime_now("%S") }}{% endfor %}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := anyModel()
	cfg.ChatTemplate = timed
	w := newTwin(t, cfg, cfg)
	calls := 0
	w.set(func() {
		w.answer = func(http.ResponseWriter, *http.Request) bool {
			// The first answer comes a second late.
			w.clock = noon
			if calls++; calls == 1 {
				w.clock = noon.Add(time.Second)
			}
			return false
		}
	})
	w.steps(t, 10*time.Second)
	if s := w.status(t); s.Differing != 0 || s.Equal != 5 {
		t.Errorf("%+v\n%s", s, w.log.String())
	}
}

// TestIDsUnknown: engines that cannot be compared with change nothing.
func TestIDsUnknown(t *testing.T) {
	w := newTwin(t, anyModel(), anyModel())
	for _, c := range []struct {
		status  int
		unknown bool
	}{
		{http.StatusInternalServerError, false},
		{http.StatusBadRequest, false},
		{http.StatusOK, false},
		{http.StatusNotFound, true},
		{http.StatusMethodNotAllowed, true},
	} {
		w.set(func() {
			w.answer = func(rw http.ResponseWriter, _ *http.Request) bool {
				rw.WriteHeader(c.status)
				_, _ = io.WriteString(rw, "what?")
				return true
			}
		})
		for range 50 {
			w.ask(t, chat, clientBody)
		}
		w.steps(t, 2*time.Minute)
		if s := w.status(t); s.Checked != 0 || s.RemoteSince != nil || s.Unknown != "" != c.unknown {
			t.Errorf("%d: %+v", c.status, s)
		}
		if p := w.ask(t, chat, clientBody); p.Source != scoring.TokensNative {
			t.Errorf("%d: source %s", c.status, p.Source)
		}
	}
}

// TestIDsOfOldEngine: one without render has tokenize.
func TestIDsOfOldEngine(t *testing.T) {
	w := newTwin(t, anyModel(), anyModel())
	w.set(func() {
		w.answer = func(rw http.ResponseWriter, r *http.Request) bool {
			body, _ := io.ReadAll(r.Body)
			switch {
			case r.URL.Path != "/tokenize":
				http.NotFound(rw, r)
				return true
			case bytes.Contains(body, []byte(`"messages"`)):
				r.URL.Path = chat
			default:
				r.URL.Path = text
			}
			encoded, err := w.model.Encode(r.Context(), prompt.Request{Path: r.URL.Path, Body: body}, noon)
			if err != nil {
				http.Error(rw, err.Error(), http.StatusBadRequest)
				return true
			}
			_ = json.NewEncoder(rw).Encode(map[string]any{"tokens": encoded.Prompts[0].TokenIDs})
			return true
		}
	})
	w.steps(t, 10*time.Second)
	if s := w.status(t); s.Equal != 5 {
		t.Errorf("%+v", s)
	}
	// What tokenize gives other ids for is not asked there.
	w.ask(t, chat, `{"model":"m","truncate_prompt_tokens":3,"messages":[{"role":"user","content":"one two three four"}]}`)
	w.steps(t, 10*time.Second)
	if s := w.status(t); s.Differing != 0 || s.RemoteSince != nil {
		t.Errorf("%+v", s)
	}
}

// TestIDsAreComparedSeldom: however many requests there are, an engine is asked
// once in an interval, and never while it is not ready or the check is off.
func TestIDsAreComparedSeldom(t *testing.T) {
	w := newTwin(t, anyModel(), anyModel())
	w.set(func() { w.ready = false })
	w.steps(t, time.Minute)
	if w.calls != 0 {
		t.Errorf("%d calls of an engine that is not ready", w.calls)
	}
	w.set(func() { w.ready = true })
	w.steps(t, 10*time.Second)
	w.set(func() { w.calls = 0 })
	for i := range 60 {
		for j := range 20 {
			w.ask(t, chat, fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"%d %d"}]}`, i, j))
		}
		w.steps(t, time.Second)
	}
	if w.calls < 10 || w.calls > 13 {
		t.Errorf("%d calls in a minute, want one in 5 s", w.calls)
	}
	w.set(func() { w.calls = 0 })
	w.steps(t, time.Minute)
	w.ask(t, text, `{"model":"m","prompt":"`+strings.Repeat("a ", 200_000)+`"}`)
	w.steps(t, time.Minute)
	if w.calls > 1 {
		t.Errorf("%d calls without a request, or for a huge one", w.calls)
	}
}

// TestIDsSpareASlowEngine: what takes an engine long is asked the more seldom.
func TestIDsSpareASlowEngine(t *testing.T) {
	w := newTwin(t, anyModel(), anyModel())
	w.set(func() {
		w.answer = func(rw http.ResponseWriter, _ *http.Request) bool {
			w.waited += 2 * time.Second
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
	})
	w.steps(t, 10*time.Minute)
	if w.calls < 5 || w.calls > 7 {
		t.Errorf("an engine that takes 2s was asked %d times in 10m, want 6", w.calls)
	}
}

// TestIDsModeNative: a model that must not be encoded by engines is only told
// of.
func TestIDsModeNative(t *testing.T) {
	cfg := family(t, "llama3.1")
	cfg.Mode, cfg.AddBOS = "native", "never"
	w := newTwin(t, cfg, family(t, "llama3.1"))
	w.steps(t, 10*time.Second)
	if s := w.status(t); s.Difference == nil || s.RemoteSince != nil {
		t.Errorf("%+v", s)
	}
	if p := w.ask(t, text, `{"model":"m","prompt":"hello"}`); p.Source != scoring.TokensNative {
		t.Errorf("source %s", p.Source)
	}
}

// TestIDsOff: without interval, engine or tokenizer nothing is compared.
func TestIDsOff(t *testing.T) {
	cfg := prompt.DefaultConfig()
	cfg.Models = []prompt.ModelConfig{{Name: "m"}}
	e, err := prompt.NewEncoder(cfg, prompt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	for _, o := range []prompt.Options{{}, {Endpoint: func(string) (string, bool) { panic("asked") }}} {
		c := prompt.NewIDCheck(e, o, prometheus.NewRegistry())
		c.Step(t.Context(), noon)
		if err := c.Run(t.Context()); err != nil || len(c.Status()) != 0 {
			t.Errorf("%v %+v", err, c.Status())
		}
	}
}

// TestIDsGolden: the ids of a real vLLM, for every request that it rendered:
// ours are found equal.
func TestIDsGolden(t *testing.T) {
	var golden struct {
		Requests []struct {
			Name, Path string
			Body       json.RawMessage
			Raw        *string
		}
		Families map[string][]struct {
			Name     string
			Status   int
			TokenIDs json.RawMessage `json:"token_ids"`
		}
	}
	readGolden(t, "vllm-render.json.gz", &golden)
	bodies := make(map[string][2]string)
	for _, r := range golden.Requests {
		body := string(r.Body)
		if r.Raw != nil {
			body = *r.Raw
		}
		bodies[r.Name] = [2]string{strings.TrimSuffix(r.Path, "/render"), body}
	}
	cfg := family(t, "qwen2.5")
	cfg.MaxModelLen = 8192 // as that engine's
	w := newTwin(t, cfg, cfg)
	w.steps(t, 10*time.Second)
	compared := w.status(t).Checked
	for _, c := range golden.Families["qwen2.5"] {
		path, body := bodies[c.Name][0], strings.ReplaceAll(bodies[c.Name][1], "$MODEL", "m")
		if c.Status != http.StatusOK || path != chat && path != text {
			continue
		}
		w.set(func() {
			w.answer = func(rw http.ResponseWriter, _ *http.Request) bool {
				var one []uint32
				if json.Unmarshal(c.TokenIDs, &one) == nil {
					_ = json.NewEncoder(rw).Encode(map[string]any{"token_ids": one})
					return true
				}
				var several [][]uint32
				_ = json.Unmarshal(c.TokenIDs, &several)
				list := []map[string]any{}
				for _, ids := range several {
					list = append(list, map[string]any{"token_ids": ids})
				}
				_ = json.NewEncoder(rw).Encode(list)
				return true
			}
		})
		w.ask(t, path, body)
		w.steps(t, 6*time.Second)
		if s := w.status(t); s.Differing > 0 {
			t.Fatalf("%s: %+v %+v", c.Name, s, s.Difference)
		}
	}
	if n := w.status(t).Checked - compared; n < 40 {
		t.Errorf("%d requests compared", n)
	}
}
