package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
)

// The names of the sources in status, metrics and decisions.
const (
	sourceEvents  = "events"
	sourceLMCache = "lmcache"
	// sourceCoordinator is LMCache in multiprocess mode, told to us as its
	// coordinator.
	sourceCoordinator = "coordinator"
)

const (
	// eventsSettle is how long after the first token an engine's events must
	// have come: vLLM publishes at the end of a step, before it hands out the
	// step's tokens; the rest is for a replay.
	eventsSettle = 2 * time.Second
	// lmcacheSettle is how long after the end of a request LMCache must have
	// told of its chunks: 50 ms as measured, a second in multiprocess mode; the
	// rest is for a full sync.
	lmcacheSettle = 5 * time.Second
	// probeInterval is how often it is looked whether sources show what was
	// computed.
	probeInterval = 100 * time.Millisecond
)

// check makes the one cache index that the picker asks: the longest match that
// anybody who is right reports, and our own memory of the endpoints that nobody
// reports of.
func (s *service) check() *fidelity.Checker {
	var sources []fidelity.Source
	if s.events != nil {
		// First, because an engine looks in its own memory first.
		sources = append(sources, s.eventsSource())
	}
	if s.source != nil {
		sources = append(sources, s.lmcacheSource())
	}
	if s.mp.directory != nil {
		sources = append(sources, s.coordinatorSource())
	}
	for _, r := range s.mp.asked {
		sources = append(sources, remoteSource(r))
	}
	memory := fidelity.Source{
		Name: routed.Location, Index: s.memory,
		Fixes: fidelity.Fixes{Gone: "set memory.capacity_tokens to what the engine's GPU holds, num_gpu_blocks times block_size, and memory.host_tokens to what its host tier does; other clients of the engine evict, too"},
	}
	return fidelity.New(sources, memory, fidelity.Options{
		Finders: []fidelity.Finder{s.findUnmapped, s.findHashing, s.findIDs, s.findStoreOnly, s.findSeveral}, Shared: s.leavesToEnvoy, Now: time.Now, Log: s.log,
	})
}

// leavesToEnvoy reports whether an arm's requests go to engines without a booking.
func (s *service) leavesToEnvoy() bool {
	arms := s.arms.Load() // nil before the first configuration
	return arms != nil && slices.ContainsFunc(arms.Arms, func(a canary.Arm) bool { return a.Policy == canary.PolicyEnvoy })
}

func (s *service) eventsSource() fidelity.Source {
	return fidelity.Source{
		Name: sourceEvents, Index: s.events, Settle: eventsSettle,
		Wanted: func(e scoring.Endpoint) bool { return e.Cache.Events.Endpoint != "" },
		Heard:  s.events.Heard, Held: s.events.Held, Grain: s.events.Grain,
		Fixes: fidelity.Fixes{
			Silent: `start the engine with --kv-events-config '{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557"}' and prefix caching, and let endpoints[].kv_events name that port and topic`,
			Stale:  "see that the engine's event port (endpoints[].kv_events.endpoint) can be reached from here, and kv_events in /status; if it can, restart the engine",
			Empty:  "see kv_events in /status: blocks that were all cleared or removed; start the engine with prefix caching",
			Gone:   "the engine tells of blocks stored but not of those removed, or its cache is smaller: set endpoints[].kv_events.capacity_tokens to what each tier holds",
		},
	}
}

func (s *service) lmcacheSource() fidelity.Source {
	return fidelity.Source{
		Name: sourceLMCache, Index: s.source, Settle: lmcacheSettle, AfterEnd: true, Keyed: true,
		Wanted: func(e scoring.Endpoint) bool { return s.lmcacheNamed(e) || s.lmcacheLeftOver() },
		Heard:  s.source.Heard, Held: s.source.Held, Grain: s.source.Grain,
		Fixes: fidelity.Fixes{
			Silent: "start the engine with LMCache's controller reports on (enable_controller: true, controller_pull_url and controller_reply_url at firsttoken's lmcache.controller addresses), and name its instance in endpoints[].lmcache",
			Stale:  "restart the engine: an LMCache worker that lost its controller does not report again without a heartbeat (lmcache_worker_heartbeat_time)",
			Empty:  "see that LMCache stores at all: local_cpu: true with max_local_cpu_size above 0, and the connector with kv_role kv_both",
			Keys: "make lmcache.keys (or the endpoint's lmcache.groups) what the engine runs with: chunk_size, algorithm (LMCache's pre_caching_hash_algorithm), " +
				"lmcache_version, vllm_version, python_version, and pythonhashseed, with PYTHONHASHSEED=0 in every engine's environment: without it a NONE_HASH is random, which only hashing: auto with algorithm builtin works out, anew after each restart",
			Gone: "LMCache tells of chunks that the engine does not load: see the engine's log for LMCache errors, and that it has the connector with kv_role kv_both",
		},
	}
}

