package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

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

// A prompt that an LMCache server reported is sent to its node.
func TestServeIsLMCachesCoordinator(t *testing.T) {
	models := `{"object":"list","data":[{"id":"m"}]}`
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.LMCache.Coordinator.Listen = "127.0.0.1:0"
	var addresses []string
	for i := range 2 {
		address := fakeEngine(t, models)
		addresses = append(addresses, address)
		cfg.Endpoints = append(cfg.Endpoints, discovery.Entry{Address: address, LMCache: discovery.LMCacheEntry{Server: fmt.Sprintf("node%d", i)}})
	}
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)

	hasher, err := lmcache.NewTokenHasher(256)
	if err != nil {
		t.Fatal(err)
	}
	prompts := make([][]uint32, 2)
	for i := range prompts {
		for id := range 1600 {
			prompts[i] = append(prompts[i], uint32(id+i*5000))
		}
		var entries []any
		for _, key := range hasher.Keys(nil, prompts[i]) {
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
		if got := post(t, "http://"+b.Coordinator+"/events", string(body)); got != `{"applied":1,"duplicates":0,"stale":0}`+"\n" {
			t.Error(got)
		}
	}
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
	var view status
	get(t, b, "/status", &view)
	if s := view.Coordinator; s == nil || len(s.Servers) != 2 || s.Servers[1].L1 != 6 || s.Address != b.Coordinator || len(s.Unmapped) != 0 {
		t.Errorf("%+v", s)
	}
	if text := get(t, b, "/metrics", nil); !strings.Contains(text, `firsttoken_lmcache_coordinator_reports_total{result="applied"} 2`) {
		t.Errorf("/metrics lacks the reports:\n%s", text)
	}
}
