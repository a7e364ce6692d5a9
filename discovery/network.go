package discovery

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// sockets is the network of the real world.
type sockets struct {
	tls    *tls.Config
	apiKey string
	dns    *net.Resolver
}

func (s *sockets) engine(t target, address netip.AddrPort) engine {
	return newEngineClient(t, address.String(), s.tls, s.apiKey)
}

// resolver asks the configured DNS server, or those of the system.
func (c Config) resolver() *net.Resolver {
	if c.DNSServer == "" {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, c.DNSServer)
	}}
}

var (
	errNoAddress = errors.New("the name has no address")
	errNoRecord  = errors.New("no SRV record of the name leads to an address")
)

// resolve gives where the engines behind a name are, sorted.
func (s *sockets) resolve(ctx context.Context, t target) ([]found, error) {
	if !t.srv {
		ips, err := s.addresses(ctx, t.host)
		return t.at(ips), err
	}
	_, records, err := s.dns.LookupSRV(ctx, "", "", t.host)
	if len(records) == 0 && err != nil {
		return nil, err
	}
	records = records[:min(len(records), maxAddresses)]
	lists := make([][]found, len(records))
	var questions errgroup.Group
	questions.SetLimit(lookups)
	for i, r := range records {
		questions.Go(func() (err error) {
			lists[i], err = s.behind(ctx, r)
			return err
		})
	}
	if err := questions.Wait(); err != nil {
		return nil, err
	}
	list := slices.Concat(lists...)
	if len(list) == 0 {
		return nil, errNoRecord
	}
	slices.SortFunc(list, func(a, b found) int { return cmp.Or(a.address.Compare(b.address), strings.Compare(a.host, b.host)) })
	return slices.Compact(list), nil
}

// lookups is how many names are asked for at a time.
const lookups = 16

// behind gives where the engines of one SRV record are: nowhere, where its name
// is gone, as an engine that ends leaves its record for a while. What cannot be
// asked just now is an error: it is not known to be gone.
func (s *sockets) behind(ctx context.Context, r *net.SRV) ([]found, error) {
	host := strings.ToLower(strings.TrimSuffix(r.Target, "."))
	if host == "" || r.Port == 0 {
		return nil, nil // "." says that there is no such service.
	}
	// With its dot, so that it is looked for in no search domain.
	ips, err := s.addresses(ctx, r.Target)
	switch {
	case isNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("SRV record %s:%d: %w", host, r.Port, err)
	}
	return target{host: host, port: r.Port}.at(ips), nil
}

// addresses gives the IPv4 addresses of a name, or the IPv6 ones where it has no
// other: an engine that is reached by both is still one engine. Sorted. They are
// asked for one after the other: asked for together, a server that fails to
// answer for one family makes the name look as if it had no address.
func (s *sockets) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	ips, err := s.dns.LookupNetIP(ctx, "ip4", host)
	if isNotFound(err) {
		ips, err = s.dns.LookupNetIP(ctx, "ip6", host)
	}
	if err != nil {
		return nil, err
	}
	return onePerEngine(ips)
}

// isNotFound reports whether a name is known to have no address. An AddrError is
// what the resolver makes of one that has some, but none of the family asked for:
// a hosts file tells all of them.
func isNotFound(err error) bool {
	if _, otherFamily := errors.AsType[*net.AddrError](err); otherFamily || errors.Is(err, errNoAddress) {
		return true
	}
	fault, ok := errors.AsType[*net.DNSError](err)
	return ok && fault.IsNotFound
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
