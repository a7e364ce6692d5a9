package envoy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// watching is config for a service that is only shown the requests.
func watching(s *service, balancer envoy.Balancer, engines ...*engine) envoy.Config {
	c := config(s, engines...)
	c.Shadow = &envoy.Shadow{Balancer: balancer, Streams: envoy.DefaultShadowStreams}
	return c
}

// Under load every request is answered as without us, every body is seen, and
// every decision is joined with the engine that Envoy itself chose.
func TestShadowUnderLoad(t *testing.T) {
	for _, balancer := range []envoy.Balancer{envoy.RoundRobin, envoy.LeastRequest} {
		t.Run(string(balancer), func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t), startEngine(t)}
			s := startService(t, scoring.PolicyTTFT, engines...)
			c := watching(s, balancer, engines...)
			c.Shadow.Streams = 1000 // the machine may be busy, and all are to be seen
			p := startEnvoy(t, c)
			const clients, each = 8, 25
			var all sync.WaitGroup
			var length, failed atomic.Int64
			for c := range clients {
				all.Go(func() {
					for i := range each {
						text := strings.Repeat("word ", 1+(c*each+i)%7*3000)
						length.Add(int64(len(text)/4 + 1))
						if err := askFor(t.Context(), p, completion(text)); err != nil {
							failed.Add(1)
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			const n = clients * each
			served := make(map[string]int64)
			for range n {
				d := next(t, "decision", s.events.decided)
				if !d.Shadow.Placed {
					t.Error("a request is placed nowhere")
				}
				served[d.Endpoint().Address]++
				length.Add(-int64(d.Prompt.Length()))
				next(t, "first token", s.events.firstToken)
				if e := next(t, "end", s.events.ended); e.outcome != scoring.OutcomeComplete || e.served == "" {
					t.Errorf("ended %s at %q", e.outcome, e.served)
				}
			}
			for _, e := range engines {
				if got, want := served[e.address], e.requests.Load(); got != want || want == 0 {
					t.Errorf("%d requests are known at an engine that served %d", got, want)
				}
			}
			if length.Load() != 0 {
				t.Errorf("bodies seen differ from those sent by %d tokens", length.Load())
			}
			agreed, differed := s.value(t, "firsttoken_shadow_decisions_total", "agreed"), s.value(t, "firsttoken_shadow_decisions_total", "differed")
			if agreed+differed != n || failed.Load() != 0 {
				t.Errorf("%v agreed and %v differed of %d, %d failed", agreed, differed, n, failed.Load())
			}
			for len(engines[0].seen) > 0 {
				if h := <-engines[0].seen; h.Get(envoy.HeaderEndpoint) != "" {
					t.Fatalf("an engine saw a choice: %v", h)
				}
			}
			none(t, "further decision", s.events.decided)
		})
	}
}

// askFor sends one request and checks the whole answer.
func askFor(ctx context.Context, p *proxy, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.clients+"/v1/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(text) != answer() {
		return fmt.Errorf("%s %q %w", resp.Status, text, err)
	}
	return nil
}

// Whatever becomes of the service, clients do not notice.
func TestShadowServiceEnds(t *testing.T) {
	for name, signal := range map[string]os.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP, "drained": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t)}
			process, address, _ := startProcess(t, engines...)
			c := watching(&service{address: address}, envoy.LeastRequest, engines...)
			c.Shadow.Streams = 20
			p := startEnvoy(t, c)
			load := startLoad(t, p, 8)
			load.reach(t, 300)
			if err := process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			load.reach(t, load.done.Load()+1000)
			if failed := load.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
			if most := p.stat(t, "cluster.firsttoken-shadow.upstream_rq_active"); most > c.Shadow.Streams {
				t.Errorf("%d streams are open, want at most %d", most, c.Shadow.Streams)
			}
		})
	}
	t.Run("never there", func(t *testing.T) {
		t.Parallel()
		e := startEngine(t)
		p := startEnvoy(t, watching(&service{address: deadEngine(t).address}, envoy.LeastRequest, e))
		if failed := parallel(t, p, 200, completion("hello")); len(failed) > 0 {
			t.Errorf("%d of 200 requests failed, the first: %s", len(failed), failed[0])
		}
	})
}

// The service ends each stream once it has seen the first token, so that it does
// not count against Envoy's limit for as long as the answer takes.
func TestShadowStreamsAreLetGo(t *testing.T) {
	release := make(chan struct{})
	e := startEngine(t, func(e *engine) { e.pause = func() { <-release } })
	s := startService(t, scoring.PolicyTTFT, e)
	p := startEnvoy(t, watching(s, envoy.LeastRequest, e))
	answered := make(chan []string, 1)
	go func() { answered <- parallel(t, p, 30, completion("hello")) }()
	for range 30 {
		next(t, "first token", s.events.firstToken)
	}
	eventually(t, "Envoy has no stream open", func() bool { return p.stat(t, "cluster.firsttoken-shadow.upstream_rq_active") == 0 })
	none(t, "end", s.events.ended)
	close(release)
	if failed := <-answered; len(failed) > 0 {
		t.Errorf("%d of 30 requests failed, the first: %s", len(failed), failed[0])
	}
	for range 30 {
		if end := next(t, "end", s.events.ended); end.outcome != scoring.OutcomeComplete || end.served != e.address {
			t.Errorf("ended %+v", end)
		}
	}
}

