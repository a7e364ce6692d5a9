package coordinator_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/lmcache/remote"
	"github.com/firsttoken/firsttoken/scoring"
)

const chunk = 256

func tokens(n int, first uint32) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = first + uint32(i)
	}
	return ids
}

// fork hands each request to the real coordinator and to ours, and holds ours
// to the real one's answer.
type fork struct {
	t    *testing.T
	real string
	ours *coordinator.Directory

	mu     sync.Mutex // both get requests in one order; guards counts
	counts map[string]int
}

func (f *fork) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
		return
	}
	status, text := f.both(r.Method, r.URL.String(), body)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

// both asks both and returns the real one's answer.
func (f *fork) both(method, path string, body []byte) (int, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	request, err := http.NewRequest(method, f.real+path, bytes.NewReader(body))
	if err != nil {
		f.t.Error(err)
		return 500, nil
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		f.t.Errorf("%s %s: %v", method, path, err)
		return 500, nil
	}
	defer response.Body.Close()
	want, err := io.ReadAll(response.Body)
	if err != nil {
		f.t.Error(err)
	}
	ours := httptest.NewRecorder()
	f.ours.Handler().ServeHTTP(ours, httptest.NewRequest(method, path, bytes.NewReader(body)))
	if ours.Code != response.StatusCode {
		f.t.Errorf("%s %s %.200s: ours answers %d %s, the real one %d %s", method, path, body, ours.Code, ours.Body, response.StatusCode, want)
	} else if response.StatusCode == http.StatusOK {
		if diff := cmp.Diff(comparable(f.t, want), comparable(f.t, ours.Body.Bytes())); diff != "" {
			f.t.Errorf("%s %s %.200s (-real +ours):\n%s", method, path, body, diff)
		}
	}
	f.counts[method+" "+path]++
	return response.StatusCode, want
}

// comparable is an answer without what ours cannot know: the real one's clock,
// and the tokens, which ours does not keep.
func comparable(t *testing.T, text []byte) any {
	t.Helper()
	var v map[string]any
	if len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Errorf("%q: %v", text, err)
		return nil
	}
	for _, list := range []string{"instances", "results", "keys"} {
		rows, _ := v[list].([]any)
		for _, row := range rows {
			maps.DeleteFunc(row.(map[string]any), func(k string, _ any) bool {
				return slices.Contains([]string{"registration_time", "token_ids", "num_tokens"}, k)
			})
		}
		if list == "keys" { // in no order that means something
			slices.SortFunc(rows, func(a, b any) int { return bytes.Compare(key(t, a), key(t, b)) })
		}
	}
	return v
}

func key(t *testing.T, row any) []byte {
	t.Helper()
	text, err := json.Marshal(row)
	if err != nil {
		t.Error(err)
	}
	return text
}

func prompt(model, salt string, ids ...[]uint32) *scoring.Prompt {
	p := &scoring.Prompt{Model: model, Salt: salt}
	for _, list := range ids {
		p.Sequences = append(p.Sequences, scoring.Sequence{TokenIDs: list, Length: scoring.Tokens(len(list)), Usable: scoring.Tokens(len(list)), Copies: 1})
	}
	return p
}

