package main

import (
	"context"
	"fmt"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/lmcache/remote"
	"github.com/firsttoken/firsttoken/scoring"
)

// multiprocess is LMCache's multiprocess mode, and its registries elsewhere.
type multiprocess struct {
	// directory is nil where we are not the servers' coordinator.
	directory *coordinator.Directory
	listener  net.Listener
	// asked are registries elsewhere.
	asked []*remote.Source
}

// coordinatorStatus is the LMCache servers that report to us.
type coordinatorStatus struct {
	Address string               `json:"address"`
	Servers []coordinator.Status `json:"servers"`
	Counts  coordinator.Counts   `json:"counts"`
	// Unmapped are endpoints without server and servers without endpoint.
	Unmapped []unmapped `json:"unmapped"`
}

// bindCoordinator opens the port that LMCache's servers report to, if it is
// wanted.
func (s *service) bindCoordinator(ctx context.Context, registry prometheus.Registerer) (err error) {
	cfg := s.cfg.LMCache.Coordinator
	if cfg.Listen == "" {
		return nil
	}
	if s.mp.directory, err = coordinator.New(cfg, s.log); err != nil {
		return fmt.Errorf("lmcache.coordinator: %w", err)
	}
	coordinator.NewMetrics(registry, s.mp.directory)
	if s.mp.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen); err != nil {
		return fmt.Errorf("lmcache.coordinator.listen: %w", err)
	}
	return nil
}

// run adds what runs beside the server to group, until ctx ends.
func (m *multiprocess) run(ctx context.Context, group *errgroup.Group) {
	for _, source := range m.asked {
		group.Go(func() error {
			source.Run(ctx)
			return nil
		})
	}
	if m.directory == nil {
		return
	}
	group.Go(func() error { return m.directory.Serve(ctx, m.listener) })
	group.Go(func() error {
		m.directory.Run(ctx)
		return nil
	})
}

// setEndpoints tells which endpoints there are.
func (m *multiprocess) setEndpoints(endpoints []scoring.Endpoint) {
	if m.directory != nil {
		m.directory.SetEndpoints(endpoints)
	}
	for _, source := range m.asked {
		source.SetEndpoints(endpoints)
	}
}

func (m *multiprocess) close() {
	if m.listener != nil {
		_ = m.listener.Close()
	}
}

// status is nil where we are not the servers' coordinator.
func (m *multiprocess) status() *coordinatorStatus {
	if m.directory == nil {
		return nil
	}
	view := &coordinatorStatus{Address: m.listener.Addr().String(), Servers: m.directory.Status(), Counts: m.directory.Counts(), Unmapped: []unmapped{}}
	for _, u := range m.directory.Mapping().Unmapped {
		view.Unmapped = append(view.Unmapped, unmapped(u))
	}
	return view
}

// elsewhere are the registries that are asked.
func (m *multiprocess) elsewhere() []remote.Status {
	list := []remote.Status{}
	for _, source := range m.asked {
		list = append(list, source.Status())
	}
	return list
}
