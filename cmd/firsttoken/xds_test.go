package main

import (
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
)

// What the service knows of its endpoints is what Envoys are told.
func TestServeXDS(t *testing.T) {
	good, leaving := fakeEngine(t, `{"data":[{"id":"m"}]}`), fakeEngine(t, `{"data":[{"id":"m"}]}`)
	const dead = "127.0.0.1:1"
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.XDS.Listen = "127.0.0.1:0"
	cfg.Endpoints = []discovery.Entry{{Address: good}, {Address: leaving, Drain: true}, {Address: dead}}
	b := startService(t, cfg)

	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(dial(t, b.XDS)).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	request := &discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "edge"}, TypeUrl: resource.EndpointType, ResourceNames: []string{"pool"}}
	want := map[string]corev3.HealthStatus{
		good: corev3.HealthStatus_HEALTHY, leaving: corev3.HealthStatus_DRAINING, dead: corev3.HealthStatus_UNHEALTHY,
	}
	for told := false; !told; { // until the dead one was probed
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		assignment := new(endpointv3.ClusterLoadAssignment)
		if err := answer.GetResources()[0].UnmarshalTo(assignment); err != nil {
			t.Fatal(err)
		}
		got := assignment.GetEndpoints()[0].GetLbEndpoints()
		told = len(got) == len(want)
		for _, e := range got {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			told = told && e.GetHealthStatus() == want[net.JoinHostPort(a.GetAddress(), strconv.Itoa(int(a.GetPortValue())))]
		}
		request.VersionInfo, request.ResponseNonce = answer.GetVersionInfo(), answer.GetNonce()
	}

	var view status
	get(t, b, "/status", &view)
	if view.XDS == nil || view.XDS.Members != 3 || len(view.XDS.Envoys) != 1 || view.XDS.Envoys[0].Node != "edge" {
		t.Errorf("status %+v", view.XDS)
	}
	if !view.Fleet[1].Draining || view.Fleet[1].Ready {
		t.Errorf("the draining endpoint: %+v", view.Fleet[1])
	}
}

// Both ports for Envoy speak TLS where the configuration says so.
func TestServeTLS(t *testing.T) {
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.XDS.Listen, cfg.XDS.TLS.Enabled, cfg.Server.TLS.Enabled = "127.0.0.1:0", true, true
	cfg.Endpoints = []discovery.Entry{{Address: fakeEngine(t, `{"data":[{"id":"m"}]}`)}}
	b := startService(t, cfg)
	connect := func(address string) *grpc.ClientConn {
		t.Helper()
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	awaitServing(t, connect(b.Listen))
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(connect(b.XDS)).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "edge"}, TypeUrl: resource.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	var view status
	get(t, b, "/status", &view)
	if view.TLS == nil || !view.TLS.SelfSigned || view.XDSTLS == nil {
		t.Errorf("status %+v %+v", view.TLS, view.XDSTLS)
	}
}

// An https endpoint keeps the name of its certificate, though it is told by its
// address; what the operator drains is draining, whatever its probes say.
func TestMembers(t *testing.T) {
	far := discovery.Status{TLS: true, Host: "engine.example"}
	far.Endpoint.Address, far.Endpoint.Cluster, far.Endpoint.Ready = "10.0.0.1:443", "far", true
	down := discovery.Status{Host: "10.0.0.2", Probed: time.Unix(1, 0)}
	down.Endpoint.Address = "10.0.0.2:8000"
	drained := down
	drained.Draining = true
	got := members([]discovery.Status{far, down, drained})
	want := []envoy.Member{
		{Address: "10.0.0.1:443", Cluster: "far", TLS: true, Host: "engine.example", Health: envoy.Healthy},
		{Address: "10.0.0.2:8000", Host: "10.0.0.2", Health: envoy.Unhealthy},
		{Address: "10.0.0.2:8000", Host: "10.0.0.2", Health: envoy.Draining},
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
}

// A name of SRV records has a cluster too, which must be nobody else's.
func TestClustersOfSRVNames(t *testing.T) {
	cfg := defaultConfig()
	cfg.XDS.Listen, cfg.XDS.Route = "127.0.0.1:0", string(envoy.RouteClusterHeader)
	cfg.Endpoints = []discovery.Entry{
		{Address: "http+srv://pool"},
		{Address: "10.0.0.1:8000", Cluster: "a"},
		{Address: "http+srv://engines.example", Name: "a"},
	}
	err := cfg.validateXDS()
	for _, want := range []string{`endpoints[0].cluster: "pool" is that of the pool`, `endpoints[2].cluster: "a" is that of endpoints[1]`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
