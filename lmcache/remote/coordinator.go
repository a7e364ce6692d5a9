package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/scoring"
)

// NewCoordinator makes a Source that asks cfg.Coordinator; fleet says how the
// servers that report to it make their keys.
func NewCoordinator(cfg Config, fleet coordinator.Fleet, log *slog.Logger, metrics *Metrics) *Source {
	return newSource(Coordinator, &coordinatorRegistry{newCaller(cfg.Coordinator, cfg), fleet}, cfg, log, metrics)
}

type coordinatorRegistry struct {
	caller
	fleet coordinator.Fleet
}

// placements is a coordinator.LookupResponse without what is not asked for: each
// chunk's tokens come back.
type placements struct {
	Chunks  int `json:"chunks"`
	Results []struct {
		Key struct {
			ChunkHash string `json:"chunk_hash_hex"`
		} `json:"key"`
		Placements []coordinator.Placement `json:"placements"`
	} `json:"results"`
}

func (a *placements) response() coordinator.LookupResponse {
	r := coordinator.LookupResponse{Results: make([]coordinator.LookupResult, len(a.Results))}
	for i := range a.Results {
		r.Results[i].Key.ChunkHash, r.Results[i].Placements = a.Results[i].Key.ChunkHash, a.Results[i].Placements
	}
	return r
}

func (c *coordinatorRegistry) lookup(ctx context.Context, p *scoring.Prompt, endpoints []scoring.Endpoint, mapping *lmcache.Mapping) (answer, error) {
	if len(p.Sequences) > maxSequences {
		return answer{}, nil
	}
	a := answer{}
	for _, q := range c.fleet.Questions(p, endpoints, mapping.Instances) {
		for _, row := range q.Rows {
			a[endpoints[row].ID] = make([]scoring.Match, len(p.Sequences))
		}
		for s := range p.Sequences {
			tokens := coordinator.Comparable(p, s)
			if tokens = tokens[:len(tokens)-len(tokens)%c.fleet.ChunkSize]; len(tokens) == 0 {
				continue
			}
			var found placements
			if err := c.call(ctx, http.MethodPost, "/directory/lookup", question(q.Space, tokens), &found); err != nil {
				return nil, err
			}
			if want := len(tokens) / c.fleet.ChunkSize; found.Chunks != want {
				return nil, fmt.Errorf("it makes %d chunks of %d tokens, lmcache.coordinator.chunk_size %d; set that to its --chunk-size",
					found.Chunks, len(tokens), want)
			}
			for i, held := range found.response().Held(q.Servers) {
				if held.Chunks > found.Chunks {
					return nil, fmt.Errorf("it tells of %d chunks, of %d that there are", held.Chunks, found.Chunks)
				}
				a[endpoints[q.Rows[i]].ID][s] = c.fleet.Match(held)
			}
		}
	}
	return a, nil
}

// question is the body of a lookup.
func question(s coordinator.Space, tokens []uint32) []byte {
	quoted := func(text string) []byte {
		b, _ := json.Marshal(text) // a string always can be
		return b
	}
	b := make([]byte, 0, 8*len(tokens)+200)
	b = append(b, `{"token_ids":`...)
	b = appendTokens(b, tokens)
	b = append(append(b, `,"model_name":`...), quoted(s.Model)...)
	b = append(append(b, `,"cache_salt":`...), quoted(s.Salt)...)
	b = append(strconv.AppendInt(append(b, `,"world_size":`...), int64(s.WorldSize), 10), '}')
	return b
}

// servers are those that registered with a coordinator, and those that have
// reported to it.
type servers struct {
	list     []coordinator.Server
	reported map[string]int
}

func (c *coordinatorRegistry) members(ctx context.Context) (members, error) {
	var registered struct {
		Instances []coordinator.Server `json:"instances"`
	}
	if err := c.call(ctx, http.MethodGet, "/instances", nil, &registered); err != nil {
		return nil, err
	}
	for _, s := range registered.Instances {
		if s.Instance == "" {
			return nil, errNoInstance
		}
	}
	var stats struct {
		Reported map[string]int `json:"l1_keys_by_instance"`
	}
	if err := c.call(ctx, http.MethodGet, "/directory/stats", nil, &stats); err != nil {
		return nil, err
	}
	return &servers{registered.Instances, stats.Reported}, nil
}

func (s *servers) mapping(endpoints []scoring.Endpoint) *lmcache.Mapping {
	return coordinator.MapServers(endpoints, s.list)
}

// reports: the coordinator lists an instance among its keys from its first
// report on, until it is gone. One that registered and reports nothing runs
// without --coordinator-event-reporting.
func (s *servers) reports(instance string) bool {
	_, ok := s.reported[instance]
	return ok
}
