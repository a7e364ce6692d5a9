package manifests_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/manifests"
)

// example is good for every kind that speaks TLS as told.
func example(tls bool) manifests.Config {
	return manifests.Config{
		Name: "firsttoken", Namespace: "inference", Labels: map[string]string{"team": "serving"},
		Image: "firsttoken:dev", EnvoyImage: "envoy:dev", File: "endpoints:\n  - address: vllm:8000 # all of them\n",
		Ports: []manifests.Port{{"lmcache-pull", 8300}}, TLS: tls, Grace: 30 * time.Second,
		Mounts:  []manifests.Mount{{"claim", "models", "/models"}, {"secret", "tls", "/tls"}, {"configmap", "x", "/x"}},
		Engines: manifests.Engines{Service: "vllm", Domain: "svc.cluster.local", Port: 8000, Selector: map[string]string{"app": "vllm"}},
		Gateway: manifests.Gateway{Class: "class", Host: "*", Namespace: "istio-system", Selector: map[string]string{"istio": "ingressgateway"}},
		Envoy: envoy.Config{
			Route: envoy.RouteOverrideHost, BodyLimit: 1 << 20, DecisionDeadline: time.Second,
			Endpoints: []envoy.Endpoint{{Address: "vllm.inference:8000"}},
		},
	}
}

// object is a YAML mapping.
type object = map[string]any

func documents(t *testing.T, c manifests.Config, kind manifests.Kind) (all []object) {
	t.Helper()
	text, err := c.Print(kind)
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var d object
		if err := decoder.Decode(&d); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if d != nil {
			all = append(all, d)
		}
	}
}

// at is the value at a path of keys and indices; nil where there is none.
func at(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(object)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				return nil
			}
			v = l[step]
		}
	}
	return v
}

// named finds a document.
func named(all []object, kind, name any) object {
	for _, d := range all {
		if d["kind"] == kind && at(d, "metadata", "name") == name {
			return d
		}
	}
	return nil
}

// walk calls f for every mapping in v, with the key that it is under.
func walk(key string, v any, f func(key string, m object)) {
	switch v := v.(type) {
	case object:
		f(key, v)
		for k, child := range v {
			walk(k, child, f)
		}
	case []any:
		for _, child := range v {
			walk(key, child, f)
		}
	}
}

// What one document says of another is so.
func TestReferences(t *testing.T) {
	for _, kind := range manifests.Kinds {
		t.Run(string(kind), func(t *testing.T) {
			all := documents(t, example(kind == manifests.InferencePool), kind)
			refs := 0
			for _, d := range all {
				where := fmt.Sprint(d["kind"], " ", at(d, "metadata", "name"))
				if ns := at(d, "metadata", "namespace"); ns != "inference" && d["kind"] != "EnvoyFilter" {
					t.Errorf("%s is in %v", where, ns)
				}
				if at(d, "metadata", "labels", "team") != "serving" {
					t.Errorf("%s is without the label", where)
				}
				walk("", d["spec"], func(key string, m object) {
					if !slices.Contains([]string{"targetRefs", "parentRefs", "backendRefs", "endpointPickerRef", "parametersRef"}, key) || m["name"] == nil {
						return
					}
					refs++
					kind := m["kind"]
					if kind == nil {
						kind = map[string]any{"parentRefs": "Gateway", "backendRefs": "Service"}[key]
					}
					to := named(all, kind, m["name"])
					if to == nil {
						t.Errorf("%s: %s names %v %v, which is not there", where, key, kind, m["name"])
						return
					}
					port := m["port"]
					if number := at(port, "number"); number != nil {
						port = number
					}
					if port != nil && !hasPort(to, port) {
						t.Errorf("%s: %v %v has no port %v", where, kind, m["name"], port)
					}
				})
				switch d["kind"] {
				case "Deployment":
					refs += checkDeployment(t, all, d)
				case "Service":
					refs += checkService(t, all, d)
				case "NetworkPolicy":
					refs += checkNetworkPolicy(t, all, d)
				case "VirtualService", "DestinationRule", "EnvoyFilter":
					refs += checkIstio(t, all, d)
				}
			}
			if refs < 8 {
				t.Errorf("only %d references were found", refs)
			}
		})
	}
}

func hasPort(service object, port any) bool {
	for i := 0; ; i++ {
		switch at(service, "spec", "ports", i, "port") {
		case port:
			return true
		case nil:
			return false
		}
	}
}

