package remote

import (
	"context"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/scoring"
)

// Answers are what each kind of registry at url answers of p, with the
// instances i and j at the first two endpoints.
func Answers(ctx context.Context, url string, p *scoring.Prompt, endpoints []scoring.Endpoint) []map[scoring.EndpointID][]scoring.Match {
	mapping := &lmcache.Mapping{Instances: map[scoring.EndpointID]string{endpoints[0].ID: "i", endpoints[1].ID: "j"}}
	var all []map[scoring.EndpointID][]scoring.Match
	for _, r := range []registry{
		&controllerRegistry{newCaller(url, DefaultConfig())},
		&coordinatorRegistry{newCaller(url, DefaultConfig()), coordinator.Fleet{ChunkSize: 4}},
	} {
		if a, err := r.lookup(ctx, p, endpoints, mapping); err == nil {
			all = append(all, a)
		}
		_, _ = r.members(ctx)
	}
	return all
}