// One real server after another reports to the real coordinator and to ours at
// once: both answer every request the same, and so does our client of the real
// one.
func TestRealCoordinator(t *testing.T) {
	real := start(t, "serve.py", "coordinator")
	var at struct{ HTTP string }
	real.line("http", &at)

	cfg := coordinator.DefaultConfig()
	cfg.Models = map[string]coordinator.Model{"wide": {Name: "org/wide", WorldSize: 2}}
	cfg.SecondsPerToken = coordinator.TierSeconds{L1: 1e-6, L2: 1e-5}
	log := slog.New(slog.DiscardHandler)
	ours, err := coordinator.New(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	both := &fork{t: t, real: at.HTTP, ours: ours, counts: make(map[string]int)}
	proxy := httptest.NewServer(both)
	defer proxy.Close()

	// Two nodes: one engine on the first, found by its address, two on the
	// second, and one that no server is for.
	endpoints := []scoring.Endpoint{
		{ID: 1, Name: "a", Address: "127.0.0.1:8000", Models: []string{"wide"}, Ready: true, Cache: scoring.CacheIdentity{Server: "node-a"}},
		{ID: 2, Name: "b", Address: "127.0.0.1:8001", Models: []string{"wide"}, Ready: true, Cache: scoring.CacheIdentity{Server: "node-b"}},
		{ID: 3, Name: "c", Address: "127.0.0.1:8002", Models: []string{"wide"}, Ready: true, Cache: scoring.CacheIdentity{Server: "node-b"}},
		{ID: 4, Name: "d", Address: "10.0.0.4:8000", Models: []string{"wide"}, Ready: true},
	}
	ours.SetEndpoints(endpoints)

	nodeA := start(t, "server.py", proxy.URL, "node-a", "org/wide", "2")
	nodeB := start(t, "server.py", proxy.URL, "node-b", "org/wide", "2")
	var ready struct{ Ready bool }
	nodeA.line("ready", &ready)
	nodeB.line("ready", &ready)

	long, short := tokens(5*chunk+7, 0), tokens(2*chunk, 50_000)
	nodeA.do(map[string]any{"do": "store", "tokens": long[:3*chunk]})
	nodeA.do(map[string]any{"do": "store", "tokens": long, "ranks": []int{0}})
	nodeB.do(map[string]any{"do": "store", "tokens": long, "tier": "l2"})
	nodeB.do(map[string]any{"do": "store", "tokens": long[:chunk]})
	nodeB.do(map[string]any{"do": "store", "tokens": short, "salt": "tenant", "tier": "l2", "shared": true})
	nodeA.do(map[string]any{"do": "store", "tokens": short})
	nodeA.do(map[string]any{"do": "evict", "tokens": short, "ranks": []int{1}})
	nodeA.do(map[string]any{"do": "access", "tokens": long[:chunk]})

	asked := remote.DefaultConfig()
	asked.Coordinator, asked.Deadline = at.HTTP, patience
	client := remote.NewCoordinator(asked, cfg.Fleet, log, remote.NewMetrics(prometheus.NewRegistry()))
	client.SetEndpoints(endpoints)
	go client.Run(t.Context())
	eventually(t, "both nodes in the client's view", func() bool { return len(client.Status().Mapped) == 3 && !client.Heard(2).IsZero() })

	l1, l2 := func(end scoring.Tokens) scoring.Span {
		return scoring.Span{End: end, Location: "l1", SecondsPerToken: 1e-6}
	}, func(end scoring.Tokens) scoring.Span {
		return scoring.Span{End: end, Location: "l2", SecondsPerToken: 1e-5}
	}
	check := func(name string, p *scoring.Prompt, want ...[]scoring.Match) {
		t.Helper()
		done := client.Ask(t.Context(), p)
		theirs, own := client.Match(p, endpoints), ours.Match(p, endpoints)
		done()
		if diff := cmp.Diff(want, own); diff != "" {
			t.Errorf("%s: ours (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(own, theirs); diff != "" {
			t.Errorf("%s: the real one asked (-ours +asked):\n%s", name, diff)
		}
		if after := client.Match(p, endpoints); !cmp.Equal(after, make([][]scoring.Match, len(endpoints))) {
			t.Errorf("%s: after done it still answers %v", name, after)
		}
	}
	held := func(spans ...scoring.Span) []scoring.Match {
		m := scoring.Match{Spans: spans}
		if len(spans) > 0 {
			m.Cached = spans[len(spans)-1].End
		}
		return []scoring.Match{m}
	}
	onB := held(l1(chunk), l2(5*chunk))
	check("long", prompt("wide", "", long), held(l1(3*chunk)), onB, onB, nil)
	check("cut", prompt("wide", "", long[:2*chunk-1]), held(l1(chunk)), held(l1(chunk)), held(l1(chunk)), nil)
	check("one rank evicted", prompt("wide", "", short), held(), held(), held(), nil)
	onAll := held(l2(2 * chunk))
	check("shared, salted", prompt("wide", "tenant", short), onAll, onAll, onAll, nil)
	check("another salt", prompt("wide", "other", short), held(), held(), held(), nil)
	check("a salt that LMCache refuses", prompt("wide", "a/b", short), held(), held(), held(), nil)
	check("two prompts", prompt("wide", "", long[:chunk], tokens(300, 9)), slices.Concat(held(l1(chunk)), held()), slices.Concat(held(l1(chunk)), held()), slices.Concat(held(l1(chunk)), held()), nil)

	for _, path := range []string{"/instances", "/directory/stats", "/directory/keys", "/directory/keys?tier=l2&instance_id=node-b", "/healthz"} {
		both.both(http.MethodGet, path, nil)
	}
	for _, q := range []map[string]any{
		{"token_ids": long, "model_name": "org/wide", "world_size": 2},
		{"token_ids": short, "model_name": "org/wide", "world_size": 2, "cache_salt": "tenant"},
		{"token_ids": long, "model_name": "other"},
		{"token_ids": long[:chunk-1], "model_name": "org/wide"},
		{"token_ids": long},
		{},
		{"token_ids": long, "model_name": "m", "world_size": 0},
		{"token_ids": long, "model_name": "m", "cache_salt": "a/b"},
		{"keys": []any{coordinator.ObjectKey{ChunkHash: "00ff", ModelName: "m"}}},
		{"keys": []any{coordinator.ObjectKey{ChunkHash: "xx"}}},
	} {
		text, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		both.both(http.MethodPost, "/directory/lookup", text)
	}

	// A node goes: what it had in memory goes with it.
	nodeB.stop()
	both.both(http.MethodDelete, "/instances/node-b", nil)
	both.both(http.MethodGet, "/directory/stats", nil)
	both.both(http.MethodPut, "/instances/node-b/heartbeat", nil)
	if got := ours.Match(prompt("wide", "", long), endpoints); got[0] == nil || got[1] != nil {
		t.Errorf("after the node went: %v", got)
	}
	c := ours.Counts()
	if c.Checked == 0 || c.Mismatched > 0 || c.Foreign > 0 || c.Gaps > 0 || c.Refused > 0 {
		t.Errorf("%+v", c)
	}
	eventually(t, "heartbeats", func() bool {
		both.mu.Lock()
		defer both.mu.Unlock()
		return both.counts["PUT /instances/node-a/heartbeat"] > 1
	})
	t.Logf("%v, %+v", both.counts, c)
}

// The controller of 0.5.6 with a real worker, asked by our client.
func TestRealController(t *testing.T) {
	real := start(t, "serve.py", "controller")
	var at struct{ HTTP, Pull, Reply string }
	real.line("http", &at)

	settings, err := json.Marshal(map[string]any{
		"instance": "vllm-a", "pull": at.Pull, "reply": at.Reply, "heartbeat_seconds": 1, "receive_timeout_ms": 30_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	worker := start(t, "../lmcache/worker.py", string(settings))
	var ready map[string]any
	worker.line("event", &ready)

	cfg := remote.DefaultConfig()
	cfg.Controller, cfg.Deadline, cfg.MembersInterval = at.HTTP, patience, 50*time.Millisecond
	source := remote.NewController(cfg, slog.New(slog.DiscardHandler), remote.NewMetrics(prometheus.NewRegistry()))
	// By its address, and one that is not there.
	endpoints := []scoring.Endpoint{
		{ID: 1, Name: "a", Address: "127.0.0.1:8000", Ready: true},
		{ID: 2, Name: "b", Address: "10.0.0.2:8000", Ready: true},
		{ID: 3, Name: "c", Address: "10.0.0.3:8000", Ready: true, Cache: scoring.CacheIdentity{Instance: "vllm-gone"}},
	}
	source.SetEndpoints(endpoints)
	go source.Run(t.Context())
	eventually(t, "the worker in the client's view", func() bool { return source.Status().Mapped["a"] == "vllm-a" })

	ids := tokens(3*chunk, 7)
	match := func() [][]scoring.Match {
		p := prompt("m", "", ids)
		defer source.Ask(t.Context(), p)()
		return source.Match(p, endpoints)
	}
	if diff := cmp.Diff([][]scoring.Match{{{}}, nil, nil}, match()); diff != "" {
		t.Errorf("before any report (-want +got):\n%s", diff)
	}
	worker.do(map[string]any{"do": "store", "tokens": ids[:2*chunk]})
	want := [][]scoring.Match{{{Cached: 2 * chunk, Spans: []scoring.Span{{End: 2 * chunk, Location: "LocalCPUBackend"}}}}, nil, nil}
	eventually(t, "two chunks cached", func() bool { return cmp.Equal(want, match()) })
}
