package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	xdslog "github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/firsttoken/firsttoken/envoy"
)

// Server tells Envoys which engines there are. It is safe for concurrent use.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	// The following are set once in New.
	resources envoy.Config
	linger    time.Duration
	log       *slog.Logger
	metrics   *Metrics
	envoys    *envoys
	cache     cache.SnapshotCache
	sotw      sotw.Server
	delta     delta.Server
	// health lets Envoys that know several servers prefer one that has something to
	// tell: it serves once there is a list of engines.
	health *health.Server
	// stop ends all streams, which else would never end.
	stop context.CancelFunc
	// news has its one place filled when wanted has changed.
	news chan struct{}

	// mu guards the following fields.
	mu sync.Mutex
	// wanted is the newest list of engines that was given; told the one that
	// Envoys are told now, with its versions by type.
	wanted, told []envoy.Member
	versions     map[string]string

	// leaving are removed engines whose clusters are kept until a time; owned by
	// follow. Bounded by what is removed within linger.
	leaving []leaving
}

// leaving is a removed engine.
type leaving struct {
	member envoy.Member
	until  time.Time
}

// everybody is the one name under which the cache keeps what is told: all
// Envoys are told the same.
type everybody struct{}

// ID is the same for every node.
func (everybody) ID(*corev3.Node) string { return "" }

// New makes a Server that tells what resources says of the engines that
// SetMembers gives it; until then Envoys wait for their first answer. The cluster
// of a removed engine stays for linger. The error joins the faults of resources.
func New(resources envoy.Config, linger time.Duration, log *slog.Logger, metrics *Metrics) (*Server, error) {
	if err := resources.ValidateResources(); err != nil {
		return nil, err
	}
	s := &Server{
		resources: resources, linger: linger, log: log, metrics: metrics, envoys: newEnvoys(log, metrics),
		health: health.NewServer(), news: make(chan struct{}, 1),
	}
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	complain := func(format string, args ...any) { log.Warn("xDS cache", "says", fmt.Sprintf(format, args...)) }
	// Aware of ADS, it tells clusters before endpoints, and listeners before
	// routes.
	s.cache = cache.NewSnapshotCache(true, everybody{}, xdslog.LoggerFuncs{WarnFunc: complain, ErrorFunc: complain})
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.sotw = sotw.NewServer(ctx, s.cache, sotwCallbacks{s.envoys}, sotw.WithOrderedADS())
	s.delta = delta.NewServer(ctx, s.cache, deltaCallbacks{s.envoys})
	return s, nil
}

// SetMembers gives the engines that Envoys are to know, all of them. It never
// blocks. An empty list is not told: Envoys keep what they have, which is worth
// more than nothing.
func (s *Server) SetMembers(members []envoy.Member) {
	s.mu.Lock()
	s.wanted = slices.Clone(members)
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default: // It is known already that there is news.
	}
}

// Run serves on l until ctx ends, then cuts all streams: Envoys keep what they
// have. It closes l.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		// A stream each for ADS is all that an Envoy needs.
		grpc.MaxConcurrentStreams(16),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// An Envoy that is gone without a word must not be waited for.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	grpc_health_v1.RegisterHealthServer(g, s.health)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }() // ends when g is stopped
	defer s.stop()
	fault := s.follow(ctx, served)
	s.stop()
	g.Stop()
	return fault
}

