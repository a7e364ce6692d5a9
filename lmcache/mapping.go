package lmcache

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/firsttoken/firsttoken/scoring"
)

// Instance is one LMCache instance as its workers registered it.
type Instance struct {
	ID      string
	Workers []WorkerAddress
}

// WorkerAddress is where one rank registered from. The port is the LMCache
// worker's own, never the engine's HTTP port; 0: it has none.
type WorkerAddress struct {
	Worker int
	IP     string
	Port   int
	// RegisteredSeq counts registrations: of two, the higher came later.
	RegisteredSeq uint64
}

// Mapping says which LMCache instance each endpoint's engine runs. It is
// immutable.
type Mapping struct {
	// Instances is the instance of each endpoint that has one.
	Instances map[scoring.EndpointID]string
	// Unmapped are the endpoints and instances left over, in the order given.
	Unmapped []Unmapped
}

// Unmapped is an endpoint without instance or an instance without endpoint.
type Unmapped struct {
	Endpoint string // name of the endpoint, or empty
	Instance string // id of the instance, or empty
	// Reason is for people: what keeps them apart and what to write.
	Reason string
}

// MapInstances tells which instance belongs to which endpoint:
//
//   - the one that the operator named, else
//   - where the operator gave a worker port, the one that registered with it
//     from the endpoint's IP, else
//   - the one that registered from the endpoint's IP, if no other endpoint and
//     no other instance has that IP.
//
// An instance whose address another one registered later is gone: its engine
// was started again under another id.
func MapInstances(endpoints []scoring.Endpoint, instances []Instance) *Mapping {
	r := resolve(endpoints, instances)
	m := &Mapping{Instances: make(map[scoring.EndpointID]string, len(endpoints))}
	// Who is named goes first: an instance so claimed is nobody else's.
	claimed := make(map[string]bool)
	for _, e := range endpoints {
		if id, _ := r.named(e); id != "" {
			m.Instances[e.ID] = id
			claimed[id] = true
		}
	}
	for _, e := range endpoints {
		if m.Instances[e.ID] != "" {
			continue
		}
		_, reason := r.named(e)
		if reason == "" {
			var id string
			if id, reason = r.alone(e); id != "" && !claimed[id] {
				m.Instances[e.ID] = id
				claimed[id] = true
				continue
			} else if id != "" {
				reason = fmt.Sprintf("the LMCache instance at its ip, %s, is named for another endpoint", id)
			}
		}
		m.Unmapped = append(m.Unmapped, Unmapped{Endpoint: e.Name, Reason: reason})
	}
	for _, in := range instances {
		if !claimed[in.ID] {
			m.Unmapped = append(m.Unmapped, Unmapped{Instance: in.ID, Reason: r.unclaimed(in)})
		}
	}
	return m
}

// resolution looks up who is where.
type resolution struct {
	superseded map[string]string           // by instance: who has its address now
	instances  map[netip.Addr][]string     // registered from that IP
	workers    map[netip.AddrPort]string   // registered with that worker port
	endpoints  map[netip.Addr]int          // how many have that IP
	ports      map[netip.AddrPort][]string // endpoints by IP and worker port
}

func resolve(endpoints []scoring.Endpoint, instances []Instance) *resolution {
	r := &resolution{
		superseded: make(map[string]string),
		instances:  make(map[netip.Addr][]string),
		workers:    make(map[netip.AddrPort]string),
		endpoints:  make(map[netip.Addr]int),
		ports:      make(map[netip.AddrPort][]string),
	}
	last := make(map[netip.AddrPort]uint64)
	for _, in := range instances {
		for _, w := range in.Workers {
			at := w.addrPort()
			if at.Port() == 0 {
				continue // Every engine without a worker port says 0.
			}
			if _, ok := r.workers[at]; !ok || w.RegisteredSeq > last[at] {
				r.workers[at], last[at] = in.ID, w.RegisteredSeq
			}
		}
	}
	for _, in := range instances {
		for _, w := range in.Workers {
			if owner, ok := r.workers[w.addrPort()]; ok && owner != in.ID {
				r.superseded[in.ID] = owner
			}
		}
	}
	for _, in := range instances {
		if r.superseded[in.ID] != "" {
			continue
		}
		for _, w := range in.Workers {
			ip := w.addrPort().Addr()
			if ip.IsValid() && !slices.Contains(r.instances[ip], in.ID) {
				r.instances[ip] = append(r.instances[ip], in.ID)
			}
		}
	}
	for _, e := range endpoints {
		ip := endpointIP(e)
		r.endpoints[ip]++
		if at := workerPort(e); e.Cache.Instance == "" && at.Port() != 0 {
			r.ports[at] = append(r.ports[at], e.Name)
		}
	}
	return r
}

