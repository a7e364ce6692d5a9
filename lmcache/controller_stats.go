package lmcache

import (
	"cmp"
	"slices"
	"time"
)

// roster is what Instances returns for a generation.
type roster struct {
	generation uint64
	instances  []Instance
}

// Instances implements Roster. Instances are in the order in which they
// registered; those that only ever reported come last, without workers.
func (c *Controller) Instances() (generation uint64, instances []Instance) {
	// Every decision comes by here: no lock unless something has changed.
	if r := c.roster.Load(); r != nil && r.generation == c.generation.Load() {
		return r.generation, r.instances
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &roster{c.registry.generation, c.registry.instances()}
	c.roster.Store(r)
	return r.generation, r.instances
}

func (g *registry) instances() []Instance {
	workers := make([]*worker, 0, len(g.workers))
	for _, w := range g.workers {
		workers = append(workers, w)
	}
	byOrder(workers)
	list := make([]Instance, 0, len(workers))
	at := make(map[string]int, len(workers))
	for _, w := range workers {
		i, ok := at[w.Worker.Instance]
		if !ok {
			i = len(list)
			at[w.Worker.Instance] = i
			list = append(list, Instance{ID: w.Worker.Instance})
		}
		if !w.provisional {
			list[i].Workers = append(list[i].Workers, WorkerAddress{w.Worker.Worker, w.IP, w.Port, w.order})
		}
	}
	for _, in := range list {
		slices.SortFunc(in.Workers, func(a, b WorkerAddress) int { return cmp.Compare(a.Worker, b.Worker) })
	}
	return list
}

// byOrder sorts by registration; those that never registered come last, by
// name.
func byOrder(workers []*worker) {
	slices.SortFunc(workers, func(a, b *worker) int {
		return cmp.Or(
			cmp.Compare(a.order-1, b.order-1), // 0, never registered, wraps around to the end
			cmp.Compare(a.Worker.Instance, b.Worker.Instance),
			cmp.Compare(a.Worker.Worker, b.Worker.Worker),
		)
	})
}

// WorkerStatus is one LMCache worker at one moment, for people.
type WorkerStatus struct {
	Instance string `json:"instance"`
	Worker   int    `json:"worker"`
	IP       string `json:"ip,omitempty"`
	Port     int    `json:"port,omitempty"`
	// Registered is false for one that reports without having registered.
	Registered bool `json:"registered"`
	// Silent: registered, then neither a report nor a heartbeat.
	Silent bool `json:"silent,omitempty"`
	// LastMessageSeconds and LastHeartbeatSeconds are how long ago; the latter
	// is absent where there was no heartbeat.
	LastMessageSeconds   float64  `json:"last_message_seconds"`
	LastHeartbeatSeconds *float64 `json:"last_heartbeat_seconds,omitempty"`
	// Keys is the number of chunks it holds, by location.
	Keys map[string]int `json:"keys"`
	// Sync is none, wanted, running, completed or failed.
	Sync string `json:"sync"`
	// Gaps is how often its reports were not gapless.
	Gaps uint64 `json:"gaps"`
}

// Status describes every worker, in order of instance and worker.
func (c *Controller) Status() []WorkerStatus {
	now := time.Now()
	keys := make(map[WorkerID]map[string]int)
	for _, w := range c.index.Stats().Workers {
		keys[w.WorkerID] = w.Keys
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]WorkerStatus, 0, len(c.registry.workers))
	for id, w := range c.registry.workers {
		s := WorkerStatus{
			Instance: id.Instance, Worker: id.Worker, IP: w.IP, Port: w.Port,
			Registered: !w.provisional, Silent: w.silent,
			LastMessageSeconds: now.Sub(w.message).Seconds(),
			Keys:               keys[id], Sync: w.syncState(), Gaps: w.gaps,
		}
		if !w.heartbeat.IsZero() {
			ago := now.Sub(w.heartbeat).Seconds()
			s.LastHeartbeatSeconds = &ago
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b WorkerStatus) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Worker, b.Worker))
	})
	return list
}
