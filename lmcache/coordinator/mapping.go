package coordinator

import (
	"fmt"
	"net/netip"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// MapServers tells which server each endpoint's engine loads from: the one that
// the operator named, else the only one that registered from the endpoint's IP.
// A server is its node's: several endpoints may have the same.
func MapServers(endpoints []scoring.Endpoint, servers []Server) *lmcache.Mapping {
	m := &lmcache.Mapping{Instances: make(map[scoring.EndpointID]string, len(endpoints))}
	at := make(map[netip.Addr][]string)
	for _, s := range servers {
		if ip, err := netip.ParseAddr(s.IP); err == nil {
			at[ip.Unmap()] = append(at[ip.Unmap()], s.Instance)
		}
	}
	owned := make(map[string]bool)
	for _, e := range endpoints {
		id := e.Cache.Server
		if id == "" {
			address, _ := netip.ParseAddrPort(e.Address)
			ids := at[address.Addr().Unmap()]
			if len(ids) != 1 {
				m.Unmapped = append(m.Unmapped, lmcache.Unmapped{Endpoint: e.Name, Reason: whyNone(address.Addr(), ids)})
				continue
			}
			id = ids[0]
		}
		m.Instances[e.ID], owned[id] = id, true
	}
	for _, s := range servers {
		if !owned[s.Instance] {
			m.Unmapped = append(m.Unmapped, lmcache.Unmapped{Instance: s.Instance, Reason: fmt.Sprintf("no endpoint has its ip %s; name it as lmcache.server of its node's endpoints", s.IP)})
		}
	}
	return m
}

func whyNone(ip netip.Addr, ids []string) string {
	if len(ids) == 0 {
		return fmt.Sprintf("no LMCache server has registered from its ip %s; name its node's as lmcache.server (--instance-id there)", ip)
	}
	return fmt.Sprintf("LMCache servers %q have registered from its ip %s; name one as its lmcache.server", ids, ip)
}