// named is the instance that the operator's words point at; a reason where they
// point at none, neither where there are no words.
func (r *resolution) named(e scoring.Endpoint) (id, reason string) {
	if id := e.Cache.Instance; id != "" {
		if newer := r.superseded[id]; newer != "" {
			return "", fmt.Sprintf("its LMCache instance %s was replaced by %s at the same address; name that one", id, newer)
		}
		return id, ""
	}
	at := workerPort(e)
	if at.Port() == 0 {
		return "", ""
	}
	if names := r.ports[at]; len(names) > 1 {
		return "", fmt.Sprintf("endpoints %q have the LMCache worker port %s in common; give each its own worker_port or its instance", names, at)
	}
	if id := r.workers[at]; id != "" && r.superseded[id] == "" {
		return id, ""
	}
	return "", fmt.Sprintf("no LMCache worker has registered as %s, its worker_port", at)
}

// alone is the one instance at the endpoint's IP, or the reason why there is
// none to be told.
func (r *resolution) alone(e scoring.Endpoint) (id, reason string) {
	ip := endpointIP(e)
	switch ids, n := r.instances[ip], r.endpoints[ip]; {
	case len(ids) == 0:
		return "", fmt.Sprintf("no LMCache instance has registered from its ip %s; name its instance if that registers from another", ip)
	case n > 1:
		return "", fmt.Sprintf("%d endpoints have its ip %s; give each its LMCache instance or worker_port", n, ip)
	case len(ids) > 1:
		return "", fmt.Sprintf("LMCache instances %q have registered from its ip %s; give it its instance or worker_port", ids, ip)
	default:
		return ids[0], ""
	}
}

// unclaimed says why no endpoint has the instance.
func (r *resolution) unclaimed(in Instance) string {
	if newer := r.superseded[in.ID]; newer != "" {
		return fmt.Sprintf("replaced by %s, which registered later at the same address", newer)
	}
	var ips []netip.Addr
	for _, w := range in.Workers {
		if ip := w.addrPort().Addr(); ip.IsValid() && !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	slices.SortFunc(ips, func(a, b netip.Addr) int { return cmp.Compare(r.endpoints[b], r.endpoints[a]) })
	switch {
	case len(in.Workers) == 0:
		return "it reports, but never registered, and no endpoint names it"
	case len(ips) == 0:
		return fmt.Sprintf("it registered from %q, which is no ip; name the instance for its endpoint", in.Workers[0].IP)
	case r.endpoints[ips[0]] == 0:
		return fmt.Sprintf("no endpoint has its ip %v; name the instance for its endpoint", ips)
	case r.endpoints[ips[0]] > 1:
		return fmt.Sprintf("%d endpoints have its ip %s; name the instance or its worker_port for its endpoint", r.endpoints[ips[0]], ips[0])
	default:
		return fmt.Sprintf("the endpoint with its ip %s could have another instance too; name the instance or its worker_port for its endpoint", ips[0])
	}
}

// addrPort is the worker's address; the zero value where it has no IP, port 0
// where it has none.
func (w WorkerAddress) addrPort() netip.AddrPort {
	ip, err := netip.ParseAddr(w.IP)
	if err != nil || w.Port < 0 || w.Port > 1<<16-1 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), uint16(w.Port))
}

// endpointIP is where Envoy dials the endpoint.
func endpointIP(e scoring.Endpoint) netip.Addr {
	at, err := netip.ParseAddrPort(e.Address)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

// workerPort is where the endpoint's LMCache worker must have registered; port
// 0 where the operator gave none.
func workerPort(e scoring.Endpoint) netip.AddrPort {
	if e.Cache.WorkerPort < 1 || e.Cache.WorkerPort > 1<<16-1 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(endpointIP(e), uint16(e.Cache.WorkerPort))
}
