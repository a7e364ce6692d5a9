package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/coordinator"
)

// post sends JSON and returns the answer to it, which must be one.
func post(t *testing.T, url, body string) string {
	t.Helper()
	r, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", url, r.Status, text, err)
	}
	return string(text)
}

// reportNodes has the LMCache servers node0 and node1 report a prompt each to the
// coordinator at url.
func reportNodes(t *testing.T, url string) (prompts [][]uint32) {
	t.Helper()
	hasher, err := lmcache.NewTokenHasher(256)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		var ids []uint32
		for id := range 1600 {
			ids = append(ids, uint32(id+i*5000))
		}
		prompts = append(prompts, ids)
		var entries []any
		for _, key := range hasher.Keys(nil, ids) {
			entries = append(entries, map[string]any{"size_bytes": 1, "key": coordinator.ObjectKey{
				ChunkHash: key.String(), ModelName: "m", KVRank: coordinator.KVRank(1, 0),
			}})
		}
		body, err := json.Marshal(map[string]any{"batches": []any{map[string]any{
			"instance_id": fmt.Sprintf("node%d", i), "incarnation": 1, "seq": 1, "event_type": "store", "tier": "l1", "backend": "dram", "entries": entries,
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := post(t, url+"/events", string(body)); got != `{"applied":1,"duplicates":0,"stale":0}`+"\n" {
			t.Error(got)
		}
	}
	return prompts
}

// nodes is a configuration of two endpoints, each with its node's LMCache
// server.
func nodes(t *testing.T) (cfg config, addresses []string) {
	t.Helper()
	cfg = defaultConfig()
	cfg.LMCache.Enabled = false
	for i := range 2 {
		address := fakeEngine(t, `{"object":"list","data":[{"id":"m"}]}`)
		addresses = append(addresses, address)
		cfg.Endpoints = append(cfg.Endpoints, discovery.Entry{Address: address, LMCache: discovery.LMCacheEntry{Server: fmt.Sprintf("node%d", i)}})
	}
	return cfg, addresses
}

// wantEachAtItsNode sends both prompts several times.
func wantEachAtItsNode(t *testing.T, conn *grpc.ClientConn, prompts [][]uint32, addresses []string) {
	t.Helper()
	for round := range 4 {
		for i, ids := range prompts {
			text, err := json.Marshal(ids)
			if err != nil {
				t.Fatal(err)
			}
			chosen, _, _ := strings.Cut(choose(t, conn, fmt.Sprintf(`{"model":"m","prompt":%s,"stream":true}`, text)), ",")
			if chosen != addresses[i] {
				t.Errorf("round %d: prompt %d went to %s, want %s, which holds it", round, i, chosen, addresses[i])
			}
		}
	}
}

// A prompt that an LMCache server reported is sent to its node.
func TestServeIsLMCachesCoordinator(t *testing.T) {
	cfg, addresses := nodes(t)
	cfg.LMCache.Coordinator.Listen = "127.0.0.1:0"
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)
	wantEachAtItsNode(t, conn, reportNodes(t, "http://"+b.Coordinator), addresses)
	var view status
	get(t, b, "/status", &view)
	if s := view.Coordinator; s == nil || len(s.Servers) != 2 || s.Servers[1].L1 != 6 || s.Address != b.Coordinator || len(s.Unmapped) != 0 {
		t.Errorf("%+v", s)
	}
	if text := get(t, b, "/metrics", nil); !strings.Contains(text, `firsttoken_lmcache_coordinator_reports_total{result="applied"} 2`) {
		t.Errorf("/metrics lacks the reports:\n%s", text)
	}
}

// So is one that was reported to a coordinator elsewhere, which is asked.
func TestServeAsksLMCachesCoordinator(t *testing.T) {
	directory, err := coordinator.New(coordinator.DefaultConfig(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := httptest.NewServer(directory.Handler())
	defer elsewhere.Close()
	prompts := reportNodes(t, elsewhere.URL)

	cfg, addresses := nodes(t)
	cfg.LMCache.Ask.Coordinator, cfg.LMCache.Ask.MembersInterval = elsewhere.URL, 20*time.Millisecond
	// A second registry, which is not there, must not be in the way.
	cfg.LMCache.Ask.Controller = "http://127.0.0.1:1"
	cfg.LMCache.Ask.Deadline = 10 * time.Second // of a busy machine
	cfg.Server.DecisionDeadline = 10 * time.Second
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)
	view := awaitStatus(t, b, func(s status) bool { return len(s.Asked) == 2 && len(s.Asked[0].Mapped) == 2 })
	if s := view.Asked[1]; s.Registry != "controller" || !strings.Contains(s.Fault, "refused") {
		t.Errorf("%+v", s)
	}
	wantEachAtItsNode(t, conn, prompts, addresses)
	if text := get(t, b, "/metrics", nil); !strings.Contains(text, `firsttoken_lmcache_asked_total{registry="coordinator",result="answered"} 8`) {
		t.Errorf("/metrics lacks the questions:\n%s", text)
	}
}
