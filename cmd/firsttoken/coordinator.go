package main

import (
	"context"
	"fmt"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/lmcache/coordinator"
)

// multiprocess is what serve knows of LMCache's multiprocess mode.
type multiprocess struct {
	// directory is nil where we are not the servers' coordinator.
	directory *coordinator.Directory
	listener  net.Listener
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
	if m.directory == nil {
		return
	}
	group.Go(func() error { return m.directory.Serve(ctx, m.listener) })
	group.Go(func() error {
		m.directory.Run(ctx)
		return nil
	})
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