// Envoy in front of another router shows the service what the router is asked;
// a header of the router's tells who served.
func TestShadowBesideAnotherRouter(t *testing.T) {
	for _, header := range []string{"", "x-served-by"} {
		t.Run("header "+header, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t)}
			router := startRouter(t, "x-served-by", engines)
			s := startWatcher(t, extproc.ShadowConfig{ServedHeader: header, Streams: 100, BodyBytes: 1 << 20}, engines...)
			c := watching(s, envoy.LeastRequest)
			c.Shadow.Router = router
			p := startEnvoy(t, c)
			const n = 50
			if failed := parallel(t, p, n, completion("hello")); len(failed) > 0 {
				t.Fatalf("%d of %d requests failed, the first: %s", len(failed), n, failed[0])
			}
			served := make(map[string]int64)
			for range n {
				d := next(t, "decision", s.events.decided)
				if d.Shadow.Placed != (header != "") {
					t.Errorf("placed: %v", d.Shadow.Placed)
				}
				if d.Shadow.Placed {
					served[d.Endpoint().Address]++
				}
				next(t, "first token", s.events.firstToken)
			}
			for _, e := range engines {
				if want := e.requests.Load(); header != "" && served[e.address] != want {
					t.Errorf("%d requests are known at an engine that served %d", served[e.address], want)
				}
			}
		})
	}
}

// startRouter is a router of the old kind: it takes turns, and names the engine in
// a header.
func startRouter(t *testing.T, header string, engines []*engine) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var turn atomic.Int64
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := engines[turn.Add(1)%int64(len(engines))]
		w.Header().Set(header, "http://"+e.address)
		e.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}

// What is printed to be pasted into an Envoy that runs today works there.
func TestShadowSnippet(t *testing.T) {
	e := startEngine(t)
	s := startService(t, scoring.PolicyTTFT, e)
	c := watching(s, envoy.LeastRequest, e)
	p := startEnvoyWith(t, withSnippet(t, c))
	if failed := parallel(t, p, 20, completion("hello")); len(failed) > 0 {
		t.Fatalf("%d of 20 requests failed, the first: %s", len(failed), failed[0])
	}
	for range 20 {
		if d := next(t, "decision", s.events.decided); !d.Shadow.Placed {
			t.Error("a request is placed nowhere")
		}
		next(t, "end", s.events.ended)
	}
}

// withSnippet is a plain Envoy config into which the snippet was pasted.
func withSnippet(t *testing.T, c envoy.Config) []byte {
	t.Helper()
	text, err := envoy.ShadowSnippet(c)
	if err != nil {
		t.Fatal(err)
	}
	var snippet struct {
		HTTPFilters []any `yaml:"http_filters"`
		AccessLog   []any `yaml:"access_log"`
		Clusters    []any `yaml:"clusters"`
	}
	if err := yaml.Unmarshal(text, &snippet); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	host, port, err := net.SplitHostPort(c.Endpoints[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	address := func(host string, port any) object {
		return object{"socket_address": object{"address": host, "port_value": port}}
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	config, err := yaml.Marshal(object{
		"admin": object{"address": address("127.0.0.1", 0)},
		"static_resources": object{
			"listeners": []any{object{"address": address("127.0.0.1", 0), "filter_chains": []any{object{"filters": []any{object{
				"name": "envoy.filters.network.http_connection_manager",
				"typed_config": object{
					"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
					"stat_prefix": "theirs",
					"route_config": object{"virtual_hosts": []any{object{"name": "all", "domains": []any{"*"}, "routes": []any{object{
						"match": object{"prefix": "/"}, "route": object{"cluster": "theirs", "timeout": "0s"},
					}}}}},
					"http_filters": snippet.HTTPFilters,
					"access_log":   snippet.AccessLog,
				},
			}}}}}},
			"clusters": append(snippet.Clusters, object{
				"name": "theirs", "load_assignment": object{"cluster_name": "theirs", "endpoints": []any{object{"lb_endpoints": []any{
					object{"endpoint": object{"address": address(host, number)}},
				}}}},
			}),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// By xDS the same: engines come and go, and Envoy chooses by itself.
func TestShadowByXDS(t *testing.T) {
	first, second := startEngine(t), startEngine(t)
	s := startService(t, scoring.PolicyTTFT, first, second)
	c := watching(s, envoy.RoundRobin)
	m := startManagement(t, c, "127.0.0.1:0")
	told := &pool{service: s, management: m}
	told.add(first, second)
	p := startDynamicEnvoy(t, c, m, envoy.StateOfTheWorld)
	const n = 40
	if failed := parallel(t, p, n, completion("hello")); len(failed) > 0 {
		t.Fatalf("%d of %d requests failed, the first: %s", len(failed), n, failed[0])
	}
	for range n {
		if d := next(t, "decision", s.events.decided); !d.Shadow.Placed {
			t.Error("a request is placed nowhere")
		}
	}
	if first.requests.Load() != n/2 || second.requests.Load() != n/2 {
		t.Errorf("round robin gave %d and %d of %d", first.requests.Load(), second.requests.Load(), n)
	}
}
