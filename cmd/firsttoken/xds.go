package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/certificate"
	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/envoy/xds"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// validateXDS joins all faults of what Envoys are told at run time.
func (c config) validateXDS() error {
	faults := []error{c.XDS.Validate("xds")}
	if c.XDS.Listen == "" {
		return errors.Join(faults...)
	}
	route := envoy.Route(c.XDS.Route)
	if err := tells(c.Server, route); err != nil && c.XDS.Shadow == "" {
		faults = append(faults, fmt.Errorf("xds.route: %w", err))
	}
	if least := c.Server.DecisionDeadline + 500*time.Millisecond; c.XDS.Linger < least {
		faults = append(faults, fmt.Errorf("xds.linger: is %s; write at least %s, as long as Envoy waits for a choice", c.XDS.Linger, least))
	}
	if route != envoy.RouteClusterHeader {
		return errors.Join(faults...)
	}
	owners := make(map[string]int, len(c.Endpoints))
	for i, e := range c.Endpoints {
		cluster := clusterOf(e)
		if cluster == "" {
			continue // Named where endpoints are validated.
		}
		if owner := envoy.ReservedCluster(cluster); owner != "" {
			faults = append(faults, fmt.Errorf("endpoints[%d].cluster: %q is that of %s; write another", i, cluster, owner))
		}
		if first, ok := owners[cluster]; ok {
			faults = append(faults, fmt.Errorf("endpoints[%d].cluster: %q is that of endpoints[%d] too; write another", i, cluster, first))
		}
		owners[cluster] = i
	}
	return errors.Join(faults...)
}

// clusterOf is the name that discovery gives the cluster of an entry's only
// engine; empty where its address is no good.
func clusterOf(e discovery.Entry) string {
	if name := cmp.Or(e.Cluster, e.Name); name != "" {
		return name
	}
	if _, name, ok := strings.Cut(e.Address, "+srv://"); ok {
		return strings.ToLower(strings.TrimRight(name, "/"))
	}
	endpoint, err := endpointForEnvoy(e)
	if err != nil {
		return ""
	}
	return endpoint.Cluster
}

// management tells running Envoys which engines there are.
type management struct {
	// server and listener are nil where Envoys get a static config.
	server   *xds.Server
	listener net.Listener
	// tls is nil where the port speaks none.
	tls *certificate.Source
	// news has its one place filled when the list of endpoints has changed.
	news chan struct{}
}

// bindManagement opens the port that Envoys ask at, if it is wanted.
func (s *service) bindManagement(ctx context.Context, registry prometheus.Registerer) (err error) {
	if s.cfg.XDS.Listen == "" {
		return nil
	}
	resources := envoy.Config{Listen: s.cfg.XDS.EnvoyListen, Route: envoy.Route(s.cfg.XDS.Route), BodyMode: envoy.BodyMode(s.cfg.XDS.BodyMode)}
	resources.Shadow = shadowByXDS(s.cfg.XDS.Shadow)
	resources.Canary = s.cfg.XDS.Canary.Envoy()
	reachServices(s.cfg, nil, &resources)
	if err := serviceForEnvoy(s.cfg, &resources); err != nil {
		return err
	}
	s.envoys.news = make(chan struct{}, 1)
	if s.envoys.server, err = xds.New(resources, s.cfg.XDS.Linger, s.log, xds.NewMetrics(registry)); err != nil { //nolint:contextcheck // It lives until Run ends.
		return fmt.Errorf("xds: %w", err)
	}
	if s.envoys.listener, err = extproc.Listen(ctx, s.cfg.XDS.Listen); err != nil {
		return fmt.Errorf("xds.listen: %w", err)
	}
	s.envoys.listener, s.envoys.tls, err = s.secure(s.envoys.listener, s.cfg.XDS.TLS, "xds", registry)
	return err
}

// changed says that there is a new list of endpoints. It never blocks.
func (m *management) changed() {
	if m.server == nil {
		return
	}
	select {
	case m.news <- struct{}{}:
	default: // It is known already.
	}
}

// run adds what runs beside the server to group, until ctx ends. Envoys are
// told nothing before every name was resolved, or that was tried: a list with
// holes would take engines from them.
func (m *management) run(ctx context.Context, group *errgroup.Group, watcher *discovery.Watcher) {
	if m.server == nil {
		return
	}
	group.Go(func() error { return m.server.Run(ctx, m.listener) })
	group.Go(func() error {
		select {
		case <-watcher.Synced():
		case <-ctx.Done():
			return nil
		}
		for {
			m.server.SetMembers(members(watcher.Status()))
			select {
			case <-m.news:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// members are the endpoints as Envoys know them.
func members(endpoints []discovery.Status) []envoy.Member {
	list := make([]envoy.Member, 0, len(endpoints))
	for _, e := range endpoints {
		if e.Endpoint.Role != scoring.RoleBoth {
			continue // Envoy must not choose it either.
		}
		m := envoy.Member{Address: e.Endpoint.Address, Cluster: e.Endpoint.Cluster, TLS: e.TLS, Host: e.Host, Health: envoy.Healthy}
		switch {
		case e.Draining:
			m.Health = envoy.Draining
		case !e.Endpoint.Ready:
			m.Health = envoy.Unhealthy
		}
		list = append(list, m)
	}
	return list
}

// address is where Envoys ask; a socket file is named as in the configuration,
// with its scheme.
func (m *management) address(configured string) string {
	if m.listener.Addr().Network() == "unix" {
		return configured
	}
	return m.listener.Addr().String()
}

func (m *management) close() {
	if m.listener != nil {
		_ = m.listener.Close()
	}
}

// status is nil where Envoys get a static config.
func (m *management) status() *xds.Status {
	if m.server == nil {
		return nil
	}
	view := m.server.Status()
	return &view
}

// managementForEnvoy is where an Envoy asks, for its bootstrap. Addresses, where
// there are any, are how it reaches us and our standbys.
func managementForEnvoy(cfg config, proxy envoy.Config, addresses []string, protocol, node string) (envoy.Management, error) {
	if cfg.XDS.Listen == "" {
		return envoy.Management{}, errors.New("--xds needs xds.listen in the service's configuration, the address at which Envoys ask")
	}
	addresses, err := managementAddresses(cfg, addresses, proxy)
	if err != nil {
		return envoy.Management{}, err
	}
	return envoy.Management{
		Address: addresses[0], Standby: addresses[1:], Protocol: envoy.Protocol(protocol), Node: node,
	}, nil
}
