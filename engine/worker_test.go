//go:build cgo && !nozmq

package engine_test

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/lmcache"
)

// controller is the LMCache controller of this repository and its index.
type controller struct {
	testing.TB
	*lmcache.Controller
	index  *lmcache.Index
	hasher *lmcache.Hasher
	stop   func()
}

func startController(tb testing.TB, cfg lmcache.ControllerConfig) *controller {
	tb.Helper()
	c := &controller{TB: tb, index: lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 1_000_000})}
	var err error
	if c.hasher, err = lmcache.NewHasher(lmcache.DefaultKeyGroup()); err != nil {
		tb.Fatal(err)
	}
	if c.Controller, err = lmcache.NewController(cfg, c.index, slog.New(slog.DiscardHandler), lmcache.NewMetrics(prometheus.NewRegistry())); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }() // ended by stop
	stopped := false
	c.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	}
	tb.Cleanup(c.stop)
	return c
}

// anyPorts is a controller on free loopback ports.
func anyPorts() lmcache.ControllerConfig {
	cfg := lmcache.DefaultControllerConfig()
	cfg.Pull, cfg.Reply, cfg.Heartbeat = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	return cfg
}

// held is how many leading chunks of a prompt the engine is said to hold.
func (c *controller) held(prompt []int) int {
	tokens := make([]uint32, len(prompt))
	for i, id := range prompt {
		tokens[i] = uint32(id)
	}
	keys := c.hasher.Keys(nil, tokens)
	return c.index.Match(nil, keys, []string{"e1"})[0].Chunks
}

func reporting(c *controller, tokens int) engine.Config {
	cfg := config()
	a := c.Addresses()
	cfg.LMCache = engine.LMCacheConfig{
		Pull: a.Pull, Reply: a.Reply, Instance: "e1", Heartbeat: 20 * time.Millisecond, Tokens: tokens,
	}
	return cfg
}

func TestWorkerAdmitsEvictsAndHits(t *testing.T) {
	c := startController(t, anyPorts())
	cfg := reporting(c, 10*256)
	cfg.Profile.KVTokens, cfg.MaxModelLen = 2048, 2048
	r := start(t, cfg)
	ask := func(prompt []int) float64 {
		got := r.post("/v1/completions", object{"prompt": prompt, "max_tokens": 1})
		if got.StatusCode != http.StatusOK {
			t.Fatal(got.body)
		}
		return got.field(t, "usage.prompt_tokens_details.cached_tokens").(float64)
	}
	a, b := ids(1, 1100), ids(2, 1900)
	ask(a)
	eventually(t, "the full chunks of a prompt are admitted", func() bool { return c.held(a) == 4 })
	ask(b) // 7 chunks into the 6 that are free: the tail of a goes
	eventually(t, "what did not fit is evicted, the tail first", func() bool { return c.held(b) == 7 && c.held(a) == 3 })
	// The KV memory holds b alone, so what is left of a comes from the host tier.
	if got := ask(a); got != 768 {
		t.Errorf("%v cached, want the 768 of three chunks", got)
	}
	if got := r.metric(`vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}`); got == 0 || got > 768 {
		t.Errorf("%v tokens from the host tier", got)
	}
	eventually(t, "the chunk that was computed again is admitted again", func() bool { return c.held(a) == 4 && c.held(b) == 6 })
}

func TestWorkerRepeatsAllToANewController(t *testing.T) {
	c := startController(t, anyPorts())
	cfg := reporting(c, 100_000)
	cfg.LMCache.Keys.ChunkSize = 16 // so that there are more keys than one batch holds
	hasher, err := lmcache.NewHasher(cfg.LMCache.Keys)
	if err != nil {
		t.Fatal(err)
	}
	c.hasher = hasher
	r := start(t, cfg)
	prompts := [][]int{ids(1, 30_000), ids(2, 30_000), ids(3, 700)}
	for _, p := range prompts {
		r.post("/v1/completions", object{"prompt": p, "max_tokens": 1})
	}
	eventually(t, "all is admitted", func() bool { return c.held(prompts[1]) == 1875 && c.held(prompts[2]) == 43 })

	// Workers know the addresses, so the next controller has the same.
	a := c.Addresses()
	again := anyPorts()
	again.Pull, again.Reply, again.Heartbeat = a.Pull, a.Reply, a.Heartbeat
	c.stop()
	c = startController(t, again)
	c.hasher = hasher
	eventually(t, "the new controller knows all", func() bool {
		for _, p := range prompts {
			if c.held(p) != len(p)/16 {
				return false
			}
		}
		return true
	})
	// The tier is no longer frozen.
	eventually(t, "what comes later is admitted", func() bool {
		p := ids(4, 512)
		r.post("/v1/completions", object{"prompt": p, "max_tokens": 1})
		return c.held(p) == 32
	})
}

func TestWorkerWaitsForItsController(t *testing.T) {
	c := startController(t, anyPorts())
	a := c.Addresses()
	cfg := reporting(c, 10_000)
	c.stop()
	r := start(t, cfg) // nobody listens
	p := ids(1, 512)
	r.post("/v1/completions", object{"prompt": p, "max_tokens": 1})
	again := anyPorts()
	again.Pull, again.Reply, again.Heartbeat = a.Pull, a.Reply, a.Heartbeat
	c = startController(t, again)
	eventually(t, "what was stored before is admitted", func() bool { return c.held(p) == 2 })
}
