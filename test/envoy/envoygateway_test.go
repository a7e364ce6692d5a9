package envoy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3" // Envoy Gateway's default
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// What Envoy Gateway's own translator was given is what is printed now: else the
// test below tells nothing of it.
func TestEnvoyGatewayTranslationIsOfTheExample(t *testing.T) {
	policies := func(file string) (list []map[string]any) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for decoder := yaml.NewDecoder(bytes.NewReader(text)); ; {
			var d map[string]any
			if err := decoder.Decode(&d); errors.Is(err, io.EOF) {
				return list
			} else if err != nil {
				t.Fatal(err)
			}
			if version, _ := d["apiVersion"].(string); strings.HasPrefix(version, "gateway.") {
				list = append(list, d)
			}
		}
	}
	translated, printed := policies("testdata/envoy-gateway/policies.yaml"), policies("../../examples/envoy-gateway/manifests.yaml")
	if diff := cmp.Diff(translated, printed); diff != "" || len(printed) < 6 {
		t.Errorf("translate anew, as testdata/envoy-gateway/policies.yaml says (-translated +printed):\n%s", diff)
	}
}

// What Envoy Gateway makes of the printed manifests obeys the choice, and goes on
// without the service.
func TestEnvoyGatewayManifest(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	p := startEnvoyGateway(t, s.address, engines...)
	obeys(t, p, s, engines)

	// A body above Envoy's default limit.
	resp := post(t, p, completion(strings.Repeat("x", 2<<20)))
	if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
		t.Fatalf("long body: %v %s %q", err, resp.status, body)
	}
	next(t, "decision", s.events.decided)
}

// The choice cannot be reached: the next best is.
func TestEnvoyGatewayManifestRetries(t *testing.T) {
	engines := []*engine{deadEngine(t), startEngine(t)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	p := startEnvoyGateway(t, s.address, engines...)
	for range 4 {
		resp := post(t, p, completion("hello"))
		if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %s %q", err, resp.status, body)
		}
	}
}

func TestEnvoyGatewayManifestFailsOpen(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	p := startEnvoyGateway(t, deadEngine(t).address, engines...)
	for range 20 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+"/v1/completions", strings.NewReader(completion("hello")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(envoy.HeaderEndpoint, engines[0].address)
		resp := do(t, req)
		if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %s %q", err, resp.status, body)
		}
	}
	if engines[0].requests.Load() == 0 || engines[1].requests.Load() == 0 {
		t.Errorf("engines got %d and %d of 20 requests", engines[0].requests.Load(), engines[1].requests.Load())
	}
}

// startEnvoyGateway runs the translation with these endpoints, all of it in one
// file in place of xDS.
func startEnvoyGateway(t *testing.T, service string, engines ...*engine) *proxy {
	t.Helper()
	text, err := os.ReadFile("testdata/envoy-gateway/xds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var xds struct{ Clusters, Listeners, Routes []map[string]any }
	if err := yaml.Unmarshal(text, &xds); err != nil {
		t.Fatal(err)
	}
	b := &bootstrapv3.Bootstrap{}
	fromYAML(t, `{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}, static_resources: {}}`, b)
	for _, c := range xds.Clusters {
		cluster := &clusterv3.Cluster{}
		fromObject(t, c, cluster)
		cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		cluster.EdsClusterConfig = nil
		addresses := []string{service}
		if strings.HasPrefix(cluster.GetName(), "httproute/") {
			addresses = nil
			for _, e := range engines {
				addresses = append(addresses, e.address)
			}
		}
		members := &endpointv3.LocalityLbEndpoints{}
		for _, a := range addresses {
			e := &endpointv3.LbEndpoint{}
			fromYAML(t, lbEndpoint(a), e)
			members.LbEndpoints = append(members.LbEndpoints, e)
		}
		cluster.LoadAssignment = &endpointv3.ClusterLoadAssignment{
			ClusterName: cluster.GetName(), Endpoints: []*endpointv3.LocalityLbEndpoints{members},
		}
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, cluster)
	}
	listener, routes := &listenerv3.Listener{}, &routev3.RouteConfiguration{}
	fromObject(t, xds.Listeners[0], listener)
	fromObject(t, xds.Routes[0], routes)
	listener.GetAddress().GetSocketAddress().Address = "127.0.0.1"
	listener.GetAddress().GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{}
	slot, manager := listener.GetDefaultFilterChain().GetFilters()[0], &hcmv3.HttpConnectionManager{}
	if err := slot.GetTypedConfig().UnmarshalTo(manager); err != nil {
		t.Fatal(err)
	}
	if manager.GetRds().GetRouteConfigName() != routes.GetName() {
		t.Fatalf("the listener asks for the routes %q, not %q", manager.GetRds().GetRouteConfigName(), routes.GetName())
	}
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes}
	if err := slot.GetTypedConfig().MarshalFrom(manager); err != nil {
		t.Fatal(err)
	}
	b.StaticResources.Listeners = []*listenerv3.Listener{listener}
	config, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return startEnvoyWith(t, config)
}

func fromObject(t *testing.T, from map[string]any, to proto.Message) {
	t.Helper()
	text, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(text, to); err != nil {
		t.Fatal(err)
	}
}
