package coordinator

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// instanceLocked finds or adds a server; nil: there are too many. Caller must
// hold mu.
func (d *Directory) instanceLocked(id string) *instance {
	in := d.instances[id]
	if in == nil && len(d.instances) < maxInstances {
		in = &instance{id: id, l1: make(map[*record]struct{})}
		d.instances[id] = in
	}
	return in
}

// dismissLocked forgets a server of which nothing is known any more. Caller
// must hold mu.
func (d *Directory) dismissLocked(in *instance) {
	if in.server == nil && in.stream == nil && in.held == 0 && d.instances[in.id] == in {
		delete(d.instances, in.id)
	}
}

// register takes a server, anew or again; ok is false where there are too many.
func (d *Directory) register(s Server, now time.Time) (again, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.instanceLocked(s.Instance)
	if in == nil {
		d.counts.Refused++
		return false, false
	}
	again = in.server != nil
	in.server, in.beat, in.heard = &s, now, now
	if !again {
		d.log.Info("LMCache server registered", "instance", s.Instance, "ip", s.IP)
	}
	d.remapLocked()
	return again, true
}

// heartbeat reports whether the server is registered.
func (d *Directory) heartbeat(id string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.instances[id]
	if in == nil || in.server == nil {
		return false
	}
	in.beat, in.heard = now, now
	return true
}

// drop takes a server away with all it held in memory; what it stored stays,
// for others may mount it. Its reports may begin at any number after that.
func (d *Directory) drop(id string) {
	d.writing.Lock()
	defer d.writing.Unlock()
	d.mu.Lock()
	fenced := d.dropLocked(id)
	d.mu.Unlock()
	d.sweepOut(fenced)
}

// dropLocked returns what sweepOut must clean. Caller must hold writing and mu.
func (d *Directory) dropLocked(id string) map[*record]struct{} {
	in := d.instances[id]
	if in == nil {
		return nil
	}
	in.server, in.stream, in.heard = nil, nil, time.Time{}
	fenced := in.fence()
	d.dismissLocked(in)
	d.remapLocked()
	return fenced
}

// strayPatience is how long a server that is not registered and belongs to no
// endpoint may be silent before it is forgotten: one that still reported after it
// had left, under an id that never comes back.
const strayPatience = time.Hour

// expire drops the servers whose heartbeats have ended, and strays.
func (d *Directory) expire(now time.Time) {
	d.writing.Lock()
	defer d.writing.Unlock()
	d.mu.Lock()
	var fenced []map[*record]struct{}
	owned := make(map[string]bool)
	for _, id := range d.mapping.Load().Instances {
		owned[id] = true
	}
	for id, in := range d.instances {
		switch {
		case in.server == nil:
			if in.stream != nil && !owned[id] && now.Sub(in.heard) > max(strayPatience, d.cfg.InstanceTimeout) {
				fenced = append(fenced, d.dropLocked(id))
			}
		case now.Sub(in.beat) > d.cfg.InstanceTimeout:
			d.counts.TimedOut++
			d.log.Warn("LMCache server sends no more heartbeats; what it held in memory is forgotten", "instance", id, "ip", in.server.IP)
			fenced = append(fenced, d.dropLocked(id))
		}
	}
	d.mu.Unlock()
	for _, records := range fenced {
		d.sweepOut(records)
	}
}

// Run drops servers that end without a word, until ctx ends.
func (d *Directory) Run(ctx context.Context) {
	// A third of the time-out, as the real coordinator's 10s of 30s.
	ticker := time.NewTicker(max(d.cfg.InstanceTimeout/3, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			d.expire(now)
		}
	}
}

// Servers are those that are registered, in order of registration.
func (d *Directory) Servers() []Server {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.serversLocked()
}

func (d *Directory) serversLocked() []Server {
	servers := []Server{}
	for _, in := range d.instances {
		if in.server != nil {
			servers = append(servers, *in.server)
		}
	}
	slices.SortFunc(servers, func(a, b Server) int {
		return cmp.Or(cmp.Compare(a.Registered, b.Registered), cmp.Compare(a.Instance, b.Instance))
	})
	return servers
}

// SetEndpoints tells which endpoints there are, ready or not. The list must not
// be written to afterwards.
func (d *Directory) SetEndpoints(endpoints []scoring.Endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endpoints = endpoints
	clear(d.checks.spaces)
	d.remapLocked()
}

func (d *Directory) remapLocked() {
	d.mapping.Store(MapServers(d.endpoints, d.serversLocked()))
}
