package kvevents

import (
	"sync"
	"sync/atomic"

	"github.com/firsttoken/firsttoken/scoring"
)

// index has a view for each rank of each endpoint that publishes events. Safe
// for concurrent use; a view has one writer.
//
// Locks: mu, then none; views' own locks are taken without it.
type index struct {
	most  int64 // blocks; set once
	total atomic.Int64

	mu sync.RWMutex // guards endpoints, not the views
	// endpoints has exactly the endpoints that publish and are present.
	endpoints map[scoring.EndpointID][]*view
}

func newIndex(cfg Config) *index {
	return &index{most: int64(cfg.MaxBlocks), endpoints: make(map[scoring.EndpointID][]*view)}
}

// open makes views for an endpoint, in place of those it had.
func (ix *index) open(id scoring.EndpointID, feed scoring.EventFeed) []*view {
	ix.close(id)
	views := make([]*view, max(1, feed.Ranks))
	for i := range views {
		views[i] = &view{rank: i, capacity: feed.Capacity, total: &ix.total, most: ix.most}
	}
	p := newProgress(id, views)
	for _, v := range views {
		v.progress = p
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.endpoints[id] = views
	return views
}

// close forgets an endpoint. Its views' writer must be done with them.
func (ix *index) close(id scoring.EndpointID) {
	ix.mu.Lock()
	views := ix.endpoints[id]
	delete(ix.endpoints, id)
	ix.mu.Unlock()
	for _, v := range views {
		v.mu.Lock()
		v.dropLocked(func(*shelf) bool { return true })
		v.mu.Unlock()
	}
}

// match implements scoring.CacheIndex. Of an engine's ranks the one that holds
// most counts: which rank the engine will take cannot be known, and a prefix
// that is asked for often is soon in all of them.
func (ix *index) match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	views := make([][]*view, len(endpoints))
	ix.mu.RLock()
	for i := range endpoints {
		views[i] = ix.endpoints[endpoints[i].ID]
	}
	ix.mu.RUnlock()
	for q := range p.Sequences {
		var c *chains
		for i := range endpoints {
			// Endpoints differ in it only where one calls an adapter what another
			// does not.
			if root := p.Root(&endpoints[i]); c == nil || c.root != root {
				c = &chains{ids: matchable(&p.Sequences[q]), root: root}
			}
			for _, v := range views[i] {
				m, known := v.match(c)
				if !known {
					continue
				}
				if rows[i] == nil {
					rows[i] = make([]scoring.Match, len(p.Sequences))
				}
				if m.Cached > rows[i][q].Cached {
					rows[i][q] = m
				}
			}
		}
	}
	return rows
}

// setRoom tells what all ranks of an endpoint hold on the GPU together.
func (ix *index) setRoom(id scoring.EndpointID, gpu scoring.Tokens) {
	for _, v := range ix.of(id) {
		v.mu.Lock()
		v.room = gpu
		v.mu.Unlock()
	}
}

// progress is that of an endpoint; nil where it publishes nothing.
func (ix *index) progress(id scoring.EndpointID) *progress {
	if views := ix.of(id); len(views) > 0 {
		return views[0].progress
	}
	return nil
}

// matchable are the token ids that an engine may serve from its cache: never
// the last one of the prompt, which it computes to have something to sample
// from, so that a prompt of exactly n blocks finds n-1 of them.
func matchable(s *scoring.Sequence) []uint32 {
	return s.TokenIDs[:max(0, min(len(s.TokenIDs), int(s.Usable), int(s.Length)-1))]
}
