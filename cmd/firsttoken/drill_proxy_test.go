//go:build cgo && !nozmq

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocconfigv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/scoring"
)

// drillPatience is for what must happen on a busy machine: trying all settings of
// LMCache takes a second under the race detector, and then rests twenty.
const drillPatience = 3 * time.Minute

// requireTokenizer skips where this build cannot tokenize.
func requireTokenizer(t *testing.T) {
	t.Helper()
	m, err := prompt.LoadModel(prompt.ModelConfig{Tokenizer: drillTokenizer})
	if errors.Is(err, native.ErrNotBuilt) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
}

func eventually(t *testing.T, what string, ok func() bool, now func() string) {
	t.Helper()
	for deadline := time.Now().Add(drillPatience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never %s; now\n%s", what, now())
		}
	}
}

// proxy does Envoy's part: it asks the service, forwards to the engine chosen,
// and tells of the first chunk and of the end.
type proxy struct {
	t        *testing.T
	service  bound
	external extprocv3.ExternalProcessorClient

	mu      sync.Mutex // guards records
	records accesslogv3.AccessLogService_StreamAccessLogsClient
}

func newProxy(t *testing.T, b bound) *proxy {
	t.Helper()
	conn := dial(t, b.Listen)
	awaitServing(t, conn)
	records, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &proxy{t: t, service: b, external: extprocv3.NewExternalProcessorClient(conn), records: records}
}

// exchange is one request and its answer.
type exchange struct {
	id      string // of the decision
	address string // of the engine
	answered
}

// answered is what an engine answered.
type answered struct {
	text      string
	cached    scoring.Tokens
	promptIDs []uint32
}

// forward sends a chat where the service wants it.
func (p *proxy) forward(body []byte) *exchange {
	stream, err := p.external.Process(p.t.Context())
	if err != nil {
		p.t.Error(err)
		return &exchange{}
	}
	send := func(r *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
		if err := stream.Send(r); err != nil {
			p.t.Error(err)
		}
		reply, err := stream.Recv()
		if err != nil {
			p.t.Error(err)
		}
		return reply
	}
	header := func(name, value string) *corev3.HeaderValue {
		return &corev3.HeaderValue{Key: name, RawValue: []byte(value)}
	}
	send(&extprocv3.ProcessingRequest{
		ProtocolConfig: &extprocv3.ProtocolConfiguration{
			RequestBodyMode: extprocconfigv3.ProcessingMode_BUFFERED, ResponseBodyMode: extprocconfigv3.ProcessingMode_STREAMED,
		},
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			header(":method", "POST"), header(":path", "/v1/chat/completions"), header("content-type", "application/json"),
		}}}},
	})
	reply := send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: body, EndOfStream: true},
	}})
	x := &exchange{}
	for _, h := range reply.GetRequestBody().GetResponse().GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == envoy.HeaderEndpoint {
			x.address, _, _ = strings.Cut(string(h.GetHeader().GetRawValue()), ",")
		}
	}
	x.id = reply.GetDynamicMetadata().GetFields()[envoy.Metadata].GetStructValue().GetFields()[envoy.KeyID].GetStringValue()
	if x.address == "" || x.id == "" {
		p.t.Errorf("no choice in %v", reply)
		return x
	}
	if x.answered, err = chat(p.t.Context(), "http://"+x.address, body, func(chunk []byte) {
		send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: chunk}}})
	}); err != nil {
		p.t.Error(err)
	}
	p.end(x)
	return x
}

// end tells that the client has the whole answer.
func (p *proxy) end(x *exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.records.Send(record(x.id, x.address))
	if err != nil {
		p.t.Error(err)
	}
}

