package prompt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/scoring"
)

const (
	chatPath       = "/v1/chat/completions"
	completionPath = "/v1/completions"
)

// smallTokenizer is the tokenizer that comes with the repository.
var smallTokenizer = filepath.Join("..", "test", "tokenizer")

func smallModel() prompt.ModelConfig {
	return prompt.ModelConfig{Name: "small", Aliases: []string{"little"}, Tokenizer: smallTokenizer}
}

// newEncoder waits until the models are loaded.
func newEncoder(tb testing.TB, cfg prompt.Config, o prompt.Options) *prompt.Encoder {
	tb.Helper()
	e, err := prompt.NewEncoder(cfg, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(e.Close)
	if err := e.Wait(context.Background()); errors.Is(err, native.ErrNotBuilt) {
		tb.Skip("this build has no native tokenizer")
	} else if err != nil {
		tb.Fatal(err)
	}
	return e
}

func config(models ...prompt.ModelConfig) prompt.Config {
	cfg := prompt.DefaultConfig()
	cfg.Models = models
	return cfg
}

// shape is a prompt without its ids, for tables.
type shape struct {
	Model            string
	Lengths          []scoring.Tokens
	Copies           int
	Streamed, Unheld bool
	Source           scoring.TokenSource
}

func shapeOf(t *testing.T, p *scoring.Prompt) shape {
	t.Helper()
	s := shape{Model: p.Model, Streamed: p.Streamed, Unheld: p.NoCache, Source: p.Source}
	for _, q := range p.Sequences {
		s.Lengths = append(s.Lengths, q.Length)
		s.Copies = q.Copies
		if q.TokenIDs == nil && q.Usable != 0 || q.TokenIDs != nil && (q.Usable != q.Length || len(q.TokenIDs) != int(q.Length)) {
			t.Errorf("%d ids, length %d, usable %d", len(q.TokenIDs), q.Length, q.Usable)
		}
	}
	return s
}

func TestEncode(t *testing.T) {
	e := newEncoder(t, config(smallModel()), prompt.Options{})
	const hello = `[{"role":"user","content":"Hello"}]`
	for _, tc := range []struct {
		name string
		r    prompt.Request
		want shape
	}{
		{
			"chat",
			prompt.Request{Path: chatPath, Body: []byte(`{"model":"small","messages":` + hello + `,"stream":true}`)},
			shape{Model: "small", Lengths: []scoring.Tokens{12}, Copies: 1, Streamed: true, Source: scoring.TokensNative},
		},
		{
			"query and alias",
			prompt.Request{Path: chatPath + "?a=b", ContentType: "Application/JSON; charset=utf-8", Body: []byte(`{"model":"little","messages":` + hello + `}`)},
			shape{Model: "little", Lengths: []scoring.Tokens{12}, Copies: 1, Source: scoring.TokensNative},
		},
		{
			"the only model",
			prompt.Request{Path: chatPath, Body: []byte(`{"messages":` + hello + `,"n":3,"stream":"true"}`)},
			shape{Lengths: []scoring.Tokens{12}, Copies: 3, Streamed: true, Source: scoring.TokensNative},
		},
		{
			"prompt logprobs",
			prompt.Request{Path: completionPath, Body: []byte(`{"prompt":"Hello","prompt_logprobs":0}`)},
			shape{Lengths: []scoring.Tokens{2}, Copies: 1, Unheld: true, Source: scoring.TokensNative},
		},
		{
			"echo with logprobs",
			prompt.Request{Path: completionPath, Body: []byte(`{"prompt":"Hello","echo":true,"logprobs":1}`)},
			shape{Lengths: []scoring.Tokens{2}, Copies: 1, Unheld: true, Source: scoring.TokensNative},
		},
		{
			"echo alone",
			prompt.Request{Path: completionPath, Body: []byte(`{"prompt":"Hello","echo":true}`)},
			shape{Lengths: []scoring.Tokens{2}, Copies: 1, Source: scoring.TokensNative},
		},
		{
			"echo of a chat, whose logprobs are 0 by default",
			prompt.Request{Path: chatPath, Body: []byte(`{"messages":` + hello + `,"echo":true}`)},
			shape{Lengths: []scoring.Tokens{12}, Copies: 1, Unheld: true, Source: scoring.TokensNative},
		},
		{
			"echo of a chat without logprobs",
			prompt.Request{Path: chatPath, Body: []byte(`{"messages":` + hello + `,"echo":true,"top_logprobs":null}`)},
			shape{Lengths: []scoring.Tokens{12}, Copies: 1, Source: scoring.TokensNative},
		},
		{
			"more answers than any engine gives",
			prompt.Request{Path: chatPath, Body: []byte(`{"messages":` + hello + `,"n":1e30}`)},
			shape{Lengths: []scoring.Tokens{12}, Copies: 16384, Source: scoring.TokensNative},
		},
		{
			"several texts",
			prompt.Request{Path: completionPath, Body: []byte(`{"prompt":["Hello","Hello Hello"],"best_of":4}`)},
			shape{Lengths: []scoring.Tokens{2, 4}, Copies: 1, Source: scoring.TokensNative},
		},
		{
			"ids",
			prompt.Request{Path: completionPath, Body: []byte(`{"prompt":[1,2,true]}`)},
			shape{Lengths: []scoring.Tokens{3}, Copies: 1, Source: scoring.TokensGiven},
		},
		{
			"lists of ids",
			prompt.Request{Path: completionPath, Body: []byte(`{"prompt":[[1,2],[3]]}`)},
			shape{Lengths: []scoring.Tokens{2, 1}, Copies: 1, Source: scoring.TokensGiven},
		},
		{
			"another model",
			prompt.Request{Path: chatPath, Body: []byte(`{"model":"other","messages":` + hello + `}`)},
			shape{Model: "other", Lengths: []scoring.Tokens{5}, Copies: 1, Source: scoring.TokensEstimated},
		},
		{
			"the engine refuses it",
			prompt.Request{Path: chatPath, Body: []byte(`{"messages":"hello hello"}`)},
			shape{Lengths: []scoring.Tokens{2}, Copies: 1, Source: scoring.TokensEstimated},
		},
		{"UTF-16", prompt.Request{Path: chatPath, Body: []byte("{\x00}\x00")}, shape{Source: scoring.TokensNone}},
		{"not UTF-8", prompt.Request{Path: chatPath, Body: []byte("{\"a\":\"\xff\"}")}, shape{Source: scoring.TokensNone}},
		{"embeddings", prompt.Request{Path: "/v1/embeddings", Body: []byte(`{"model":"small","input":"x"}`)}, shape{Model: "small", Source: scoring.TokensNone}},
		{"another path, no JSON", prompt.Request{Path: "/v1/audio", Body: []byte(`no`)}, shape{Source: scoring.TokensNone}},
		{"render", prompt.Request{Path: chatPath + "/render", Body: []byte(`{"model":"small","messages":` + hello + `}`)}, shape{Model: "small", Source: scoring.TokensNone}},
		{"GET", prompt.Request{Method: "GET", Path: chatPath}, shape{Source: scoring.TokensNone}},
		{"multipart", prompt.Request{Path: chatPath, ContentType: "multipart/form-data; boundary=x", Body: []byte(`--x`)}, shape{Source: scoring.TokensNone}},
		{"gzip", prompt.Request{Path: chatPath, ContentEncoding: "gzip", Body: []byte(`{"messages":` + hello + `}`)}, shape{Source: scoring.TokensNone}},
		{"identity", prompt.Request{Path: completionPath, ContentEncoding: "Identity", Body: []byte(`{"prompt":[1]}`)}, shape{Lengths: []scoring.Tokens{1}, Copies: 1, Source: scoring.TokensGiven}},
	} {
		p, err := e.Encode(t.Context(), tc.r)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, shapeOf(t, p)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// TestRefused: only what no engine takes is refused, in vLLM's own words.
func TestRefused(t *testing.T) {
	e, err := prompt.NewEncoder(config(), prompt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for body, param := range map[string]string{"": "body", "null": "body", "[1]": "body", `{"a":1} x`: "body.8", "hello": "body.0"} {
		p, err := e.Encode(t.Context(), prompt.Request{Path: chatPath, Body: []byte(body)})
		var fault *prompt.RequestError
		if !errors.As(err, &fault) || fault.Status != 400 || fault.Type != "Bad Request" || fault.Param != param {
			t.Errorf("%q: %v, %v; want 400 with param %s", body, p, err, param)
		}
	}
}

func TestFallbacks(t *testing.T) {
	registry := prometheus.NewRegistry()
	cfg := config(smallModel())
	cfg.MaxInputBytes = 1000
	e := newEncoder(t, cfg, prompt.Options{Metrics: prompt.NewMetrics(registry)})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	deep := strings.Repeat("[", 300) + strings.Repeat("]", 300)
	for reason, try := range map[string]struct {
		ctx  context.Context
		body string
	}{
		"no_tokenizer": {t.Context(), `{"model":"other","prompt":"x"}`},
		"refused":      {t.Context(), `{"prompt":""}`},
		"too_large":    {t.Context(), `{"model":"small","prompt":"` + strings.Repeat("a", 1000) + `"}`},
		"deadline":     {cancelled, `{"prompt":"x"}`},
		"embeds":       {t.Context(), `{"prompt_embeds":"x"}`},
	} {
		p, err := e.Encode(try.ctx, prompt.Request{Path: completionPath, Body: []byte(try.body)})
		if err != nil || p.Source != scoring.TokensEstimated || p.Length() < 1 || len(p.Sequences) == 0 {
			t.Errorf("%s: %+v, %v", reason, p, err)
		}
		if n := count(t, registry, reason); n != 1 {
			t.Errorf("%s: counted %v times", reason, n)
		}
	}
	p, err := e.Encode(t.Context(), prompt.Request{Path: chatPath, Body: []byte(`{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"enable_thinking":` + deep + `}}`)})
	if err != nil || len(p.Sequences) != 1 {
		t.Errorf("deep: %+v, %v", p, err)
	}
	// Deeper than any reader goes: neither refused, nor a node for each bracket.
	before := count(t, registry, "too_large")
	p, err = e.Encode(t.Context(), prompt.Request{Path: chatPath, Body: []byte(`{"messages":` + strings.Repeat("[", 1_000_000))})
	if err != nil || p.Source != scoring.TokensNone || count(t, registry, "too_large") != before+1 {
		t.Errorf("brackets alone: %+v, %v", p, err)
	}
	if n := testutil.CollectAndCount(registry, "firsttoken_prompt_seconds"); n == 0 {
		t.Error("no times")
	}
}

// count is the number of fallbacks for that reason.
func count(t *testing.T, registry *prometheus.Registry, reason string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "firsttoken_prompt_fallbacks_total" && metric.GetLabel()[0].GetValue() == reason {
				return metric.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// harmonyFolder is a tokenizer folder whose chats this process cannot render.
func harmonyFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} {
		text, err := os.ReadFile(filepath.Join(smallTokenizer, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"model_type":"gpt_oss"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRemote: an engine renders what this process cannot.
func TestRemote(t *testing.T) {
	release := make(chan struct{})
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("headers %v", r.Header)
		}
		switch {
		case strings.Contains(string(body), "hang"):
			<-release
		case strings.Contains(string(body), "image"):
			fmt.Fprint(w, `{"token_ids":[1,2,3,4,5],"features":{"mm_placeholders":{"image":[{"offset":4,"length":1},{"offset":2,"length":1}]}}}`)
		case strings.Contains(string(body), "refuse"):
			w.WriteHeader(http.StatusBadRequest)
		case strings.Contains(string(body), "old") && strings.HasSuffix(r.URL.Path, "/render"):
			w.WriteHeader(http.StatusNotFound)
		case r.URL.Path == "/tokenize":
			fmt.Fprint(w, `{"count":2,"max_model_len":10,"tokens":[7,8],"token_strs":null}`)
		case r.URL.Path == chatPath+"/render":
			fmt.Fprint(w, `{"request_id":"x","token_ids":[1,2,3],"features":null}`)
		case r.URL.Path == completionPath+"/render":
			fmt.Fprint(w, `[{"token_ids":[1,2,3]},{"token_ids":[4]}]`)
		}
	}))
	defer engine.Close()
	defer close(release)
	registry := prometheus.NewRegistry()
	harmony := prompt.ModelConfig{Name: "harmony", Tokenizer: harmonyFolder(t)}
	remote := prompt.ModelConfig{Name: "remote", Mode: "remote"}
	native := prompt.ModelConfig{Name: "native", Tokenizer: harmony.Tokenizer, Mode: "native"}
	cfg := config(harmony, remote, native)
	asked := ""
	e := newEncoder(t, cfg, prompt.Options{
		APIKey:  "secret",
		Metrics: prompt.NewMetrics(registry),
		Endpoint: func(model string) (string, bool) {
			asked = model
			return engine.URL + "/", model != "nobody"
		},
	})
	chat := func(model, text string) string {
		return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]}`, model, text)
	}
	for _, tc := range []struct {
		name, path, body, asked string
		ids                     [][]uint32
		usable                  scoring.Tokens
		source                  scoring.TokenSource
		fallback                string
	}{
		{name: "harmony", path: chatPath, body: chat("harmony", "hi"), asked: "harmony", ids: [][]uint32{{1, 2, 3}}, usable: 3, source: scoring.TokensRemote},
		{name: "image", path: chatPath, body: chat("harmony", "image"), asked: "harmony", ids: [][]uint32{{1, 2, 3, 4, 5}}, usable: 2, source: scoring.TokensRemote},
		{name: "old engine", path: chatPath, body: chat("remote", "old"), asked: "remote", ids: [][]uint32{{7, 8}}, usable: 2, source: scoring.TokensRemote},
		{name: "list", path: completionPath, body: `{"model":"remote","prompt":["a","b"]}`, asked: "remote", ids: [][]uint32{{1, 2, 3}, {4}}, usable: 1, source: scoring.TokensRemote},
		{name: "ids need nobody", path: completionPath, body: `{"model":"remote","prompt":[5,6]}`, ids: [][]uint32{{5, 6}}, usable: 2, source: scoring.TokensGiven},
		{name: "not configured", path: chatPath, body: chat("adapter", "hi"), asked: "adapter", ids: [][]uint32{{1, 2, 3}}, usable: 3, source: scoring.TokensRemote},
		{name: "ids of a model not configured", path: completionPath, body: `{"model":"adapter","prompt":[5,6]}`, ids: [][]uint32{{5, 6}}, usable: 2, source: scoring.TokensGiven},
		{name: "harmony completes here", path: completionPath, body: `{"model":"harmony","prompt":"Hello"}`, source: scoring.TokensNative},
		{name: "refused", path: chatPath, body: chat("remote", "refuse"), asked: "remote", source: scoring.TokensEstimated, fallback: "remote"},
		{name: "effort", path: chatPath, body: `{"model":"remote","messages":[{"role":"user","content":"old"}],"reasoning_effort":"low"}`, asked: "remote", source: scoring.TokensEstimated},
		{name: "documents", path: chatPath, body: `{"model":"remote","messages":[{"role":"user","content":"old"}],"documents":[{"text":"x"}]}`, asked: "remote", source: scoring.TokensEstimated},
		{name: "slow", path: chatPath, body: chat("remote", "hang"), asked: "remote", source: scoring.TokensEstimated, fallback: "remote_slow"},
		{name: "never ask", path: chatPath, body: chat("native", "hi"), source: scoring.TokensEstimated, fallback: "harmony"},
	} {
		asked = ""
		p, err := e.Encode(t.Context(), prompt.Request{Path: tc.path, Body: []byte(tc.body)})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if p.Source != tc.source || asked != tc.asked {
			t.Errorf("%s: source %s, asked %q; want %s, %q", tc.name, p.Source, asked, tc.source, tc.asked)
		}
		if tc.fallback != "" && count(t, registry, tc.fallback) != 1 {
			t.Errorf("%s: fallback %s not counted", tc.name, tc.fallback)
		}
		for i, ids := range tc.ids {
			if diff := cmp.Diff(ids, p.Sequences[i].TokenIDs); diff != "" {
				t.Errorf("%s: ids (-want +got):\n%s", tc.name, diff)
			}
		}
		if n := len(p.Sequences); tc.ids != nil && p.Sequences[n-1].Usable != tc.usable {
			t.Errorf("%s: usable %d, want %d", tc.name, p.Sequences[n-1].Usable, tc.usable)
		}
	}
}

// TestLoadFails: a model whose tokenizer cannot be loaded is served all the same.
func TestLoadFails(t *testing.T) {
	e, err := prompt.NewEncoder(config(prompt.ModelConfig{Name: "m", Tokenizer: t.TempDir()}), prompt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "model m: ") {
		t.Errorf("no error for an empty folder: %v", err)
	}
	if !e.Ready() || e.Model("m") != nil {
		t.Error("ready with the model that failed")
	}
	p, err := e.Encode(t.Context(), prompt.Request{Path: completionPath, Body: []byte(`{"prompt":"0123456789abcdef"}`)})
	if err != nil || p.Source != scoring.TokensEstimated || p.Length() != 4 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestValidate(t *testing.T) {
	cfg := prompt.Config{MaxConcurrent: -1, Models: []prompt.ModelConfig{
		{Name: "a", Mode: "native", Engine: "x", ContentFormat: "y", AddBOS: "z", TimeZone: "Nowhere", MaxModelLen: -1},
		{Aliases: []string{"a"}},
	}}
	err := cfg.Validate("tokens")
	for _, key := range []string{
		"tokens.max_concurrent: ", "tokens.max_input_bytes: ", "tokens.remote_timeout: ", "tokens.remote_max_concurrent: ",
		"tokens.models[0].engine: ", "tokens.models[0].content_format: ", "tokens.models[0].add_bos: ", "tokens.models[0].tokenizer: ",
		"tokens.models[0].time_zone: ", "tokens.models[0].max_model_len: ", "tokens.models[1].name: is empty", `tokens.models[1].name: "a" is already`,
	} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("no fault %q in %v", key, err)
		}
	}
	if err := config(smallModel()).Validate("tokens"); err != nil {
		t.Error(err)
	}
}

// TestMedia: the ids before an image are certain, those after it are not.
func TestMedia(t *testing.T) {
	e := newEncoder(t, config(smallModel()), prompt.Options{})
	body := `{"messages":[{"role":"user","content":"first"},{"role":"assistant","content":"second"},{"role":"user","content":[` +
		`{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}`
	p, err := e.Encode(t.Context(), prompt.Request{Path: chatPath, Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	before, err := e.Encode(t.Context(), prompt.Request{Path: chatPath, Body: []byte(`{"messages":[{"role":"user","content":"first"},{"role":"assistant","content":"second"}],"add_generation_prompt":false}`)})
	if err != nil {
		t.Fatal(err)
	}
	certain := before.Sequences[0].Length
	s := p.Sequences[0]
	if p.Source != scoring.TokensNative || s.Usable < certain || s.Usable > certain+6 || s.Length < 1024 {
		t.Errorf("usable %d of length %d, and %d are before the image's message", s.Usable, s.Length, certain)
	}
	if diff := cmp.Diff(before.Sequences[0].TokenIDs, s.TokenIDs[:certain]); diff != "" {
		t.Errorf("the ids before the image (-want +got):\n%s", diff)
	}
}

// TestMediaFirst: where the parts become one text, vLLM puts the image before it,
// so that nothing of the message is certain.
func TestMediaFirst(t *testing.T) {
	model := smallModel()
	model.ContentFormat = "string"
	e := newEncoder(t, config(model), prompt.Options{})
	const image = `{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}`
	var usable []scoring.Tokens
	for _, parts := range []string{image, image + `,{"type":"text","text":"look here"}`, `{"type":"text","text":"look here"},` + image} {
		body := `{"messages":[{"role":"user","content":"first"},{"role":"user","content":[` + parts + `]}]}`
		p, err := e.Encode(t.Context(), prompt.Request{Path: chatPath, Body: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		usable = append(usable, p.Sequences[0].Usable)
	}
	if usable[0] < 1 || usable[1] != usable[0] || usable[2] != usable[0] {
		t.Errorf("usable %d, want three times the ids before the message", usable)
	}
}

// TestMediaCut: how much truncation leaves depends on the image's own tokens.
func TestMediaCut(t *testing.T) {
	e := newEncoder(t, config(smallModel()), prompt.Options{})
	body := `{"messages":[{"role":"user","content":"first"},{"role":"user","content":[` +
		`{"type":"image_url","image_url":{"url":"data:x"}}]}],"truncate_prompt_tokens":1000}`
	p, err := e.Encode(t.Context(), prompt.Request{Path: chatPath, Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Sequences[0]; s.Usable != 0 || p.Source != scoring.TokensNative {
		t.Errorf("usable %d of a prompt from %s, want 0", s.Usable, p.Source)
	}
}

// TestRenderCallsAreBounded: past the bound a request does not wait for another's
// answer.
func TestRenderCallsAreBounded(t *testing.T) {
	called, release := make(chan struct{}), make(chan struct{})
	engine := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		called <- struct{}{}
		<-release
	}))
	defer engine.Close()
	registry := prometheus.NewRegistry()
	cfg := config(prompt.ModelConfig{Name: "m", Mode: "remote"})
	cfg.RemoteMaxConcurrent, cfg.RemoteTimeout = 1, time.Hour
	e := newEncoder(t, cfg, prompt.Options{
		Metrics:  prompt.NewMetrics(registry),
		Endpoint: func(string) (string, bool) { return engine.URL, true },
	})
	r := prompt.Request{Path: completionPath, Body: []byte(`{"prompt":"x"}`)}
	first := make(chan error)
	go func() {
		_, err := e.Encode(t.Context(), r)
		first <- err
	}()
	<-called
	p, err := e.Encode(t.Context(), r)
	if err != nil || p.Source != scoring.TokensEstimated || count(t, registry, "remote_busy") != 1 {
		t.Errorf("%+v, %v; want an estimate, counted as remote_busy", p, err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestKeyFollowsNoRedirect: where an engine points elsewhere nobody is asked.
func TestKeyFollowsNoRedirect(t *testing.T) {
	asked := make(chan string, 1)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Header.Get("Authorization") }))
	defer other.Close()
	engine := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer engine.Close()
	e := newEncoder(t, config(prompt.ModelConfig{Name: "m", Mode: "remote"}), prompt.Options{
		APIKey:   "secret",
		Endpoint: func(string) (string, bool) { return engine.URL, true },
	})
	p, err := e.Encode(t.Context(), prompt.Request{Path: completionPath, Body: []byte(`{"prompt":"x"}`)})
	if err != nil || p.Source != scoring.TokensEstimated {
		t.Errorf("%+v, %v; want an estimate", p, err)
	}
	if len(asked) > 0 {
		t.Errorf("the redirect was followed with %q", <-asked)
	}
}

// TestManyAtOnce: 1,000 requests in parallel give the same ids as one.
func TestManyAtOnce(t *testing.T) {
	e := newEncoder(t, config(smallModel()), prompt.Options{})
	request := func(i int) prompt.Request {
		return prompt.Request{Path: chatPath, Body: fmt.Appendf(nil, `{"messages":[{"role":"user","content":"message \u00e9 %d"}]}`, i%10)}
	}
	var want [10][]uint32
	for i := range want {
		p, err := e.Encode(t.Context(), request(i))
		if err != nil {
			t.Fatal(err)
		}
		want[i] = p.Sequences[0].TokenIDs
	}
	got := make(chan string, 1000)
	for i := range 1000 {
		go func() {
			p, err := e.Encode(context.Background(), request(i))
			if err != nil {
				got <- err.Error()
				return
			}
			got <- cmp.Diff(want[i%10], p.Sequences[0].TokenIDs)
		}()
	}
	for range 1000 {
		if diff := <-got; diff != "" {
			t.Fatal(diff)
		}
	}
}

func FuzzEncode(f *testing.F) {
	for _, body := range []string{
		`{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"a":1e3}}}]}`,
		`{"messages":[{"role":"assistant","content":[{"type":"text","text":"a"}],"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":[]}"}}]}],"add_generation_prompt":false,"continue_final_message":true}`,
		`{"messages":[{"role":"developer","content":"\ud800"},{"role":"system","content":null}],"chat_template_kwargs":{"tools":[{}]},"documents":[{"a":"b"}]}`,
		`{"prompt":[[1,2],[3.0,"4"]],"truncate_prompt_tokens":1,"truncation_side":"right"}`,
		`{"user":"\u00e4","prompt":"x","user":-1.5e300}`,
		`{"prompt":["a","b"],"n":2,"max_tokens":null,"truncate_prompt_tokens":-1}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x"}},{"type":"text","text":"t"}]}],"reasoning_effort":"low"}`,
	} {
		f.Add([]byte(body), true)
		f.Add([]byte(body), false)
	}
	cfg := smallModel()
	cfg.MaxModelLen, cfg.TrustRequestChatTemplate = 512, true
	e := newEncoder(f, config(cfg), prompt.Options{Now: func() time.Time { return noon }})
	f.Fuzz(func(t *testing.T, body []byte, chat bool) {
		path := completionPath
		if chat {
			path = chatPath
		}
		p, err := e.Encode(t.Context(), prompt.Request{Path: path, SessionKey: "user", Body: body})
		var fault *prompt.RequestError
		switch {
		case err == nil && p == nil, err != nil && (!errors.As(err, &fault) || p != nil):
			t.Fatalf("%+v, %v", p, err)
		case err != nil:
			if fault.Status != 400 || fault.Type != "Bad Request" {
				t.Fatal(err)
			}
			return
		}
		if len(p.Session) > 256 {
			t.Fatalf("a session of %d bytes", len(p.Session))
		}
		for _, s := range p.Sequences {
			if s.Copies < 1 || s.Length < 1 || s.Usable > s.Length || s.Usable > scoring.Tokens(len(s.TokenIDs)) {
				t.Fatalf("%+v", s)
			}
		}
	})
}

// The salt is what the client sent, on every path and way; what an engine
// refuses is not ours to judge.
func TestSalt(t *testing.T) {
	e := newEncoder(t, config(smallModel()), prompt.Options{})
	const chat = `"messages":[{"role":"user","content":"Hello"}]`
	for _, tc := range []struct{ path, body, want string }{
		{chatPath, `{` + chat + `}`, ""},
		{chatPath, `{` + chat + `,"cache_salt":"s1"}`, "s1"},
		{chatPath, `{"cache_salt":"first",` + chat + `,"cache_salt":"\u00e4\"last"}`, `ä"last`},
		{chatPath, `{"model":"unknown",` + chat + `,"cache_salt":"s1"}`, "s1"}, // estimated
		{chatPath, `{` + chat + `,"cache_salt":null}`, ""},
		{chatPath, `{` + chat + `,"cache_salt":""}`, ""},
		{chatPath, `{` + chat + `,"cache_salt":7}`, ""},
		{completionPath, `{"prompt":"Hello","cache_salt":"s1"}`, "s1"},
		{completionPath, `{"prompt":[1,2,3],"cache_salt":"a/b@c"}`, "a/b@c"}, // vLLM before 0.32 takes it
		{"/v1/embeddings", `{"input":"Hello","cache_salt":"s1"}`, ""},
	} {
		p, err := e.Encode(t.Context(), prompt.Request{Path: tc.path, Body: []byte(tc.body)})
		if err != nil {
			t.Errorf("%s: %v", tc.body, err)
			continue
		}
		if p.Salt != tc.want {
			t.Errorf("%s: salt %q, want %q", tc.body, p.Salt, tc.want)
		}
	}
}