func checkDeployment(t *testing.T, all []object, d object) (refs int) {
	t.Helper()
	pod := at(d, "spec", "template", "spec")
	if named(all, "ServiceAccount", at(pod, "serviceAccountName")) == nil {
		t.Error("the account is not there")
	}
	for key, value := range at(d, "spec", "selector", "matchLabels").(object) {
		if at(d, "spec", "template", "metadata", "labels", key) != value {
			t.Errorf("the pods are not selected by %s", key)
		}
	}
	var volumes []any
	for _, v := range at(pod, "volumes").([]any) {
		volumes = append(volumes, at(v, "name"))
		if name := at(v, "configMap", "name"); name != nil && name != "x" && named(all, "ConfigMap", name) == nil {
			t.Errorf("there is no ConfigMap %v", name)
		}
		refs++
	}
	for _, container := range at(pod, "containers").([]any) {
		for _, m := range at(container, "volumeMounts").([]any) {
			if !slices.Contains(volumes, at(m, "name")) {
				t.Errorf("there is no volume %v", at(m, "name"))
			}
			refs++
		}
	}
	return refs
}

func checkService(t *testing.T, all []object, d object) (refs int) {
	t.Helper()
	if at(d, "spec", "clusterIP") == "None" {
		return 0 // the engines are somebody else's
	}
	ports := portsOf(named(all, "Deployment", at(d, "spec", "selector", "app.kubernetes.io/name")))
	for _, p := range at(d, "spec", "ports").([]any) {
		if !slices.Contains(ports, at(p, "targetPort")) {
			t.Errorf("no container has the port %v", at(p, "targetPort"))
		}
		refs++
	}
	return refs
}

// portsOf are the names of the ports of a Deployment's containers.
func portsOf(deployment object) (ports []any) {
	walk("", deployment, func(_ string, m object) {
		if m["containerPort"] != nil {
			ports = append(ports, m["name"])
		}
	})
	return ports
}

// checkNetworkPolicy finds every port of the pod open to all, but for admin.
func checkNetworkPolicy(t *testing.T, all []object, d object) (refs int) {
	t.Helper()
	want := portsOf(named(all, "Deployment", at(d, "spec", "podSelector", "matchLabels", "app.kubernetes.io/name")))
	if at(d, "spec", "policyTypes", 0) != "Ingress" || len(want) < 3 {
		t.Errorf("the policy is of %v, for a pod with the ports %v", at(d, "spec", "policyTypes"), want)
	}
	for _, rule := range at(d, "spec", "ingress").([]any) {
		for _, p := range at(rule, "ports").([]any) {
			name := at(p, "port")
			i := slices.Index(want, name)
			if i < 0 {
				t.Errorf("no container has the port %v", name)
				continue
			}
			want = slices.Delete(want, i, i+1)
			label := at(rule, "from", 0, "namespaceSelector", "matchLabels", "firsttoken/admin")
			if wide := at(rule, "from") == nil; wide != (name != "admin") || !wide && label != "true" {
				t.Errorf("the port %v is open to %v", name, at(rule, "from"))
			}
			refs++
		}
	}
	if len(want) > 0 {
		t.Errorf("nobody reaches the ports %v", want)
	}
	return refs
}

// Of two installations at one gateway of Istio neither overwrites the other, nor
// is its filter switched on by the other's route.
func TestTwoAtOneIstio(t *testing.T) {
	seen := map[any]string{}
	for _, c := range []struct{ name, namespace string }{{"firsttoken", "a"}, {"firsttoken", "b"}, {"other", "a"}} {
		config := example(false)
		config.Name, config.Namespace = c.name, c.namespace
		where := c.namespace + "/" + c.name
		var filter, switches any
		for _, d := range documents(t, config, manifests.Istio) {
			if d["kind"] != "EnvoyFilter" {
				continue
			}
			if name := at(d, "metadata", "name"); seen[name] != "" {
				t.Errorf("%s and %s both print the EnvoyFilter %v", seen[name], where, name)
			}
			seen[at(d, "metadata", "name")] = where
			for _, p := range at(d, "spec", "configPatches").([]any) {
				switch at(p, "applyTo") {
				case "HTTP_FILTER":
					filter = at(p, "patch", "value", "name")
				case "HTTP_ROUTE":
					for key := range at(p, "patch", "value", "typed_per_filter_config").(object) {
						switches = key
					}
				}
			}
		}
		if other := seen[[2]any{filter}]; filter == nil || filter != switches || other != "" {
			t.Errorf("%s: the filter is %v, as that of %q; the route switches on %v", where, filter, other, switches)
		}
		seen[[2]any{filter}] = where
	}
}

// Clients are told as much by Envoy Gateway as by every other Envoy.
func TestEnvoyGatewayTellsClients(t *testing.T) {
	text, err := example(false).Print(manifests.EnvoyGateway)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{envoy.HeaderServed, envoy.HeaderReason, envoy.HeaderID, envoy.HeaderArm} {
		if !strings.Contains(string(text), "- name: "+header+"\n") {
			t.Errorf("no answer has %s", header)
		}
	}
}

