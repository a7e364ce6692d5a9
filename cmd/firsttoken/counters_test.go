package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/discovery"
)

// What an engine counts is in /status, called with the key of other calls; an
// engine that shows nothing is as good an endpoint as before.
func TestServeReadsCounters(t *testing.T) {
	t.Setenv(apiKeyVariable, "k3y\n")
	models := `{"data":[{"id":"m"}]}`
	var start atomic.Int64
	start.Store(1_700_000_000)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, models) })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer k3y" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"1000\"} 1\n"+
			"process_start_time_seconds "+strconv.FormatInt(start.Load(), 10)+"\n")
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)

	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.Counters.Interval = 100 * time.Millisecond
	cfg.Endpoints = []discovery.Entry{{Name: "counts", Address: strings.TrimPrefix(server.URL, "http://")}, {Name: "silent", Address: fakeEngine(t, models)}}
	b := startService(t, cfg)
	read := func(wanted func(*counters.Status) bool) status {
		return awaitStatus(t, b, func(s status) bool {
			return len(s.Fleet) == 2 && s.Fleet[0].Counters != nil && s.Fleet[1].Counters != nil && wanted(s.Fleet[0].Counters) && s.Fleet[1].Counters.Faults > 0
		})
	}
	view := read(func(c *counters.Status) bool { return c.Reading != nil })
	if got := view.Fleet[0].Counters.Reading; got.CapacityTokens != 16_000 || got.BlockSize != 16 {
		t.Errorf("/status: %+v", got)
	}
	if other := view.Fleet[1]; !other.Ready || other.Counters.Reading != nil || !strings.Contains(other.Counters.Fault, "404") {
		t.Errorf("/status of an engine that shows nothing: %+v, %+v", other, other.Counters)
	}
	start.Add(60)
	read(func(c *counters.Status) bool { return c.Restarts == 1 })
	if metrics := get(t, b, "/metrics", nil); !strings.Contains(metrics, `firsttoken_engine_restarts_total{endpoint="counts"} 1`) {
		t.Error("/metrics does not tell of the restart")
	}
	start.Add(-60)
	several := awaitStatus(t, b, func(s status) bool { return len(s.Fleet) == 2 && len(s.Fleet[0].Findings) > 0 })
	if f := several.Fleet[0].Findings[0]; !strings.Contains(f.Fault, "several engine processes") || several.Fleet[0].Counters.Restarts != 1 {
		t.Errorf("/status of several engines: %+v, %+v", f, several.Fleet[0].Counters)
	}
}
