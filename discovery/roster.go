package discovery

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// roster holds what is known of each endpoint and says what list follows from
// it. It has no clock, socket or lock: its owner serialises the calls.
type roster struct {
	failures int // that take an endpoint out; set once
	entries  []Entry
	targets  []target // by entry; set once
	lastID   scoring.EndpointID
	// members are in the order of entries, then of addresses. Bounded by the
	// entries and by maxAddresses for each.
	members []*member
}

// maxAddresses bounds the endpoints made of one host name. The largest pools
// behind one name are a few hundred engines; more is a fault of the DNS.
const maxAddresses = 1024

// member is one life of one endpoint.
type member struct {
	id      scoring.EndpointID // set once
	entry   int                // index of roster.entries; set once
	address netip.AddrPort     // set once

	serves served // as the engine said; without names: not known
	// up is true after the first good probe, failed counts the bad ones since
	// the last good one, down says that it gets no requests.
	up     bool
	failed int
	down   bool
	// probed and fault tell of the last probe; zero and nil before it.
	probed time.Time
	fault  error
}

// newRoster takes entries that ValidateEntries found good.
func newRoster(failures int, entries []Entry) (*roster, error) {
	r := &roster{failures: failures, entries: entries}
	for _, e := range entries {
		t, err := parseAddress(e.Address)
		if err != nil {
			return nil, err
		}
		r.targets = append(r.targets, t)
	}
	return r, nil
}

// resolved tells the addresses of an entry, all of them. Members whose address
// is gone are removed, new addresses become new members with new ids. An
// address that another entry holds is skipped: one engine is one endpoint.
func (r *roster) resolved(entry int, ips []netip.Addr) (added, removed []*member) {
	wanted := make(map[netip.AddrPort]bool, len(ips))
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		wanted[netip.AddrPortFrom(ip.Unmap(), r.targets[entry].port)] = true
	}
	kept := make([]*member, 0, len(r.members)+len(wanted))
	for _, m := range r.members {
		switch {
		case m.entry != entry:
			kept = append(kept, m)
		case wanted[m.address]:
			kept = append(kept, m)
		default:
			removed = append(removed, m)
		}
		if m.entry != entry || wanted[m.address] {
			delete(wanted, m.address)
		}
	}
	for address := range wanted {
		added = append(added, &member{entry: entry, address: address})
	}
	slices.SortFunc(added, func(a, b *member) int { return a.address.Compare(b.address) })
	for _, m := range added {
		r.lastID++
		m.id = r.lastID
	}
	r.members = append(kept, added...)
	slices.SortFunc(r.members, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.entry, b.entry), a.address.Compare(b.address))
	})
	return added, removed
}

// probed tells how a probe ended; fault nil: well. suspect says that a request
// has just failed to connect there: together with it, one bad probe is enough.
// One bad probe is also enough for an endpoint that never had a good one, so a
// list with a dead address in it costs at most the requests of one probe's
// time. An id that is gone is ignored. It reports whether the list changed.
func (r *roster) probed(id scoring.EndpointID, now time.Time, fault error, suspect bool) (changed bool) {
	m := r.member(id)
	if m == nil {
		return false
	}
	was := m.down
	m.probed, m.fault = now, fault
	if fault == nil {
		m.up, m.failed, m.down = true, 0, false
	} else {
		m.failed++
		m.down = m.down || !m.up || suspect || m.failed >= r.failures
	}
	return m.down != was
}

// learned tells what the engine says it serves, never without names. An id
// that is gone is ignored. It reports whether that was news.
func (r *roster) learned(id scoring.EndpointID, s served) (changed bool) {
	m := r.member(id)
	if m == nil || slices.Equal(m.serves.names, s.names) && slices.Equal(m.serves.adapters, s.adapters) {
		return false
	}
	m.serves = s
	return true
}

func (r *roster) member(id scoring.EndpointID) *member {
	for _, m := range r.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

// endpoints is the list that follows, in the order of the entries.
func (r *roster) endpoints() []scoring.Endpoint {
	siblings := make(map[int]int, len(r.entries))
	for _, m := range r.members {
		siblings[m.entry]++
	}
	list := make([]scoring.Endpoint, 0, len(r.members))
	for _, m := range r.members {
		list = append(list, r.endpoint(m, siblings[m.entry] == 1))
	}
	return list
}

// endpoint is the public value of m. alone says that its entry has no other
// address: only then do name, cluster and LMCache instance mean this engine.
func (r *roster) endpoint(m *member, alone bool) scoring.Endpoint {
	e := r.entries[m.entry]
	name := cmp.Or(e.Name, r.targets[m.entry].hostPort())
	endpoint := scoring.Endpoint{
		ID:      m.id,
		Name:    name,
		Kind:    e.Kind,
		Address: m.address.String(),
		Cluster: cmp.Or(e.Cluster, name),
		Models:  m.serves.names,
		// The engine knows which names are adapters, whoever says what it serves.
		Adapters: m.serves.adapters,
		Ready:    !m.down && !e.Drain,
		Cache: scoring.CacheIdentity{
			Instance: e.LMCache.Instance, Server: e.LMCache.Server, WorkerPort: e.LMCache.WorkerPort, Group: e.LMCache.Group,
			Events: e.KVEvents.feed(alone),
		},
	}
	if len(e.Models) > 0 {
		endpoint.Models = e.Models
	}
	if !alone {
		endpoint.Name += "@" + endpoint.Address
		endpoint.Cluster, endpoint.Cache.Instance = "", ""
	}
	return endpoint
}
