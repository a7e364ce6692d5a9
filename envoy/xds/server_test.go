package xds_test

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/envoy/xds"
)

// fixture is a server and what counts its doings.
type fixture struct {
	*xds.Server
	registry *prometheus.Registry
	conn     *grpc.ClientConn
}

func start(t *testing.T, route envoy.Route, linger time.Duration) *fixture {
	t.Helper()
	f := &fixture{registry: prometheus.NewRegistry()}
	resources := envoy.Config{Listen: "127.0.0.1:8080", Route: route, BodyLimit: 1 << 20, DecisionDeadline: time.Second}
	var err error
	if f.Server, err = xds.New(resources, linger, slog.New(slog.DiscardHandler), xds.NewMetrics(f.registry)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, l) }()
	if f.conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		f.conn.Close()
	})
	return f
}

// message is an answer of either protocol: its type, and the resources' names,
// with a minus before removed ones.
type message struct {
	typeURL, nonce, version string
	names                   []string
	resources               []*anypb.Any
}

// client is one Envoy's stream.
type client interface {
	// ask subscribes; without names to all. answer acknowledges, or refuses.
	ask(t *testing.T, typeURL string, names ...string)
	answer(t *testing.T, m message, fault *status.Status)
	next(t *testing.T) message
}

type sotwClient struct {
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	names  map[string][]string
	taken  map[string]string
}

func (c *sotwClient) ask(t *testing.T, typeURL string, names ...string) {
	t.Helper()
	c.names[typeURL] = names
	send(t, c.stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNames: names}))
}

func (c *sotwClient) answer(t *testing.T, m message, fault *status.Status) {
	t.Helper()
	if fault == nil {
		c.taken[m.typeURL] = m.version
	}
	send(t, c.stream.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: m.typeURL, ResourceNames: c.names[m.typeURL], ResponseNonce: m.nonce, VersionInfo: c.taken[m.typeURL], ErrorDetail: fault,
	}))
}

func (c *sotwClient) next(t *testing.T) message {
	t.Helper()
	r, err := c.stream.Recv()
	send(t, err)
	m := message{typeURL: r.GetTypeUrl(), nonce: r.GetNonce(), version: r.GetVersionInfo(), resources: r.GetResources()}
	for _, any := range r.GetResources() {
		m.names = append(m.names, nameOf(t, any))
	}
	slices.Sort(m.names)
	return m
}

type deltaClient struct {
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (c *deltaClient) ask(t *testing.T, typeURL string, names ...string) {
	t.Helper()
	send(t, c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNamesSubscribe: names}))
}

func (c *deltaClient) answer(t *testing.T, m message, fault *status.Status) {
	t.Helper()
	send(t, c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.typeURL, ResponseNonce: m.nonce, ErrorDetail: fault}))
}

func (c *deltaClient) next(t *testing.T) message {
	t.Helper()
	r, err := c.stream.Recv()
	send(t, err)
	m := message{typeURL: r.GetTypeUrl(), nonce: r.GetNonce(), version: r.GetSystemVersionInfo()}
	for _, resource := range r.GetResources() {
		m.names = append(m.names, resource.GetName())
		m.resources = append(m.resources, resource.GetResource())
	}
	for _, name := range r.GetRemovedResources() {
		m.names = append(m.names, "-"+name)
	}
	slices.Sort(m.names)
	return m
}

var node = &corev3.Node{Id: "test"}