func (s *service) coordinatorSource() fidelity.Source {
	d := s.mp.directory
	return fidelity.Source{
		Name: sourceCoordinator, Index: d, Settle: lmcacheSettle, AfterEnd: true, Keyed: true,
		Wanted: func(e scoring.Endpoint) bool { return e.Cache.Server != "" },
		Heard:  d.Heard, Held: d.Held, Grain: d.Grain,
		Fixes: fidelity.Fixes{
			Silent: "start lmcache server with --coordinator-url at lmcache.coordinator.listen and --coordinator-event-reporting, and name its --instance-id in endpoints[].lmcache.server",
			Stale:  "see that the node's lmcache server runs and reaches lmcache.coordinator.listen; it registers and reports again by itself",
			Empty:  "start lmcache server with --coordinator-event-reporting, and the engine with the LMCache connector for multiprocess mode",
			Keys: "set lmcache.coordinator.chunk_size to lmcache server's --chunk-size, leave its --hash-algorithm at blake3, " +
				"and give lmcache.coordinator.models the engine's --model and world size",
			Gone: "LMCache tells of chunks that the engine does not load: see the log of the engine and of lmcache server",
		},
	}
}

// lmcacheNamed reports whether the operator counts on LMCache at the endpoint.
func (s *service) lmcacheNamed(e scoring.Endpoint) bool {
	return e.Cache.Instance != "" || e.Cache.WorkerPort != 0
}

// lmcacheLeftOver reports whether an instance registered that is nobody's.
func (s *service) lmcacheLeftOver() bool {
	return slices.ContainsFunc(s.source.Mapping().Unmapped, func(u lmcache.Unmapped) bool { return u.Instance != "" })
}

// findUnmapped says why an endpoint has no LMCache instance, where it should.
func (s *service) findUnmapped(id scoring.EndpointID) []fidelity.Finding {
	if s.source == nil {
		return nil
	}
	endpoints := s.picker.Endpoints()
	i := slices.IndexFunc(endpoints, func(e scoring.Endpoint) bool { return e.ID == id })
	if i < 0 || !s.lmcacheNamed(endpoints[i]) && !s.lmcacheLeftOver() {
		return nil
	}
	var found []fidelity.Finding
	for _, u := range s.source.Mapping().Unmapped {
		if u.Endpoint == endpoints[i].Name {
			found = append(found, fidelity.Finding{
				Source: sourceLMCache, Fault: u.Reason,
				Fix: "name the endpoint's LMCache instance or its worker_port in endpoints[].lmcache; lmcache in /status lists the instances that registered",
			})
		}
	}
	return found
}

// findHashing says what was found out about the endpoint's chunk-key settings.
func (s *service) findHashing(id scoring.EndpointID) []fidelity.Finding {
	if s.hashing == nil {
		return nil
	}
	var found []fidelity.Finding
	for _, row := range s.hashing.Status() {
		if row.ID == id && row.Fault != "" {
			found = append(found, fidelity.Finding{Source: sourceLMCache, Fault: row.Fault, Fix: row.Fix})
		}
	}
	return found
}

// findStoreOnly names the tiers of which an engine never tells what leaves them.
// It is about the endpoint: what the source shows is right but for its age.
func (s *service) findStoreOnly(id scoring.EndpointID) []fidelity.Finding {
	if s.events == nil {
		return nil
	}
	endpoints := s.picker.Endpoints()
	i := slices.IndexFunc(endpoints, func(e scoring.Endpoint) bool { return e.ID == id })
	if i < 0 {
		return nil
	}
	var media []string
	for _, row := range s.events.Status() {
		if row.Endpoint == endpoints[i].Name {
			media = append(media, row.StoreOnly...)
		}
	}
	if len(media) == 0 {
		return nil
	}
	slices.Sort(media)
	return []fidelity.Finding{{
		Fault: "its KV events tell what it stores and never what it removes: " + strings.Join(slices.Compact(media), ", "),
		Fix:   "set endpoints[].kv_events.capacity_tokens to what these tiers hold: past it the oldest blocks are taken to be gone",
	}}
}

// probe looks for the echo of what was computed until ctx ends.
func (s *service) probe(ctx context.Context) error {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.checker.Probe(ctx)
		}
	}
}