// follow tells every new list until ctx ends or the server fails.
func (s *Server) follow(ctx context.Context, served <-chan error) error {
	for {
		var timer *time.Timer
		var due <-chan time.Time
		if len(s.leaving) > 0 {
			timer = time.NewTimer(time.Until(s.leaving[0].until))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return fmt.Errorf("xds: %w", err)
		case <-s.news:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
		if err := s.tell(ctx); err != nil && !errors.Is(err, context.Canceled) {
			// The list cannot be said to Envoy. What was said before holds.
			s.log.Error("cannot tell Envoys the new list of endpoints; they keep the former one", "error", err)
		}
	}
}

// patience is how long a change waits for each Envoy's answer to what must come
// before. One that hangs must not keep all others from knowing an engine.
const patience = 2 * time.Second

// tell brings Envoys from what they were told to what is wanted: clusters
// first, then the routes to them. Told in one, Envoy may switch a route to a
// cluster that it has not made yet. A cluster ends in a later call, since
// requests that began before the switch go on by the former routes. Where
// engines have no clusters of their own all that changes is endpoints.
func (s *Server) tell(ctx context.Context) error {
	s.mu.Lock()
	before, now := s.told, s.wanted
	s.mu.Unlock()
	if len(now) == 0 {
		s.leaving = nil // Else their time would come again and again.
		s.log.Warn("there is no endpoint to tell Envoys of; they keep what they have")
		return nil
	}
	if before == nil {
		before = now
	}
	clusters := s.clusters(before, now, time.Now())
	if err := s.push(ctx, stage{clusters: clusters, endpoints: now, routes: before}, resource.ClusterType); err != nil {
		return err
	}
	if err := s.push(ctx, stage{clusters: clusters, endpoints: now, routes: now}, resource.RouteType); err != nil {
		return err
	}
	s.mu.Lock()
	s.told = now
	s.mu.Unlock()
	return nil
}

// clusters are the engines that have clusters now: those wanted, and those that
// are leaving.
func (s *Server) clusters(before, wanted []envoy.Member, now time.Time) []envoy.Member {
	s.leaving = slices.DeleteFunc(s.leaving, func(l leaving) bool {
		return !now.Before(l.until) || hasCluster(wanted, l.member.Cluster)
	})
	list := slices.Clone(wanted)
	for _, l := range s.leaving {
		list = append(list, l.member)
	}
	for _, m := range s.resources.Alone(before) {
		if !hasCluster(list, m.Cluster) {
			s.leaving = append(s.leaving, leaving{m, now.Add(s.linger)})
			list = append(list, m)
		}
	}
	return list
}

func hasCluster(list []envoy.Member, name string) bool {
	return slices.ContainsFunc(list, func(m envoy.Member) bool { return m.Cluster == name })
}

// push tells a stage, if it is any news, and gives every Envoy time to answer to
// what it says of one type.
func (s *Server) push(ctx context.Context, next stage, awaited string) error {
	told, err := snapshot(s.resources, next)
	if err != nil {
		return err
	}
	s.mu.Lock()
	current := s.versions
	s.mu.Unlock()
	v := versions(told)
	if sameVersions(current, v) {
		return nil
	}
	if err := s.cache.SetSnapshot(ctx, everybody{}.ID(nil), told); err != nil {
		return err
	}
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	s.mu.Lock()
	s.versions, s.told = v, next.routes
	s.mu.Unlock()
	if current != nil && current[awaited] != v[awaited] {
		s.await(ctx, awaited, v[awaited])
	}
	return nil
}

func sameVersions(a, b map[string]string) bool {
	for typeURL := range kinds {
		if a[typeURL] != b[typeURL] {
			return false
		}
	}
	return a != nil
}

// await gives every Envoy time to take a version.
func (s *Server) await(ctx context.Context, typeURL, version string) {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if missing := s.envoys.await(bounded, typeURL, version); len(missing) > 0 && ctx.Err() == nil {
		s.metrics.late.Inc()
		s.log.Warn("Envoys have not answered in time; the change goes on", "kind", kindOf(typeURL), "nodes", missing)
	}
}

// StreamAggregatedResources serves one Envoy by state of the world.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.sotw.StreamHandler(stream, resource.AnyType)
}

// DeltaAggregatedResources serves one Envoy by delta.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.delta.DeltaStreamHandler(stream, resource.AnyType)
}

// Status is the server at one moment.
type Status struct {
	// Members is the number of engines that Envoys are told of.
	Members int `json:"endpoints"`
	// Versions are what is told now, by kind; null before the first list.
	Versions map[string]string `json:"versions"`
	// Envoys are those connected.
	Envoys []EnvoyStatus `json:"envoys"`
}

// EnvoyStatus is one connected Envoy.
type EnvoyStatus struct {
	Node     string    `json:"node"`
	Address  string    `json:"address"`
	Protocol string    `json:"protocol"`
	Since    time.Time `json:"since"`
	// Current: it has taken the newest list of engines, and all else that is told.
	Current bool `json:"current"`
	// Faults are its words on what it did not take.
	Faults []string `json:"faults,omitempty"`
}

// Status tells what is told now, and who has taken it.
func (s *Server) Status() Status {
	s.mu.Lock()
	view, newest := Status{Members: len(s.told)}, s.versions
	// An empty list is not told.
	pending := len(s.wanted) > 0 && !slices.Equal(s.wanted, s.told)
	s.mu.Unlock()
	if newest != nil {
		view.Versions = make(map[string]string, len(newest))
		for typeURL, version := range newest {
			view.Versions[kindOf(typeURL)] = version
		}
	}
	view.Envoys = s.envoys.status(newest)
	for i := range view.Envoys {
		view.Envoys[i].Current = view.Envoys[i].Current && !pending
	}
	return view
}
