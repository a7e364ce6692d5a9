package coordinator_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/test/shared"
)

// load reads a file of vectors.
func load(t *testing.T, name string, to any) {
	t.Helper()
	data, err := os.ReadFile(shared.File(t, "golden", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatal(err)
	}
}

func newDirectory(tb testing.TB, change ...func(*coordinator.Config)) *coordinator.Directory {
	tb.Helper()
	cfg := coordinator.DefaultConfig()
	for _, c := range change {
		c(&cfg)
	}
	d, err := coordinator.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// call sends one request and returns status and body.
func call(tb testing.TB, d *coordinator.Directory, method, path, body string) (int, string) {
	tb.Helper()
	w := httptest.NewRecorder()
	d.Handler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	answer, err := io.ReadAll(w.Result().Body)
	if err != nil {
		tb.Fatal(err)
	}
	return w.Code, string(answer)
}

// TestGoldenHTTP plays what was recorded with the real coordinator, in order,
// and must answer the same.
func TestGoldenHTTP(t *testing.T) {
	var wire struct {
		Records []struct {
			Method, Path string
			Request      map[string]any
			Status       int
			Response     any
		} `json:"coordinator_http"`
	}
	load(t, "lmcache-wire.json", &wire)
	var hash struct {
		Lists map[string][]uint32 `json:"token_lists"`
	}
	load(t, "lmcache-hash.json", &hash)
	if len(wire.Records) == 0 {
		t.Fatal("no records")
	}
	d := newDirectory(t)
	for i, r := range wire.Records {
		if name, ok := r.Request["token_ids"].(string); ok {
			tokens := hash.Lists[name]
			if len(tokens) == 0 {
				t.Fatalf("record %d: no list %q", i, name)
			}
			if r.Response.(map[string]any)["chunks"] == 0.0 {
				tokens = tokens[:255] // what the record cut off it
			}
			r.Request["token_ids"] = tokens
		}
		body := ""
		if r.Request != nil {
			text, err := json.Marshal(r.Request)
			if err != nil {
				t.Fatal(err)
			}
			body = string(text)
		}
		status, text := call(t, d, r.Method, r.Path, body)
		if status != r.Status {
			t.Errorf("record %d, %s %s: %d %s, want %d", i, r.Method, r.Path, status, text, r.Status)
			continue
		}
		if want := r.Response; want != "" {
			if diff := cmp.Diff(timeless(want), timeless(decoded(t, text))); diff != "" {
				t.Errorf("record %d, %s %s (-want +got):\n%s", i, r.Method, r.Path, diff)
			}
		} else if text != "" {
			t.Errorf("record %d: body %q, want none", i, text)
		}
	}
	t.Logf("%d records", len(wire.Records))
}

func decoded(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return v
}

// timeless takes the times of registration out: they are the wall clock's. None
// of them may be missing.
func timeless(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	list, _ := m["instances"].([]any)
	for _, in := range list {
		if at, ok := in.(map[string]any)["registration_time"].(float64); ok && at > 1e9 {
			delete(in.(map[string]any), "registration_time")
		}
	}
	return m
}
