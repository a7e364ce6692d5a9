package lmcache

import (
	"slices"

	"github.com/firsttoken/firsttoken/scoring"
)

// Held is the number of chunks that the endpoint's instance holds, one in two
// places counted twice; of several ranks, the one with the fewest. Safe for
// concurrent use; the cost is linear in the workers.
func (s *Source) Held(id scoring.EndpointID) int {
	instance, fewest := s.current().Instances[id], -1
	if instance == "" {
		return 0
	}
	for _, w := range s.index.Stats().Workers {
		if w.Instance != instance {
			continue
		}
		n := 0
		for _, keys := range w.Keys {
			n += keys
		}
		if fewest < 0 || n < fewest {
			fewest = n
		}
	}
	return max(0, fewest)
}

// Grain is the number of tokens of one chunk of the endpoint, as found out or
// configured; 0 where it is not known. Safe for concurrent use.
func (s *Source) Grain(id scoring.EndpointID) scoring.Tokens {
	v := s.current()
	i := slices.IndexFunc(v.endpoints, func(e scoring.Endpoint) bool { return e.ID == id })
	if i < 0 {
		return 0
	}
	h := (*s.adopted.Load())[v.Instances[id]]
	if h == nil {
		h = s.keys.of(v.endpoints[i], "")
	}
	if h == nil {
		return 0
	}
	return scoring.Tokens(h.ChunkSize())
}
