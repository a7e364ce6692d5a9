package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// NewController makes a Source that asks cfg.Controller.
//
// The controller names, for each chunk, the first instance alone that has it,
// until a chunk that nobody has: an instance that it leaves out may hold as
// much, so of that nothing is known. What it tells of an instance is the end of
// the last chunk named for it, which another may have in between. The price:
// several engines that hold a prompt look like one, and all its requests are
// drawn there until its queue is longer than computing anew elsewhere. The
// controller of this program answers for each engine.
func NewController(cfg Config, log *slog.Logger, metrics *Metrics) *Source {
	return newSource(Controller, &controllerRegistry{newCaller(cfg.Controller, cfg)}, cfg, log, metrics)
}

type controllerRegistry struct{ caller }

// layout is the answer of POST /lookup: by instance, its location and the end of
// what it has.
type layout struct {
	Info map[string]place `json:"layout_info"`
}

type place struct {
	location string
	end      int
}

// UnmarshalJSON reads ["LocalCPUBackend", 512].
func (p *place) UnmarshalJSON(data []byte) error {
	var pair []json.RawMessage
	if err := json.Unmarshal(data, &pair); err != nil {
		return err
	}
	if len(pair) != 2 {
		return fmt.Errorf("layout_info has a value of %d items, want location and tokens", len(pair))
	}
	if err := json.Unmarshal(pair[0], &p.location); err != nil {
		return err
	}
	return json.Unmarshal(pair[1], &p.end)
}

func (c *controllerRegistry) lookup(ctx context.Context, p *scoring.Prompt, endpoints []scoring.Endpoint, mapping *lmcache.Mapping) (answer, error) {
	a := answer{}
	if len(p.Sequences) > maxSequences {
		return a, nil
	}
	// A row needs an answer for every sequence.
	silent := make(map[scoring.EndpointID]bool)
	for s := range p.Sequences {
		q := &p.Sequences[s]
		tokens := q.TokenIDs[:max(0, min(len(q.TokenIDs), int(q.Usable)))]
		var found layout
		if len(tokens) > 0 {
			body := append(appendTokens([]byte(`{"tokens":`), tokens), '}')
			if err := c.call(ctx, http.MethodPost, "/lookup", body, &found); err != nil {
				return nil, err
			}
		}
		for i := range endpoints {
			id := endpoints[i].ID
			instance := mapping.Instances[id]
			if instance == "" {
				continue
			}
			if a[id] == nil {
				a[id] = make([]scoring.Match, len(p.Sequences))
			}
			held, ok := found.Info[instance]
			switch {
			case ok && held.end > 0:
				end := min(scoring.Tokens(held.end), scoring.Tokens(len(tokens)))
				a[id][s] = scoring.Match{Cached: end, Spans: []scoring.Span{{End: end, Location: held.location}}}
			case len(found.Info) > 0:
				silent[id] = true
			}
		}
	}
	for id := range silent {
		delete(a, id)
	}
	return a, nil
}

// workers are those that registered with a controller.
type workers []lmcache.Instance

func (c *controllerRegistry) members(ctx context.Context) (members, error) {
	var told struct {
		Workers []struct {
			Instance string  `json:"instance_id"`
			Worker   int     `json:"worker_id"`
			IP       string  `json:"ip"`
			Port     int     `json:"port"`
			At       float64 `json:"registration_time"`
		} `json:"worker_infos"`
	}
	if err := c.call(ctx, http.MethodPost, "/query_worker_info", []byte(`{"instance_id":"all","worker_ids":null}`), &told); err != nil {
		return nil, err
	}
	list := workers{}
	for _, w := range told.Workers {
		if w.Instance == "" {
			return nil, errNoInstance
		}
		i := slices.IndexFunc(list, func(in lmcache.Instance) bool { return in.ID == w.Instance })
		if i < 0 {
			i = len(list)
			list = append(list, lmcache.Instance{ID: w.Instance})
		}
		list[i].Workers = append(list[i].Workers, lmcache.WorkerAddress{
			Worker: w.Worker, IP: w.IP, Port: w.Port, RegisteredSeq: uint64(max(0, w.At) * 1e6),
		})
	}
	return list, nil
}

func (w workers) mapping(endpoints []scoring.Endpoint) *lmcache.Mapping {
	return lmcache.MapInstances(endpoints, w)
}

func (w workers) reports(instance string) bool {
	return slices.ContainsFunc(w, func(in lmcache.Instance) bool { return in.ID == instance })
}
