package envoy_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/firsttoken/firsttoken/envoy"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// example is a config with addresses, a name and both kinds of https endpoint.
func example() envoy.Config {
	return envoy.Config{
		Listen: "0.0.0.0:8080", Admin: "127.0.0.1:9901", Service: "127.0.0.1:9002", BodyLimit: 32 << 20, DecisionDeadline: 500 * time.Millisecond, Route: envoy.RouteOverrideHost,
		Endpoints: []envoy.Endpoint{
			{Address: "10.0.0.1:8000"},
			{Address: "[2001:db8::1]:8000"},
			{Address: "engine.example.com:443", TLS: true, Cluster: "far"},
			{Address: "10.0.0.3:8443", TLS: true},
		},
	}
}

// What is printed is kept, so that a change of it is read by a person.
func TestBootstrap(t *testing.T) {
	for _, route := range []envoy.Route{envoy.RouteOverrideHost, envoy.RouteClusterHeader} {
		t.Run(string(route), func(t *testing.T) {
			c := example()
			c.Route = route
			got, err := envoy.Bootstrap(c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, string(route)+".yaml", got)
		})
	}
}

// The same with what else can be asked for: a standby, bodies in full duplex, and
// rescue.
func TestBootstrapVariants(t *testing.T) {
	for name, change := range map[string]func(*envoy.Config){
		"standby": func(c *envoy.Config) {
			c.Standby, c.ServiceTLS = []string{"firsttoken-2.example.com:9002"}, &envoy.PortTLS{CAFile: "/ca.pem"}
		},
		"full-duplex": func(c *envoy.Config) { c.BodyMode = envoy.BodyFullDuplex },
		"canary": func(c *envoy.Config) {
			c.Canary = &envoy.Canary{Percent: 20, Header: "X-Canary: on", UserHeader: "X-User"}
			c.Rescue = &envoy.Rescue{Longest: time.Minute}
		},
		"rescue": func(c *envoy.Config) { c.Rescue = &envoy.Rescue{Longest: time.Minute} },
	} {
		t.Run(name, func(t *testing.T) {
			c := example()
			change(&c)
			got, err := envoy.Bootstrap(c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".yaml", got)
		})
	}
}

// The same for the bootstrap of an Envoy that asks for the rest.
func TestDynamicBootstrap(t *testing.T) {
	for _, protocol := range []envoy.Protocol{envoy.StateOfTheWorld, envoy.Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			got, err := envoy.DynamicBootstrap(
				envoy.Config{Admin: "127.0.0.1:9901", Service: "unix:/run/firsttoken/extproc.sock"},
				envoy.Management{Address: "firsttoken.example.com:9003", Protocol: protocol, Node: "envoy-1"},
			)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "xds-"+string(protocol)+".yaml", got)
		})
	}
	got, err := envoy.DynamicBootstrap(
		envoy.Config{Admin: "127.0.0.1:9901", Service: "10.0.1.1:9002", Standby: []string{"10.0.1.2:9002"}},
		envoy.Management{Address: "10.0.1.1:9003", Standby: []string{"10.0.1.2:9003"}, Protocol: envoy.StateOfTheWorld, Node: "envoy-1"},
	)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "xds-standby.yaml", got)
	_, err = envoy.DynamicBootstrap(envoy.Config{}, envoy.Management{})
	for _, part := range []string{"admin: ", "service: ", "xDS server: ", "xDS protocol: ", "node: "} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
}

// The same for an Envoy that only shows the service its requests.
func TestShadowBootstrap(t *testing.T) {
	shadow := &envoy.Shadow{Balancer: envoy.LeastRequest, Streams: envoy.DefaultShadowStreams}
	for name, change := range map[string]func(*envoy.Config){
		"shadow": func(c *envoy.Config) { c.Shadow = shadow },
		"shadow-router": func(c *envoy.Config) {
			c.Shadow = &envoy.Shadow{Balancer: envoy.RoundRobin, Router: "router:8001", Streams: 5}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := example()
			change(&c)
			got, err := envoy.Bootstrap(c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".yaml", got)
		})
	}
	t.Run("snippet", func(t *testing.T) {
		got, err := envoy.ShadowSnippet(envoy.Config{Service: "127.0.0.1:9002", Shadow: shadow})
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "shadow-snippet.yaml", got)
	})
	bad := example()
	bad.Route, bad.Shadow = envoy.RouteClusterHeader, &envoy.Shadow{Balancer: "best", Router: "x", Streams: -1}
	_, err := envoy.Bootstrap(bad)
	for _, want := range []string{`shadow: balancer "best" is unknown`, "shadow: -1 streams", `shadow: router: "x" is no address`, "shadow: nobody is told a choice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

// golden compares got with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("run with -update and read the difference (-want +got):\n%s", diff)
	}
}

