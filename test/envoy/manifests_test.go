package envoy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3" // in Istio's gateway
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/manifests"
	"github.com/firsttoken/firsttoken/scoring"
)

// inPods is a configuration for manifests with the engines' addresses.
func inPods(engines ...*engine) manifests.Config {
	c := manifests.Config{
		Name: "firsttoken", Namespace: "inference", Image: "firsttoken:dev", EnvoyImage: "envoy:dev", File: "{}", Grace: time.Second,
		Engines: manifests.Engines{Service: "vllm", Domain: "svc.cluster.local", Port: 8000, Selector: map[string]string{"app": "vllm"}},
		Gateway: manifests.Gateway{Class: "c", Host: "*", Namespace: "istio-system", Selector: map[string]string{"istio": "ingressgateway"}},
		Envoy:   envoy.Config{BodyLimit: bodyLimit, DecisionDeadline: patience, Route: envoy.RouteOverrideHost},
	}
	for _, e := range engines {
		c.Envoy.Endpoints = append(c.Envoy.Endpoints, envoy.Endpoint{Address: e.address})
	}
	return c
}

// printed is the document of a kind and name.
func printed(t *testing.T, c manifests.Config, of manifests.Kind, kind, name string) map[string]any {
	t.Helper()
	text, err := c.Print(of)
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var d map[string]any
		if err := decoder.Decode(&d); errors.Is(err, io.EOF) {
			t.Fatalf("no %s %s in\n%s", kind, name, text)
		} else if err != nil {
			t.Fatal(err)
		}
		if meta, _ := d["metadata"].(map[string]any); d["kind"] == kind && meta["name"] == name {
			return d
		}
	}
}

// The sidecar's Envoy, as the ConfigMap has it, with the socket and the ports
// that a test can have.
func TestSidecarManifest(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	config := printed(t, inPods(engines...), manifests.Sidecar, "ConfigMap", "firsttoken-envoy")["data"].(map[string]any)["envoy.yaml"].(string)
	socket := filepath.Join(t.TempDir(), "s")
	for from, to := range map[string]string{
		"/run/firsttoken/choices.sock": socket, "port_value: 8080": "port_value: 0", "port_value: 9901": "port_value: 0", "0.0.0.0": "127.0.0.1",
	} {
		if strings.Count(config, from) != 1 {
			t.Fatalf("%q is not there once:\n%s", from, config)
		}
		config = strings.Replace(config, from, to, 1)
	}
	l, err := extproc.Listen(t.Context(), "unix:"+socket)
	if err != nil {
		t.Fatal(err)
	}
	s := startServiceOn(t, l, scoring.PolicyRoundRobin, engines...)
	p := startEnvoyWith(t, []byte(config))
	obeys(t, p, s, engines)
}

// obeys checks that each choice is obeyed, told to the client, and that its first
// token and end are heard of.
func obeys(t *testing.T, p *proxy, s *service, engines []*engine) {
	t.Helper()
	for range 2 * len(engines) {
		resp := post(t, p, completion("hello"))
		d := next(t, "decision", s.events.decided)
		if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %s %q", err, resp.status, body)
		}
		next(t, "first token", s.events.firstToken)
		if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete || end.served != d.Endpoint().Address {
			t.Errorf("ended %+v, want complete at %s", end, d.Endpoint().Address)
		}
		if got := resp.header.Get(envoy.HeaderServed); got != d.Endpoint().Address {
			t.Errorf("served by %s, chosen %s", got, d.Endpoint().Address)
		}
		if got := resp.header.Get(envoy.HeaderReason); got != string(d.Reason) {
			t.Errorf("reason %q, want %q", got, d.Reason)
		}
	}
	for _, e := range engines {
		if got := e.requests.Load(); got != 2 {
			t.Errorf("engine %s got %d requests, want 2", e.address, got)
		}
	}
}

