package envoy_test

import (
	"io"
	"net"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	overridev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/firsttoken/firsttoken/certificate"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// A gateway with an InferencePool: TLS that verifies nothing, full duplex both
// ways, no access log, and the choice read from the header or from metadata.
func TestPickerOfInferencePool(t *testing.T) {
	for i, source := range []string{"header", "metadata"} {
		t.Run(source, func(t *testing.T) {
			engines := []*engine{startEngine(t), startEngine(t)}
			s := startSecureService(t, certificate.Config{Enabled: true}, engines...)
			cfg := config(s, engines...)
			_, port, err := net.SplitHostPort(s.address)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Service, cfg.ServiceTLS = net.JoinHostPort("127.0.0.1", port), &envoy.PortTLS{}
			p := startInferencePool(t, withModes(t, cfg, "FULL_DUPLEX_STREAMED", "SEND", "FULL_DUPLEX_STREAMED"), i)
			for _, prompt := range []string{"a short one", strings.Repeat("a long one ", 100_000), "once more", "and again"} {
				resp := post(t, p, completion(prompt))
				if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
					t.Fatalf("answer: %v %s %q", err, resp.status, body)
				}
				d := next(t, "decision", s.events.decided)
				if got := resp.header.Get(envoy.HeaderServed); got != d.Endpoint().Address {
					t.Errorf("served by %s, chosen %s", got, d.Endpoint().Address)
				}
				next(t, "first token", s.events.firstToken)
				if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete {
					t.Errorf("ended %+v", end)
				}
			}
		})
	}
}

// startInferencePool runs config without access log, and with one of the sources
// that its balancer reads choices from.
func startInferencePool(t *testing.T, config []byte, source int) *proxy {
	t.Helper()
	b := &bootstrapv3.Bootstrap{}
	fromYAML(t, string(config), b)
	slot, manager := b.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0], &hcmv3.HttpConnectionManager{}
	if err := slot.GetTypedConfig().UnmarshalTo(manager); err != nil {
		t.Fatal(err)
	}
	manager.AccessLog = nil
	if err := slot.GetTypedConfig().MarshalFrom(manager); err != nil {
		t.Fatal(err)
	}
	for _, c := range b.GetStaticResources().GetClusters() {
		if c.GetName() != "pool" {
			continue
		}
		extension, policy := c.GetLoadBalancingPolicy().GetPolicies()[0].GetTypedExtensionConfig(), &overridev3.OverrideHost{}
		if err := extension.GetTypedConfig().UnmarshalTo(policy); err != nil {
			t.Fatal(err)
		}
		policy.OverrideHostSources = policy.GetOverrideHostSources()[source : source+1]
		if err := extension.GetTypedConfig().MarshalFrom(policy); err != nil {
			t.Fatal(err)
		}
	}
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return startEnvoyWith(t, text)
}