// Every fault is named, with the value and what to write.
func TestBootstrapFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*envoy.Config)
		want   []string
	}{
		{"nothing set", func(c *envoy.Config) { *c = envoy.Config{} }, []string{"listen: ", "admin: ", "service: ", "decision deadline: ", "body limit: ", "route: ", "endpoints: "}},
		{"no port", func(c *envoy.Config) { c.Listen = "0.0.0.0" }, []string{`listen: "0.0.0.0" is no address`}},
		{"named port", func(c *envoy.Config) { c.Service = "host:grpc" }, []string{`service: "host:grpc" has no numeric port`}},
		{"bad standby", func(c *envoy.Config) { c.Standby = []string{"x"} }, []string{`standby: "x" is no address`}},
		{"standby twice", func(c *envoy.Config) { c.Standby = []string{c.Service} }, []string{"standby: 127.0.0.1:9002 is named twice"}},
		{"socket and name", func(c *envoy.Config) {
			c.Service, c.Standby = "unix:/run/s", []string{"host:9002"}
		}, []string{"unix:/run/s is a file and host:9002 a name"}},
		{"body mode", func(c *envoy.Config) { c.BodyMode = "streamed" }, []string{`body mode: "streamed" is unknown`}},
		{"log cluster", func(c *envoy.Config) {
			c.Route, c.Endpoints[0].Cluster = envoy.RouteClusterHeader, "firsttoken-log-1"
		}, []string{`cluster "firsttoken-log-1" is that of the access log of a service`}},
		{"a canary that is none", func(c *envoy.Config) { c.Canary = &envoy.Canary{Percent: 101, Header: ": on", UserHeader: "x user"} }, []string{"canary.percent: is 101", `canary.header: ": on" is no header`, `canary.user_header: "x user" is no header's name`}},
		{"headers that never match", func(c *envoy.Config) {
			c.Canary = &envoy.Canary{Header: "X-FirstToken-Try: on", UserHeader: "X-Gateway-Destination-Endpoint"}
		}, []string{"canary.header: Envoy removes clients' headers that begin with x-firsttoken-", "canary.user_header: Envoy removes clients' headers that begin with x-gateway-destination-endpoint"}},
		{"headers that never match with rescue", func(c *envoy.Config) {
			c.Canary = &envoy.Canary{Header: "x-envoy-max-retries", UserHeader: "x-envoy-upstream-alt-stat-name"}
		}, []string{"canary.header: Envoy removes clients' headers that begin with x-envoy-max-retries", "canary.user_header: Envoy removes clients' headers that begin with x-envoy-upstream-"}},
		{"a shadow in full duplex", func(c *envoy.Config) {
			c.BodyMode, c.Shadow = envoy.BodyFullDuplex, &envoy.Shadow{Balancer: envoy.LeastRequest, Streams: 1}
		}, []string{"shadow: bodies are shown as they pass, whatever the body mode, so full-duplex means nothing; write buffered"}},
		{"bad endpoint", func(c *envoy.Config) { c.Endpoints[1].Address = "x" }, []string{`endpoint: "x" is no address`}},
		{"doubled cluster", func(c *envoy.Config) {
			c.Route, c.Endpoints[0].Cluster = envoy.RouteClusterHeader, "far"
		}, []string{`endpoint engine.example.com:443: cluster "far" is that of 10.0.0.1:8000`}},
		{"our cluster", func(c *envoy.Config) {
			c.Route, c.Endpoints[0].Cluster = envoy.RouteClusterHeader, "pool"
		}, []string{`cluster "pool" is that of the pool`}},
		{"rescue without another endpoint", func(c *envoy.Config) {
			c.Rescue, c.Route = &envoy.Rescue{Longest: time.Minute}, envoy.RouteClusterHeader
		}, []string{"rescue (server.rescue.enabled): a cluster of route cluster-header holds one endpoint", "write route override-host"}},
		{"rescue beyond Envoy's patience", func(c *envoy.Config) { c.Rescue = &envoy.Rescue{Longest: time.Hour} }, []string{"rescue: the longest deadline is 1h0m0s"}},
		{"rescue without deadline", func(c *envoy.Config) { c.Rescue = &envoy.Rescue{} }, []string{"rescue: the longest deadline is 0s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := example()
			c.change(&config)
			_, err := envoy.Bootstrap(config)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not name %q", err, want)
				}
			}
		})
	}
}