// gatewayOfIstio is what Istio 1.31 writes for its ingress gateway from the
// printed Gateway, VirtualService and DestinationRules, as far as our patches
// touch it, and a route of somebody else's. Endpoints are static, not from EDS.
const gatewayOfIstio = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: 0.0.0.0_8080
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    per_connection_buffer_limit_bytes: 32768
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outbound_0.0.0.0_8080
          use_remote_address: true
          route_config:
            name: http.8080
            virtual_hosts:
            - name: "*:80"
              domains: ["*"]
              routes:
              - name: theirs
                match: {prefix: /theirs}
                route: {cluster: "outbound|8000||vllm.inference.svc.cluster.local"}
              - name: firsttoken.inference
                match: {prefix: /}
                route: {cluster: "outbound|8000||vllm.inference.svc.cluster.local", timeout: 0s, max_grpc_timeout: 0s}
          http_filters:
          - name: envoy.filters.http.cors
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: outbound|8000||vllm.inference.svc.cluster.local
    type: STATIC
    connect_timeout: 10s
    lb_policy: LEAST_REQUEST
    common_lb_config: {}
    circuit_breakers: {thresholds: [{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000, track_remaining: true}]}
    load_assignment: {cluster_name: "outbound|8000||vllm.inference.svc.cluster.local", endpoints: [{lb_endpoints: [%s]}]}
  - name: outbound|9002||firsttoken.inference.svc.cluster.local
    type: STATIC
    connect_timeout: 10s
    lb_policy: LEAST_REQUEST
    common_lb_config: {}
    circuit_breakers: {thresholds: [{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000, track_remaining: true}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: "outbound|9002||firsttoken.inference.svc.cluster.local", endpoints: [{lb_endpoints: [%s]}]}
`

// startIstio runs the gateway with the printed EnvoyFilter put into it as Istio
// does: matched by name, merged as messages.
func startIstio(t *testing.T, s *service, engines ...*engine) *proxy {
	t.Helper()
	addresses := make([]string, 0, len(engines))
	for _, e := range engines {
		addresses = append(addresses, lbEndpoint(e.address))
	}
	b := &bootstrapv3.Bootstrap{}
	fromYAML(t, fmt.Sprintf(gatewayOfIstio, strings.Join(addresses, ", "), lbEndpoint(s.address)), b)
	filter := printed(t, inPods(engines...), manifests.Istio, "EnvoyFilter", "firsttoken.inference")
	applied := map[string]int{}
	for _, p := range filter["spec"].(map[string]any)["configPatches"].([]any) {
		patch := istioPatch{t, p.(map[string]any)}
		applied[patch.m["applyTo"].(string)] += patch.apply(b)
	}
	for kind, want := range map[string]int{"LISTENER": 1, "NETWORK_FILTER": 1, "HTTP_FILTER": 1, "HTTP_ROUTE": 1, "CLUSTER": 2} {
		if applied[kind] != want {
			t.Errorf("%d patches of %s were applied, want %d", applied[kind], kind, want)
		}
	}
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return startEnvoyWith(t, text)
}

func lbEndpoint(address string) string {
	host, port, _ := strings.Cut(address, ":")
	return fmt.Sprintf("{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}", host, port)
}

// istioPatch is one of configPatches.
type istioPatch struct {
	t *testing.T
	m map[string]any
}

// apply is how often it was applied.
func (p istioPatch) apply(b *bootstrapv3.Bootstrap) (n int) {
	listener := b.GetStaticResources().GetListeners()[0]
	slot := listener.GetFilterChains()[0].GetFilters()[0]
	manager := &hcmv3.HttpConnectionManager{}
	if err := slot.GetTypedConfig().UnmarshalTo(manager); err != nil {
		p.t.Fatal(err)
	}
	chain := p.matched("listener", "filterChain", "filter")
	switch kind := p.m["applyTo"]; kind {
	case "LISTENER":
		p.merge("MERGE", listener, &listenerv3.Listener{})
		return 1
	case "NETWORK_FILTER":
		if chain["name"] != slot.GetName() {
			return 0
		}
		value := &listenerv3.Filter{}
		p.merge("MERGE", &listenerv3.Filter{}, value)
		more := &hcmv3.HttpConnectionManager{}
		if err := value.GetTypedConfig().UnmarshalTo(more); err != nil {
			p.t.Fatal(err)
		}
		proto.Merge(manager, more)
		n = 1
	case "HTTP_FILTER":
		before, _ := chain["subFilter"].(map[string]any)
		i := slices.IndexFunc(manager.GetHttpFilters(), func(f *hcmv3.HttpFilter) bool { return f.GetName() == before["name"] })
		if chain["name"] != slot.GetName() || i < 0 {
			return 0
		}
		value := &hcmv3.HttpFilter{}
		p.merge("INSERT_BEFORE", &hcmv3.HttpFilter{}, value)
		manager.HttpFilters = slices.Insert(manager.GetHttpFilters(), i, value)
		n = 1
	case "HTTP_ROUTE":
		for _, r := range manager.GetRouteConfig().GetVirtualHosts()[0].GetRoutes() {
			if p.matched("routeConfiguration", "vhost", "route")["name"] == r.GetName() {
				p.merge("MERGE", r, &routev3.Route{})
				n++
			}
		}
	case "CLUSTER":
		for _, c := range b.GetStaticResources().GetClusters() {
			if p.matched("cluster")["name"] == c.GetName() {
				p.merge("MERGE", c, &clusterv3.Cluster{})
				n++
			}
		}
	default:
		p.t.Fatalf("applyTo: %v", kind)
	}
	if err := slot.GetTypedConfig().MarshalFrom(manager); err != nil {
		p.t.Fatal(err)
	}
	return n
}

// matched is what of a gateway is matched, below a path.
func (p istioPatch) matched(path ...string) map[string]any {
	at, _ := p.m["match"].(map[string]any)
	if at["context"] != "GATEWAY" {
		p.t.Errorf("context %v", at["context"])
	}
	for _, key := range path {
		at, _ = at[key].(map[string]any)
	}
	return at
}

// merge reads the patch's value into value and merges it into to.
func (p istioPatch) merge(operation string, to, value proto.Message) {
	p.t.Helper()
	patch := p.m["patch"].(map[string]any)
	if patch["operation"] != operation {
		p.t.Errorf("%v: operation %v, want %s", p.m["applyTo"], patch["operation"], operation)
	}
	text, err := json.Marshal(patch["value"])
	if err != nil {
		p.t.Fatal(err)
	}
	if err := protojson.Unmarshal(text, value); err != nil {
		p.t.Fatalf("%v: %v", p.m["applyTo"], err)
	}
	proto.Merge(to, value)
}

func fromYAML(t *testing.T, text string, to proto.Message) {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	fromObject(t, v, to)
}

// The printed EnvoyFilter does its work, and leaves other routes alone.
func TestIstioManifest(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	p := startIstio(t, s, engines...)
	obeys(t, p, s, engines)

	// A body above Istio's own limits.
	resp := post(t, p, completion(strings.Repeat("x", 2<<20)))
	if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
		t.Fatalf("long body: %v %s %q", err, resp.status, body)
	}
	next(t, "decision", s.events.decided)
	next(t, "end", s.events.ended)

	// Somebody else's route is not asked about, and no end of it is told.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.clients+"/theirs", strings.NewReader(completion("hello")))
	if err != nil {
		t.Fatal(err)
	}
	if theirs := do(t, req); theirs.code != http.StatusOK || theirs.header.Get(envoy.HeaderID) != "" {
		t.Errorf("theirs: %s %v", theirs.status, theirs.header)
	} else if _, err := io.ReadAll(theirs.body); err != nil {
		t.Error(err)
	}
	none(t, "decision for another route", s.events.decided)
}

// Without the service the gateway goes on, and clients cannot choose for it.
func TestIstioManifestFailsOpen(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	s := &service{address: deadEngine(t).address}
	p := startIstio(t, s, engines...)
	eventually(t, "Envoy knows that the service is gone", func() bool {
		return p.stat(t, "cluster.outbound|9002||firsttoken.inference.svc.cluster.local.membership_healthy") == 0
	})
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
