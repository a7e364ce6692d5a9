package envoy_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// The first https engine changes the pool's cluster, which Envoy makes anew: no
// request is lost, and what is told afterwards arrives.
func TestPoolChangesUnderLoad(t *testing.T) {
	for _, way := range ways {
		t.Run(string(way.route)+" "+string(way.protocol), func(t *testing.T) {
			t.Parallel()
			certificate, file := certify(t, "localhost")
			a, b := startEngine(t), startEngine(t)
			secure := startEngine(t, func(e *engine) { e.certificate = certificate })
			s := startService(t, scoring.PolicyRoundRobin, a)
			c := config(s)
			c.Route, c.CAFile = way.route, file
			p := &pool{service: s, management: startManagement(t, c, "127.0.0.1:0")}
			p.add(a)
			proxy := startDynamicEnvoy(t, c, p.management, way.protocol)
			p.knows(t, proxy)
			load := startLoad(t, proxy, 4)
			load.reach(t, 50)

			// The service is told of it last: what it names Envoy must know.
			p.management.SetMembers(append(p.list(), envoy.Member{
				Address: secure.address, Cluster: cluster(secure), TLS: true, Host: "localhost", Health: envoy.Healthy,
			}))
			eventually(t, "Envoy has taken it", func() bool {
				status := p.management.Status()
				return status.Members == 2 && status.Envoys[0].Current
			})
			s.picker.SetEndpoints(endpoints([]*engine{a, secure}))
			reached(t, secure)
			load.reach(t, load.done.Load()+50)
			if n := proxy.stat(t, "cluster_manager.cluster_modified"); n != 1 {
				t.Errorf("%d clusters were modified, want 1", n)
			}

			p.add(b) // and the https engine is gone again
			p.knows(t, proxy)
			reached(t, b)
			if failed := load.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
		})
	}
}

// The service comes back with other limits, so that its listener is another one:
// no request that begins or ends meanwhile is lost.
func TestListenerChangesUnderLoad(t *testing.T) {
	for _, protocol := range []envoy.Protocol{envoy.StateOfTheWorld, envoy.Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t)}
			s := startService(t, scoring.PolicyRoundRobin, engines...)
			c := config(s)
			p := &pool{service: s, management: startManagement(t, c, "127.0.0.1:0")}
			p.add(engines...)
			c.Admin = "127.0.0.1:0"
			bootstrap, err := envoy.DynamicBootstrap(c, envoy.Management{Address: p.management.address, Protocol: protocol, Node: "test"})
			if err != nil {
				t.Fatal(err)
			}
			// Time enough for each client's connection to be told to close.
			proxy := startEnvoyWith(t, bootstrap, "--drain-time-s", "4", "--parent-shutdown-time-s", "5")
			p.knows(t, proxy)
			load := startLoad(t, proxy, 4)
			load.reach(t, 50)
			p.management.stop()
			c.BodyLimit *= 2
			p.management = startManagement(t, c, p.management.address)
			p.tell()
			p.settled(t)
			eventually(t, "the listener is another", func() bool {
				return proxy.stat(t, "listener_manager.listener_modified")+proxy.stat(t, "listener_manager.listener_in_place_updated") > 0
			})
			eventually(t, "the former is gone", func() bool {
				return proxy.stat(t, "listener_manager.total_filter_chains_draining")+proxy.stat(t, "listener_manager.total_listeners_draining") == 0
			})
			load.reach(t, load.done.Load()+50)
			if failed := load.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
		})
	}
}

// teller is an xDS server that tells what a test wants.
type teller struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	server sotw.Server
}

func (t teller) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return t.server.StreamHandler(stream, resource.AnyType)
}

// Where somebody adds a health check of Envoy's to the pool, an engine that is
// removed is gone at once, healthy as it is, and its streams go on.
func TestHealthyEngineIsRemoved(t *testing.T) {
	proceed := make(chan struct{})
	leaving := startEngine(t, func(e *engine) { e.pause = func() { <-proceed } })
	staying := startEngine(t)
	s := startService(t, scoring.PolicyRoundRobin, leaving)
	c := config(s)
	c.Listen = "127.0.0.1:0"
	snapshots := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	version := 0
	tell := func(engines ...*engine) {
		t.Helper()
		var members []envoy.Member
		for _, e := range engines {
			members = append(members, envoy.Member{Address: e.address, Health: envoy.Healthy})
		}
		clusters := c.Clusters(members)
		often := durationpb.New(50 * time.Millisecond)
		clusters[0].HealthChecks = []*corev3.HealthCheck{{
			Timeout: durationpb.New(time.Second), Interval: often, NoTrafficInterval: often,
			UnhealthyThreshold: wrapperspb.UInt32(1), HealthyThreshold: wrapperspb.UInt32(1),
			HealthChecker: &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}},
		}}
		version++
		snapshot, err := cache.NewSnapshot(string(rune('0'+version)), map[resource.Type][]types.Resource{
			resource.ClusterType: {clusters[0]}, resource.EndpointType: {c.Assignments(members)[0]},
			resource.ListenerType: {c.Listeners()[0]}, resource.RouteType: {c.Routes(members)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := snapshots.SetSnapshot(t.Context(), "test", snapshot); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	ctx, cancel := context.WithCancel(context.Background())
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, teller{server: sotw.NewServer(ctx, snapshots, nil)})
	go func() { _ = g.Serve(l) }()
	t.Cleanup(func() { cancel(); g.Stop() })

	tell(leaving)
	proxy := startDynamicEnvoy(t, c, &management{address: l.Addr().String()}, envoy.StateOfTheWorld)
	resp := post(t, proxy, completion("hello"))
	tell(leaving, staying)
	eventually(t, "both are healthy", func() bool { return proxy.stat(t, "cluster.pool.membership_healthy") == 2 })
	tell(staying)
	eventually(t, "one is left", func() bool { return proxy.stat(t, "cluster.pool.membership_total") == 1 })
	// It is still named, which Envoy does not obey any more.
	for range 20 {
		if again := post(t, proxy, completion("hello")); again.header.Get("x-firsttoken-endpoint") != staying.address {
			t.Fatalf("served by %s, which was removed", again.header.Get("x-firsttoken-endpoint"))
		}
	}
	close(proceed)
	if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
		t.Errorf("the stream of the removed engine: %v %s %q", err, resp.status, body)
	}
}
