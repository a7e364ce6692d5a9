package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// Where Envoy chooses by itself, an engine that does a part of requests gets
// none either: it is in no pool, of either kind of configuration.
func TestRolesAreInNoPool(t *testing.T) {
	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{
		{Address: "10.0.0.1:8000", Role: "prefill"}, {Address: "10.0.0.2:8000", Role: "both"}, {Address: "10.0.0.3:8000", Role: "decode"}, {Address: "10.0.0.4:8000"},
	}
	text, err := staticBootstrap(cfg, envoy.Config{
		Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Service: "127.0.0.1:9002", Route: envoy.RouteOverrideHost,
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []discovery.Status
	for _, e := range cfg.Endpoints {
		in := strings.Contains(string(text), strings.TrimSuffix(e.Address, ":8000"))
		if in != (e.RoleOf() == scoring.RoleBoth) {
			t.Errorf("%s, role %q: in Envoy's config %t", e.Address, e.Role, in)
		}
		told = append(told, discovery.Status{Endpoint: scoring.Endpoint{Address: e.Address, Role: e.RoleOf(), Ready: true}})
	}
	var addresses []string
	for _, m := range members(told) {
		addresses = append(addresses, m.Address)
	}
	if want := []string{"10.0.0.2:8000", "10.0.0.4:8000"}; !slices.Equal(addresses, want) {
		t.Errorf("xDS tells %q, want %q", addresses, want)
	}
}