// chat asks an engine and reads the streamed answer; first gets its first chunk.
func chat(ctx context.Context, url string, body []byte, first func([]byte)) (answered, error) {
	var a answered
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for begun := false; lines.Scan(); {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok || string(data) == "[DONE]" {
			continue
		}
		if !begun {
			begun = true
			first(append(lines.Bytes(), "\n\n"...))
		}
		var event struct {
			PromptIDs []uint32 `json:"prompt_token_ids"`
			Choices   []struct{ Delta struct{ Content string } }
			Usage     *struct {
				Details struct {
					Cached scoring.Tokens `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		if err := json.Unmarshal(data, &event); err != nil {
			return a, fmt.Errorf("%s: %w", data, err)
		}
		if event.PromptIDs != nil {
			a.promptIDs = event.PromptIDs
		}
		if event.Usage != nil {
			a.cached = event.Usage.Details.Cached
		}
		for _, c := range event.Choices {
			a.text += c.Delta.Content
		}
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return a, lines.Err()
}

// predictions are the tokens believed cached where each request went, or brought
// by requests that were under way there, by the decision's id.
func (p *proxy) predictions() map[string]scoring.Tokens {
	p.t.Helper()
	var view struct {
		Decisions []struct {
			ID         string
			Candidates []struct {
				Cached     scoring.Tokens `json:"cached_tokens"`
				Optimistic scoring.Tokens `json:"optimistic_tokens"`
			}
		}
	}
	get(p.t, p.service, "/decisions", &view)
	told := make(map[string]scoring.Tokens)
	for _, d := range view.Decisions {
		told[d.ID] = d.Candidates[0].Cached + d.Candidates[0].Optimistic
	}
	return told
}

// leastLoad plays the same rounds to engines of the same kind, and tells what they
// had to compute. With one request at a time no engine has more load than
// another, so any of them is right.
func (f *fleet) leastLoad() float64 {
	f.Helper()
	var engines []*engine.Server
	for range drillEngines {
		cfg := f.config()
		cfg.LMCache = engine.LMCacheConfig{}
		engines = append(engines, f.serve(cfg, f.listen()))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range rounds {
		f.play(round, func(body []byte) string {
			a, err := chat(f.Context(), engines[rng.IntN(drillEngines)].URL(), body, func([]byte) {})
			if err != nil {
				f.Error(err)
			}
			return a.text
		})
	}
	return computedBy(f.T, engines)
}

// scrape reads one sample of an engine's metrics: of that name, with that source.
func scrape(t *testing.T, url, name, source string) float64 {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if series, value, _ := strings.Cut(lines.Text(), " "); strings.HasPrefix(series, name+"{") && strings.Contains(series, `source="`+source+`"`) {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %s", url, name)
	return 0
}

// lmcacheWorker is LMCache's own worker and token database, in a process of
// their own beside a simulated engine.
type lmcacheWorker struct {
	t     *testing.T
	mu    sync.Mutex // guards the following
	stdin io.WriteCloser
	lines *bufio.Scanner
}

// startLMCache starts one with the settings; it registers as the instance.
func startLMCache(t *testing.T, at *boundLMCache, instance string, keys lmcache.KeyGroup) *lmcacheWorker {
	t.Helper()
	tools := os.Getenv("FIRSTTOKEN_TOOLS")
	if tools == "" {
		tools = "../../.tools"
	}
	const version = "0.5.6"
	tests := "../../test/lmcache"
	installed := filepath.Join(tools, "lmcache", version)
	if _, err := os.Stat(filepath.Join(installed, ".stamp")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("LMCache %s is not installed: %v; run make test", version, err)
		}
		t.Skipf("LMCache %s is not installed; run make test, which installs it below .tools", version)
	}
	keys = keys.Or(lmcache.DefaultKeyGroup())
	given, err := json.Marshal(map[string]any{
		"instance": instance, "pull": at.Pull, "reply": at.Reply, "heartbeat_seconds": 0.1, "receive_timeout_ms": drillPatience.Milliseconds(),
		"chunk_size": keys.ChunkSize, "algorithm": keys.Algorithm,
	})
	if err != nil {
		t.Fatal(err)
	}
	python := os.Getenv("PYTHON")
	if python == "" {
		python = "python3"
	}
	cmd := exec.Command(python, filepath.Join(tests, "worker.py"), string(given))
	cmd.Env = append(os.Environ(),
		"PYTHONPATH="+strings.Join([]string{installed, filepath.Join(tests, "stubs"), filepath.Join(tests, "vllm-stubs")}, string(filepath.ListSeparator)),
		"PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED="+keys.PythonHashSeed, "LMCACHE_TRACK_USAGE=false", "LMCACHE_LOG_LEVEL=WARNING")
	log := &lockedLog{}
	cmd.Stderr = log
	w := &lmcacheWorker{t: t}
	if w.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.lines = bufio.NewScanner(stdout)
	w.lines.Buffer(nil, 1<<20)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.stdin.Close()
		timer := time.AfterFunc(drillPatience, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("LMCache: %v\n%s", err, log)
		}
	})
	w.next()
	return w
}

// next waits for the next answer.
func (w *lmcacheWorker) next() {
	for w.lines.Scan() {
		if !strings.Contains(w.lines.Text(), `"event": "freeze"`) {
			return
		}
	}
	w.t.Errorf("LMCache's worker has ended: %v", w.lines.Err())
}

// store has LMCache keep a prompt.
func (w *lmcacheWorker) store(ids []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	line, err := json.Marshal(map[string]any{"do": "store", "tokens": ids})
	if err == nil {
		_, err = w.stdin.Write(append(line, '\n'))
	}
	if err != nil {
		w.t.Error(err)
	}
	w.next()
}
