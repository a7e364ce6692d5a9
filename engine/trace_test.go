package engine_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/test/shared"
)

// recorded is what a real vLLM 0.32.0 was asked and answered.
type recorded struct {
	Name   string
	Path   string
	Body   json.RawMessage
	Chunks [][2]any // seconds, raw bytes
	Closed bool     `json:"closed_by_client"`
	SentAt float64  `json:"t_send"` // seconds since the Unix epoch
}

// publication is a message of KV events that it published.
type publication struct {
	Payload []byte `json:"payload_b64"`
}

// at is when, in seconds since the Unix epoch.
func (p publication) at(tb testing.TB) float64 {
	tb.Helper()
	batch, _, err := msgp.ReadIntfBytes(p.Payload)
	if err != nil {
		tb.Fatal(err)
	}
	return batch.([]any)[0].(float64)
}

func readTrace(t *testing.T) (requests []recorded, events []publication, metrics string) {
	t.Helper()
	f, err := os.Open(shared.File(t, "golden", "vllm-engine-trace.json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var trace struct {
		Requests []recorded
		Events   []publication `json:"kv_events"`
		Metrics  string
	}
	if err := json.NewDecoder(z).Decode(&trace); err != nil {
		t.Fatal(err)
	}
	return trace.Requests, trace.Events, trace.Metrics
}

// answer is the recorded HTTP answer, as far as it came.
func (r *recorded) answer(t *testing.T) reply {
	t.Helper()
	var raw bytes.Buffer
	for _, c := range r.Chunks {
		raw.WriteString(c[1].(string))
	}
	resp, err := http.ReadResponse(bufio.NewReader(&raw), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil && !r.Closed {
		t.Fatal(err)
	}
	return reply{resp, string(body)}
}

var logprobs = regexp.MustCompile(`logprobs:(\[[^ ]*\]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})`)

// shapes are the kinds of JSON documents in an answer. Logprobs, which a
// stand-in has none of, are taken out.
func (r reply) shapes(t *testing.T) []string {
	t.Helper()
	documents := []string{r.body}
	if strings.HasPrefix(r.body, "data: ") {
		documents = r.events()
	}
	kinds := make(map[string]bool)
	for _, d := range documents {
		if d != "[DONE]" {
			kinds[logprobs.ReplaceAllString(shape(t, d), "logprobs:null")] = true
		}
	}
	return slices.Sorted(maps.Keys(kinds))
}

// TestAnswersLookLikeTheTrace asks what the real engine was asked, in the same
// order, of an engine with the same sizes, and compares headers, the keys of
// every document in their order, and the usage.
func TestAnswersLookLikeTheTrace(t *testing.T) {
	requests, _, _ := readTrace(t)
	cfg := config()
	cfg.BlockTokens, cfg.MaxModelLen = 32, 8192
	cfg.Profile.KVTokens, cfg.Profile.BatchTokens, cfg.Profile.MaxSeqs = 299*32, 2048, 4
	cfg.RequestIDHeaders = true
	cfg.Tokenizer = qwen(t)
	r := start(t, cfg)
	for _, q := range requests {
		if q.Closed {
			continue // another test's
		}
		t.Run(q.Name, func(t *testing.T) {
			want := q.answer(t)
			got := r.do(http.MethodPost, q.Path, string(q.Body))
			if got.StatusCode != want.StatusCode {
				t.Fatalf("status %d, want %d: %s", got.StatusCode, want.StatusCode, got.body)
			}
			for _, name := range []string{"Content-Type", "Server", "Vary"} {
				if got.Header.Get(name) != want.Header.Get(name) {
					t.Errorf("%s: %q, want %q", name, got.Header.Get(name), want.Header.Get(name))
				}
			}
			if (got.ContentLength < 0) != (want.ContentLength < 0) || got.Header.Get("X-Request-Id") == "" {
				t.Errorf("content length %d, want as %d; request id %q", got.ContentLength, want.ContentLength, got.Header.Get("X-Request-Id"))
			}
			if diff := cmp.Diff(want.shapes(t), got.shapes(t)); diff != "" {
				t.Errorf("shapes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want.usage(), got.usage()); diff != "" {
				t.Errorf("usage (-want +got):\n%s", diff)
			}
		})
	}
}

var usagePattern = regexp.MustCompile(`"usage":\{.*?\}\}?`)

// usage is the last usage in an answer, as it is written.
func (r reply) usage() string {
	all := usagePattern.FindAllString(r.body, -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

// TestMetricsAreNamedAsInTheTrace: whatever we export, vLLM exports with the
// same labels.
func TestMetricsAreNamedAsInTheTrace(t *testing.T) {
	_, _, text := readTrace(t)
	r := start(t, config())
	r.post("/v1/completions", object{"prompt": ids(1, 40), "max_tokens": 3})
	theirs := seriesNames(text)
	ours := seriesNames(r.do(http.MethodGet, "/metrics", "").body)
	if len(ours) < 60 {
		t.Errorf("only %d series", len(ours))
	}
	for name := range ours {
		if strings.HasPrefix(name, "vllm:cache_config_info") {
			continue // has fewer labels
		}
		if !theirs[name] {
			t.Errorf("vLLM has no %s", name)
		}
	}
}

var (
	valueOfLabel = regexp.MustCompile(`(model_name|le)="[^"]*"`)
	sample       = regexp.MustCompile(`(?m)^(vllm:\S+) `)
)

func seriesNames(text string) map[string]bool {
	names := make(map[string]bool)
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		name, labels, _ := strings.Cut(strings.TrimSuffix(valueOfLabel.ReplaceAllString(m[1], "$1"), "}"), "{")
		sorted := strings.Split(labels, ",")
		slices.Sort(sorted)
		names[name+"{"+strings.Join(sorted, ",")+"}"] = true
	}
	return names
}
