package discovery

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
)

// sockets is the network of the real world.
type sockets struct {
	tls    *tls.Config
	apiKey string
}

func (s *sockets) engine(t target, address netip.AddrPort) engine {
	return newEngineClient(t, address.String(), s.tls, s.apiKey)
}

var errNoAddress = errors.New("the name has no address")

// resolve gives the IPv4 addresses of a name, or the IPv6 ones where it has no
// other: an engine that is reached by both is still one engine. Sorted.
func (s *sockets) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	return onePerEngine(ips)
}

func onePerEngine(ips []netip.Addr) ([]netip.Addr, error) {
	var v4, v6 []netip.Addr
	for _, ip := range ips {
		switch ip = ip.Unmap(); {
		case ip.Is4():
			v4 = append(v4, ip)
		case ip.Zone() == "":
			v6 = append(v6, ip)
		}
	}
	if len(v4) == 0 {
		v4 = v6
	}
	if len(v4) == 0 {
		return nil, errNoAddress
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	return slices.Compact(v4), nil
}