func send(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nameOf(t *testing.T, any *anypb.Any) string {
	t.Helper()
	m, err := any.UnmarshalNew()
	send(t, err)
	switch r := m.(type) {
	case *clusterv3.Cluster:
		return r.GetName()
	case *endpointv3.ClusterLoadAssignment:
		return r.GetClusterName()
	case *listenerv3.Listener:
		return r.GetName()
	case *routev3.RouteConfiguration:
		return r.GetName()
	}
	t.Fatalf("a resource of the type %s", any.GetTypeUrl())
	return ""
}

// protocols are the ways to connect to a server.
var protocols = map[string]func(*testing.T, *fixture) client{
	"sotw": func(t *testing.T, f *fixture) client {
		t.Helper()
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(f.conn).StreamAggregatedResources(t.Context())
		send(t, err)
		return &sotwClient{stream, map[string][]string{}, map[string]string{}}
	},
	"delta": func(t *testing.T, f *fixture) client {
		t.Helper()
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(f.conn).DeltaAggregatedResources(t.Context())
		send(t, err)
		return &deltaClient{stream}
	},
}

func member(address, cluster string) envoy.Member {
	return envoy.Member{Address: address, Cluster: cluster, Health: envoy.Healthy}
}

var (
	one   = member("10.0.0.1:8000", "one")
	two   = member("10.0.0.2:8000", "two")
	three = member("10.0.0.3:8000", "three")
)

// subscribe asks as Envoy does and takes what it gets, in any order.
func subscribe(t *testing.T, c client) map[string]message {
	t.Helper()
	got := make(map[string]message)
	c.ask(t, resource.ClusterType)
	c.ask(t, resource.ListenerType)
	c.ask(t, resource.EndpointType, "pool")
	c.ask(t, resource.RouteType, "engines")
	for len(got) < 4 {
		m := c.next(t)
		got[m.typeURL] = m
		c.answer(t, m, nil)
	}
	return got
}

// expect is the next message, which must be of this type with these names.
func expect(t *testing.T, c client, typeURL string, names ...string) message {
	t.Helper()
	m := c.next(t)
	if m.typeURL != typeURL || !slices.Equal(m.names, names) {
		t.Fatalf("got %s %q, want %s %q", m.typeURL, m.names, typeURL, names)
	}
	return m
}

// chosen are the clusters that the route table names, in its order.
func chosen(t *testing.T, m message) []string {
	t.Helper()
	table := new(routev3.RouteConfiguration)
	send(t, m.resources[0].UnmarshalTo(table))
	var names []string
	for _, r := range table.GetVirtualHosts()[0].GetRoutes() {
		for _, h := range r.GetMatch().GetHeaders() {
			names = append(names, h.GetStringMatch().GetExact())
		}
	}
	return names
}

func isDelta(c client) bool { _, ok := c.(*deltaClient); return ok }

// A new cluster is told first, the routes to it only when Envoy has taken it,
// and one that no route leads to any more goes last.
func TestSwapInThreeSteps(t *testing.T) {
	for name, connect := range protocols {
		t.Run(name, func(t *testing.T) {
			s := start(t, envoy.RouteClusterHeader, time.Millisecond)
			c := connect(t, s)
			s.SetMembers([]envoy.Member{one, two})
			got := subscribe(t, c)
			if names := got[resource.ClusterType].names; !slices.Equal(names, []string{"one", "pool", "two"}) {
				t.Fatalf("clusters %q", names)
			}
			if names := chosen(t, got[resource.RouteType]); !slices.Equal(names, []string{"one", "two"}) {
				t.Fatalf("routes to %q", names)
			}

			s.SetMembers([]envoy.Member{one, three})
			added := []string{"one", "pool", "three", "two"}
			if isDelta(c) {
				added = []string{"three"}
			}
			clusters := expect(t, c, resource.ClusterType, added...)
			endpoints := expect(t, c, resource.EndpointType, "pool")
			c.answer(t, endpoints, nil)
			// The routes wait for this answer: nothing can have come before it.
			if s.sent(t, "routes") != 1 {
				t.Error("routes were told before the cluster was taken")
			}
			c.answer(t, clusters, nil)
			routes := expect(t, c, resource.RouteType, "engines")
			if names := chosen(t, routes); !slices.Equal(names, []string{"one", "three"}) {
				t.Fatalf("routes to %q", names)
			}
			c.answer(t, routes, nil)
			left := []string{"one", "pool", "three"}
			if isDelta(c) {
				left = []string{"-two"}
			}
			c.answer(t, expect(t, c, resource.ClusterType, left...), nil)
		})
	}
}

// sent is how many messages of a kind have left.
func (f *fixture) sent(t *testing.T, kind string) int {
	t.Helper()
	families, err := f.registry.Gather()
	send(t, err)
	for _, family := range families {
		if family.GetName() != "firsttoken_xds_sent_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			if m.GetLabel()[0].GetValue() == kind {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return 0
}

// Where engines have no clusters of their own, only endpoints are told again.
func TestOnlyEndpointsChange(t *testing.T) {
	for name, connect := range protocols {
		t.Run(name, func(t *testing.T) {
			s := start(t, envoy.RouteOverrideHost, time.Hour)
			c := connect(t, s)
			s.SetMembers([]envoy.Member{one})
			subscribe(t, c)
			for _, list := range [][]envoy.Member{{one, two}, {two}, {two, three}, {one}} {
				s.SetMembers(list)
				m := expect(t, c, resource.EndpointType, "pool")
				assignment := new(endpointv3.ClusterLoadAssignment)
				send(t, m.resources[0].UnmarshalTo(assignment))
				if n := len(assignment.GetEndpoints()[0].GetLbEndpoints()); n != len(list) {
					t.Errorf("%d endpoints, want %d", n, len(list))
				}
				c.answer(t, m, nil)
			}
		})
	}
}

// An Envoy that does not answer holds up the others for a bounded time, which is
// counted.
func TestSilentEnvoyIsNotWaitedForLong(t *testing.T) {
	for name, connect := range protocols {
		t.Run(name, func(t *testing.T) {
			s := start(t, envoy.RouteClusterHeader, time.Hour)
			c := connect(t, s)
			s.SetMembers([]envoy.Member{one})
			subscribe(t, c)
			s.SetMembers([]envoy.Member{one, two})
			for s.sent(t, "routes") < 2 {
				c.next(t) // taken in silence
			}
			expected := "# HELP firsttoken_xds_late_total Changes that went on although an Envoy had not answered in time to what must come before.\n" +
				"# TYPE firsttoken_xds_late_total counter\nfirsttoken_xds_late_total 1\n"
			if err := testutil.GatherAndCompare(s.registry, strings.NewReader(expected), "firsttoken_xds_late_total"); err != nil {
				t.Error(err)
			}
		})
	}
}

// What Envoy refuses is not sent again before it changes, and the change is.
func TestRefusedIsNotRepeated(t *testing.T) {
	for name, connect := range protocols {
		t.Run(name, func(t *testing.T) {
			s := start(t, envoy.RouteOverrideHost, time.Hour)
			c := connect(t, s)
			s.SetMembers([]envoy.Member{one})
			subscribe(t, c)
			s.SetMembers([]envoy.Member{one, two})
			c.answer(t, expect(t, c, resource.EndpointType, "pool"), &status.Status{Code: 3, Message: "no such thing"})
			s.SetMembers([]envoy.Member{one, three})
			m := expect(t, c, resource.EndpointType, "pool")
			if view := s.Status(); len(view.Envoys) != 1 || view.Envoys[0].Current || !slices.Equal(view.Envoys[0].Faults, []string{"endpoints: no such thing"}) {
				t.Errorf("status %+v", view)
			}
			c.answer(t, m, nil)
			s.SetMembers([]envoy.Member{one})
			c.answer(t, expect(t, c, resource.EndpointType, "pool"), nil)
			if n := s.sent(t, "endpoints"); n != 4 {
				t.Errorf("endpoints were told %d times, want 4", n)
			}
		})
	}
}

// An Envoy that has taken all that was told does not count as current while there is
// a newer list: before it is told, or because it cannot be.
func TestNotCurrentBeforeTheNewestList(t *testing.T) {
	for name, connect := range protocols {
		t.Run(name, func(t *testing.T) {
			s := start(t, envoy.RouteOverrideHost, time.Hour)
			c := connect(t, s)
			s.SetMembers([]envoy.Member{one})
			subscribe(t, c)
			current := func() bool {
				view := s.Status()
				return len(view.Envoys) == 1 && view.Envoys[0].Current
			}
			for !current() {
				if t.Context().Err() != nil {
					t.Fatal("never current")
				}
			}
			s.SetMembers([]envoy.Member{one, member("no address", "none")})
			if current() {
				t.Error("current before a list that cannot be told")
			}
			s.SetMembers([]envoy.Member{one})
			if !current() {
				t.Error("not current with the list that it has")
			}
			s.SetMembers(nil)
			if !current() {
				t.Error("not current after an empty list, which is not told")
			}
		})
	}
}

// Faults of the resources are found before anything is served.
func TestNewNamesFaults(t *testing.T) {
	_, err := xds.New(envoy.Config{}, time.Second, slog.New(slog.DiscardHandler), xds.NewMetrics(prometheus.NewRegistry()))
	for _, part := range []string{"listen: ", "route: ", "body limit: ", "decision deadline: "} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
}
