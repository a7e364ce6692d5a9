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
	// entries are in the order of the configuration.
	entries []*entry
	lastID  scoring.EndpointID
	// members are in the order of entries, then of addresses. Bounded by the
	// entries and by maxAddresses for each.
	members []*member
}

// entry is one line of the configuration for as long as its address is there.
type entry struct {
	Entry
	target   target // set once
	position int    // in the configuration
	// told are the addresses that it was resolved to, also those that another
	// entry holds. Bounded by maxAddresses.
	told []found
	// stop ends the goroutine that resolves its name; nil before it is started.
	stop func()
}

// found is one address of an entry.
type found struct {
	address netip.AddrPort
	// host is what an engine there is called, which its certificate must name.
	host string
}

// at is t at each of the addresses of its host.
func (t target) at(ips []netip.Addr) []found {
	list := make([]found, 0, len(ips))
	for _, ip := range ips {
		list = append(list, found{netip.AddrPortFrom(ip.Unmap(), t.port), t.host})
	}
	return list
}

// maxAddresses bounds the endpoints made of one host name. The largest pools
// behind one name are a few hundred engines; more is a fault of the DNS.
const maxAddresses = 1024

// member is one life of one endpoint.
type member struct {
	id      scoring.EndpointID // set once
	entry   *entry             // set once
	address netip.AddrPort     // set once
	target  target             // the entry's, with the name of this engine; set once

	serves served // as the engine said; without names: not known
	// up is true after the first good probe, failed counts the bad ones since
	// the last good one, down says that it gets no requests.
	up     bool
	failed int
	down   bool
	// suspension is what its first tokens say against it.
	suspension suspension
	// probed and fault tell of the last probe; zero and nil before it.
	probed time.Time
	fault  error
}

// newRoster takes entries that ValidateEntries found good.
func newRoster(failures int, entries []Entry) (*roster, error) {
	r := &roster{failures: failures}
	if _, _, err := r.replace(entries); err != nil {
		return nil, err
	}
	return r, nil
}

// replace takes another list of entries. One whose address stays keeps its
// members and what is known of them; others come without members, or go with
// theirs. After an error nothing has changed.
func (r *roster) replace(entries []Entry) (added, removed []*entry, err error) {
	kept := make([]*entry, len(entries))
	for i, e := range entries {
		t, err := parseAddress(e.Address)
		if err != nil {
			return nil, nil, err
		}
		kept[i] = &entry{Entry: e, target: t, position: i}
	}
	for i, e := range kept {
		at := slices.IndexFunc(r.entries, func(old *entry) bool { return old.target == e.target && sameLife(old.Entry, e.Entry) })
		if at < 0 {
			added = append(added, e)
			continue
		}
		kept[i] = r.entries[at]
		kept[i].Entry, kept[i].position = e.Entry, i
	}
	for _, e := range r.entries {
		if !slices.Contains(kept, e) {
			removed = append(removed, e)
		}
	}
	r.entries = kept
	r.sort()
	return added, removed, nil
}

// sameLife reports whether an engine stays the same to those who follow it: its
// feed and its caches' names are looked at when it is first seen.
func sameLife(a, b Entry) bool {
	return a.LMCache == b.LMCache && a.KVEvents == b.KVEvents && (len(a.Models) == 0) == (len(b.Models) == 0)
}

// resolved tells the addresses of an entry, all of them. Members whose address
// is gone are removed, new addresses become new members with new ids. An
// address that another entry holds is skipped: one engine is one endpoint. One
// that is no longer in the configuration gives its addresses up.
func (r *roster) resolved(e *entry, all []found) (added, removed []*member) {
	e.told = all[:min(len(all), maxAddresses)]
	wanted := make(map[netip.AddrPort]string, len(e.told))
	for _, f := range e.told {
		wanted[f.address] = f.host
	}
	kept := make([]*member, 0, len(r.members)+len(wanted))
	for _, m := range r.members {
		_, named := wanted[m.address]
		if m.entry == e && !named || m.entry != e && named && !slices.Contains(r.entries, m.entry) {
			removed = append(removed, m)
			continue
		}
		kept = append(kept, m)
		delete(wanted, m.address)
	}
	for address, host := range wanted {
		t := e.target
		t.host, t.port, t.srv = host, address.Port(), false
		added = append(added, &member{entry: e, address: address, target: t})
	}
	slices.SortFunc(added, func(a, b *member) int { return a.address.Compare(b.address) })
	for _, m := range added {
		r.lastID++
		m.id = r.lastID
	}
	r.members = append(kept, added...)
	r.sort()
	return added, removed
}

func (r *roster) sort() {
	slices.SortFunc(r.members, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.entry.position, b.entry.position), a.address.Compare(b.address))
	})
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
		if was {
			m.suspension.restarted(now)
		}
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
	if m == nil {
		return false
	}
	changed = !slices.Equal(m.serves.names, s.names) || !slices.Equal(m.serves.adapters, s.adapters)
	if !changed {
		// Who has the list of endpoints may still read the names.
		s.names, s.adapters = m.serves.names, m.serves.adapters
	}
	m.serves = s
	return changed
}

func (r *roster) member(id scoring.EndpointID) *member {
	for _, m := range r.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

// at is the member with an address; nil where there is none.
func (r *roster) at(address string) *member {
	for _, m := range r.members {
		if m.address.String() == address {
			return m
		}
	}
	return nil
}

// endpoints is the list that follows, in the order of the entries.
func (r *roster) endpoints() []scoring.Endpoint {
	siblings := make(map[*entry]int, len(r.entries))
	for _, m := range r.members {
		siblings[m.entry]++
	}
	list := make([]scoring.Endpoint, 0, len(r.members))
	for _, m := range r.members {
		list = append(list, r.endpoint(m, siblings[m.entry] == 1))
	}
	r.suspend(list)
	return list
}

// endpoint is the public value of m. alone says that its entry has no other
// address: only then do name, cluster and LMCache instance mean this engine.
func (r *roster) endpoint(m *member, alone bool) scoring.Endpoint {
	e := m.entry
	name := cmp.Or(e.Name, e.target.hostPort())
	endpoint := scoring.Endpoint{
		ID:      m.id,
		Name:    name,
		Kind:    e.Kind,
		Role:    e.RoleOf(),
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