// Which values make the listener or the pool's cluster another one, as docs/xds.md
// has it: Envoy ends what the former listener carries.
func TestWhatIsAnotherAfterARestart(t *testing.T) {
	members := []envoy.Member{{Address: "10.0.0.1:8000", Health: envoy.Healthy}, {Address: "10.0.0.2:443", Host: "engine.example.com", TLS: true, Health: envoy.Healthy}}
	pool := func(c envoy.Config) proto.Message { return c.Clusters(members)[0] }
	rescuing := func(c *envoy.Config) { c.Rescue = &envoy.Rescue{Longest: time.Minute} }
	for name, row := range map[string]struct {
		before, change func(*envoy.Config)
		listener, pool bool
	}{
		"server.body_limit_bytes":    {change: func(c *envoy.Config) { c.BodyLimit *= 2 }, listener: true},
		"server.decision_deadline":   {change: func(c *envoy.Config) { c.DecisionDeadline *= 2 }, listener: true},
		"server.max_message_timeout": {change: func(c *envoy.Config) { c.MaxMessageTimeout = time.Minute }, listener: true},
		"server.rescue.enabled":      {change: rescuing, listener: true, pool: true},
		"server.rescue.max":          {before: rescuing, change: func(c *envoy.Config) { c.Rescue = &envoy.Rescue{Longest: time.Second} }, pool: true},
		"server.services":            {change: func(c *envoy.Config) { c.Standby = []string{"127.0.0.1:9004"} }, listener: true},
		"xds.envoy_listen":           {change: func(c *envoy.Config) { c.Listen = "127.0.0.1:80" }, listener: true},
		"xds.body_mode":              {change: func(c *envoy.Config) { c.BodyMode = envoy.BodyFullDuplex }, listener: true},
		"xds.shadow":                 {change: func(c *envoy.Config) { c.Shadow = &envoy.Shadow{Balancer: envoy.RoundRobin, Streams: 1} }, listener: true, pool: true},
		"xds.canary":                 {change: func(c *envoy.Config) { c.Canary = &envoy.Canary{Percent: 1, Header: "x-canary", UserHeader: "x-user"} }},
		"discovery.tls.skip_verify":  {change: func(c *envoy.Config) { c.SkipVerify = true }, pool: true},
		"endpoints":                  {change: func(*envoy.Config) { members[0].Address = "10.0.0.3:8000" }},
	} {
		t.Run(name, func(t *testing.T) {
			c := example()
			if row.before != nil {
				row.before(&c)
			}
			listener, cluster := c.Listeners()[0], pool(c)
			row.change(&c)
			if another := !proto.Equal(listener, c.Listeners()[0]); another != row.listener {
				t.Errorf("another listener: %t, docs/xds.md says %t", another, row.listener)
			}
			if another := !proto.Equal(cluster, pool(c)); another != row.pool {
				t.Errorf("another pool: %t, docs/xds.md says %t", another, row.pool)
			}
		})
	}
}

// The same configuration is the same bytes each time, or Envoys would be told
// their listener anew at every change of an endpoint.
func TestListenerIsTheSameEachTime(t *testing.T) {
	c := example()
	c.Rescue = &envoy.Rescue{Longest: time.Minute}
	first := c.Listeners()[0]
	for range 20 { // maps in it have no order of their own
		if !proto.Equal(first, c.Listeners()[0]) {
			t.Fatal("another listener")
		}
	}
}