// checkIstio looks for Services by their whole names, and for routes by theirs.
func checkIstio(t *testing.T, all []object, d object) (refs int) {
	t.Helper()
	service := func(host any) object {
		name, _ := strings.CutSuffix(fmt.Sprint(host), ".inference.svc.cluster.local")
		s := named(all, "Service", name)
		if s == nil {
			t.Errorf("%v: there is no Service %v", d["kind"], host)
		}
		refs++
		return s
	}
	walk("", d["spec"], func(key string, m object) {
		switch {
		case m["host"] != nil:
			if s, port := service(m["host"]), at(m, "port", "number"); port != nil && !hasPort(s, port) {
				t.Errorf("%v has no port %v", m["host"], port)
			}
		case key == "cluster", key == "envoy_grpc":
			name := m["name"]
			if key == "envoy_grpc" {
				name = m["cluster_name"]
			}
			part := strings.Split(fmt.Sprint(name), "|")
			port, err := strconv.Atoi(part[1])
			if s := service(part[3]); err != nil || !hasPort(s, port) {
				t.Errorf("%v has no port %v (%v)", part[3], part[1], err)
			}
		case key == "route" && m["name"] != nil:
			if m["name"] != at(named(all, "VirtualService", "firsttoken"), "spec", "http", 0, "name") {
				t.Errorf("no route is named %v", m["name"])
			}
			refs++
		}
	})
	return refs
}

// The configuration is there as it was written.
func TestFileIsKept(t *testing.T) {
	c := example(false)
	all := documents(t, c, manifests.Istio)
	if got := at(named(all, "ConfigMap", "firsttoken"), "data", "firsttoken.yml"); got != c.File {
		t.Errorf("got %q", got)
	}
}

// Every fault is named, with what to write.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   manifests.Kind
		change func(*manifests.Config)
		want   string
	}{
		{"kind", "helm", func(*manifests.Config) {}, `kind: "helm" is unknown`},
		{"name", manifests.Istio, func(c *manifests.Config) { c.Name = "First Token" }, `name: "First Token" is no name`},
		{"namespace", manifests.Istio, func(c *manifests.Config) { c.Namespace = "a.b" }, `namespace: "a.b" is no name`},
		{"image", manifests.Sidecar, func(c *manifests.Config) { c.EnvoyImage = "" }, "image: is empty"},
		{"no engines", manifests.EnvoyGateway, func(c *manifests.Config) { c.Engines = manifests.Engines{} }, "engines: there is no Service"},
		{"no selector", manifests.Sidecar, func(c *manifests.Config) { c.Engines.Selector = nil }, "engines: there is no selector"},
		{"same name", manifests.Istio, func(c *manifests.Config) { c.Name = "vllm" }, `has the name of ours, "vllm"`},
		{"no TLS", manifests.InferencePool, func(*manifests.Config) {}, "server.tls.enabled: is false"},
		{"TLS", manifests.EnvoyGateway, func(c *manifests.Config) { c.TLS = true }, "server.tls.enabled: is true"},
		{"TLS on a socket", manifests.Sidecar, func(c *manifests.Config) { c.TLS = true }, "server.tls.enabled: is true, but a sidecar's"},
		{"no class", manifests.EnvoyGateway, func(c *manifests.Config) { c.Gateway.Class = "" }, "gateway class: is empty"},
		{"no gateway", manifests.Istio, func(c *manifests.Config) { c.Gateway.Selector = nil }, "gateway: give the namespace"},
		{"no deadline", manifests.Istio, func(c *manifests.Config) { c.Envoy.DecisionDeadline = 0 }, "decision deadline: is 0s"},
		{"no limit", manifests.EnvoyGateway, func(c *manifests.Config) { c.Envoy.BodyLimit = 0 }, "body limit: is 0"},
		{"no endpoints", manifests.Sidecar, func(c *manifests.Config) { c.Envoy.Endpoints = nil }, "endpoints: there is none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := example(false)
			c.change(&config)
			if _, err := config.Print(c.kind); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestParseMount(t *testing.T) {
	got, err := manifests.ParseMount("claim/models:/models/")
	if want := (manifests.Mount{Source: "claim", Object: "models", Path: "/models"}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "claim/models", "claim/models:models", "host/x:/x", "secret/:/x", "claim:/x"} {
		if m, err := manifests.ParseMount(text); err == nil || !strings.Contains(err.Error(), "write claim/NAME:/path") {
			t.Errorf("%q: %+v, %v", text, m, err)
		}
	}
}
