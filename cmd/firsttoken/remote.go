package main

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/lmcache/remote"
	"github.com/firsttoken/firsttoken/scoring"
)

// askElsewhere makes the sources that ask registries of LMCache elsewhere, if
// any is configured.
func (s *service) askElsewhere(registry prometheus.Registerer) {
	cfg := s.cfg.LMCache
	if cfg.Ask.Coordinator == "" && cfg.Ask.Controller == "" {
		return
	}
	metrics := remote.NewMetrics(registry)
	if cfg.Ask.Coordinator != "" {
		s.mp.asked = append(s.mp.asked, remote.NewCoordinator(cfg.Ask, cfg.Coordinator.Fleet, s.log, metrics))
	}
	if cfg.Ask.Controller != "" {
		s.mp.asked = append(s.mp.asked, remote.NewController(cfg.Ask, s.log, metrics))
	}
}

// asker is extproc.Deps.Ask: all registries at once. Nil where there are none.
func (m *multiprocess) asker() func(context.Context, *scoring.Prompt) func() {
	switch len(m.asked) {
	case 0:
		return nil
	case 1:
		return m.asked[0].Ask
	}
	return func(ctx context.Context, p *scoring.Prompt) func() {
		done := make([]func(), len(m.asked))
		var asking sync.WaitGroup
		for i, source := range m.asked {
			asking.Go(func() { done[i] = source.Ask(ctx, p) }) // ends with its deadline
		}
		asking.Wait()
		return func() {
			for _, f := range done {
				f()
			}
		}
	}
}

// remoteSource is a registry elsewhere as fidelity checks it.
func remoteSource(r *remote.Source) fidelity.Source {
	f := fidelity.Source{
		Name: r.Name() + " elsewhere", Index: r, Ask: r.Ask, Settle: lmcacheSettle, AfterEnd: true, Keyed: true,
		Heard: r.Heard,
		Fixes: fidelity.Fixes{
			Silent: "see lmcache_asked in /status: whether lmcache.ask's registry answers, and which instances report to it",
			Stale:  "see lmcache_asked in /status: the registry of lmcache.ask no longer says who reports to it",
			Empty:  "see that the engine's LMCache stores at all, and reports to the registry of lmcache.ask",
			Gone:   "LMCache tells of chunks that the engine does not load: see the engine's log for LMCache errors",
		},
	}
	if r.Name() == remote.Controller {
		f.Wanted = func(e scoring.Endpoint) bool { return e.Cache.Instance != "" }
		f.Fixes.Keys = "lmcache_controller matches only engines with chunk_size 256, pre_caching_hash_algorithm builtin and the NONE_HASH of a process without vLLM; " +
			"let the engines report to firsttoken's own controller (lmcache.enabled) instead"
		return f
	}
	f.Wanted = func(e scoring.Endpoint) bool { return e.Cache.Server != "" }
	f.Fixes.Keys = "set lmcache.coordinator.chunk_size and --chunk-size of lmcache coordinator to lmcache server's, leave --hash-algorithm at blake3, " +
		"and give lmcache.coordinator.models the engine's --model and world size"
	return f
}
