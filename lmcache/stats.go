package lmcache

import (
	"cmp"
	"slices"
)

// Stats is the Index at one moment, for people and metrics.
type Stats struct {
	// Keys is the number of chunks that somebody holds, Held the number of
	// records: chunks times instances times locations. IndexConfig.MaxKeys
	// bounds Held.
	Keys, Held int
	// Overflowed is how many records were forgotten for want of room, since
	// start. Anything above 0 calls for a larger MaxKeys.
	Overflowed uint64
	// Ignored is how many calls of Register and Admit were not followed because
	// there were too many instances, ranks or locations, since start.
	Ignored uint64
	// Workers are in order of instance and worker.
	Workers []WorkerStats
}

// WorkerStats is one rank.
type WorkerStats struct {
	WorkerID
	// Registered is false for one that reported without having registered.
	Registered bool
	// Keys is the number of chunks it holds, by location.
	Keys map[string]int
}

// Stats reads the Index; the cost is linear in the number of workers.
func (ix *Index) Stats() Stats {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	s := Stats{Keys: ix.store.count, Held: ix.held, Overflowed: ix.overflowed, Ignored: ix.ignored}
	for _, in := range ix.instances {
		for _, r := range in.ranks {
			if r == nil {
				continue
			}
			w := WorkerStats{WorkerID: WorkerID{in.name, r.worker}, Registered: r.registered, Keys: make(map[string]int)}
			for i, n := range r.keys {
				if n > 0 {
					w.Keys[ix.locations[i]] = n
				}
			}
			s.Workers = append(s.Workers, w)
		}
	}
	slices.SortFunc(s.Workers, func(a, b WorkerStats) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Worker, b.Worker))
	})
	return s
}
