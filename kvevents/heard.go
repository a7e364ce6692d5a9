package kvevents

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Heard is when a rank of the endpoint last told anything; zero where none
// ever did. An engine without work is silent. Safe for concurrent use.
func (s *Subscriber) Heard(id scoring.EndpointID) time.Time {
	var last time.Time
	for _, v := range s.index.of(id) {
		v.mu.RLock()
		if v.account.lastBatch.After(last) {
			last = v.account.lastBatch
		}
		v.mu.RUnlock()
	}
	return last
}

// Held is the number of blocks that the endpoint's ranks have told of and not
// taken back. Safe for concurrent use.
func (s *Subscriber) Held(id scoring.EndpointID) int {
	n := 0
	for _, v := range s.index.of(id) {
		v.mu.RLock()
		for _, shelf := range v.shelves {
			n += len(shelf.blocks)
		}
		v.mu.RUnlock()
	}
	return n
}

// Grain is the number of tokens of the endpoint's largest blocks, those that a
// prompt must fill to be told of; 0 before the first. Safe for concurrent use.
func (s *Subscriber) Grain(id scoring.EndpointID) scoring.Tokens {
	most := 0
	for _, v := range s.index.of(id) {
		v.mu.RLock()
		for _, shelf := range v.shelves {
			for _, l := range shelf.layouts {
				most = max(most, l.stride)
			}
		}
		v.mu.RUnlock()
	}
	return scoring.Tokens(most)
}

// of are the views of the endpoint's ranks.
func (ix *index) of(id scoring.EndpointID) []*view {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.endpoints[id]
}
