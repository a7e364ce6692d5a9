package envoy_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/envoy/xds"
	"github.com/firsttoken/firsttoken/scoring"
)

// management is an xDS server in this process.
type management struct {
	*xds.Server
	address string
	stop    func()
}

// startManagement serves on address until the test ends or stop is called.
func startManagement(t *testing.T, c envoy.Config, address string) *management {
	t.Helper()
	return startLingering(t, c, address, patience)
}

// startLingering is startManagement where clusters of removed engines stay for
// linger.
func startLingering(t *testing.T, c envoy.Config, address string, linger time.Duration) *management {
	t.Helper()
	c.Listen, c.Admin = "127.0.0.1:0", "127.0.0.1:0"
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server, err := xds.New(c, linger, slog.New(slog.DiscardHandler), xds.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, l) }()
	stopped := false
	m := &management{Server: server, address: l.Addr().String(), stop: func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}}
	t.Cleanup(m.stop)
	return m
}

// startDynamicEnvoy runs an Envoy that asks m.
func startDynamicEnvoy(t *testing.T, c envoy.Config, m *management, protocol envoy.Protocol) *proxy {
	t.Helper()
	c.Admin = "127.0.0.1:0"
	config, err := envoy.DynamicBootstrap(c, envoy.Management{Address: m.address, Protocol: protocol, Node: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return startEnvoyWith(t, config)
}

// pool is what a test wants to be there; it tells the service and Envoy.
type pool struct {
	service    *service
	management *management
	lastID     scoring.EndpointID
	members    []poolMember
}

type poolMember struct {
	id     scoring.EndpointID
	engine *engine
	health envoy.Health
}

// cluster is the name of an engine's own cluster.
func cluster(e *engine) string { return "engine-" + e.address }

func (p *pool) add(engines ...*engine) {
	for _, e := range engines {
		p.lastID++
		p.members = append(p.members, poolMember{p.lastID, e, envoy.Healthy})
	}
	p.tell()
}

func (p *pool) remove(e *engine) {
	p.members = slices.DeleteFunc(p.members, func(m poolMember) bool { return m.engine == e })
	p.tell()
}

func (p *pool) mark(e *engine, h envoy.Health) {
	for i := range p.members {
		if p.members[i].engine == e {
			p.members[i].health = h
		}
	}
	p.tell()
}

// tell is in the order of the service: the choice first, Envoy right after it.
func (p *pool) tell() {
	var endpoints []scoring.Endpoint
	for _, m := range p.members {
		endpoints = append(endpoints, scoring.Endpoint{
			ID: m.id, Name: m.engine.address, Address: m.engine.address, Cluster: cluster(m.engine), Models: []string{"m"}, Ready: m.health == envoy.Healthy,
		})
	}
	p.service.picker.SetEndpoints(endpoints)
	p.management.SetMembers(p.list())
}

func (p *pool) list() []envoy.Member {
	var members []envoy.Member
	for _, m := range p.members {
		members = append(members, envoy.Member{Address: m.engine.address, Cluster: cluster(m.engine), Health: m.health})
	}
	return members
}

// settled waits until Envoy has taken all that it was told.
func (p *pool) settled(t *testing.T) {
	t.Helper()
	eventually(t, "Envoy has taken all", func() bool {
		s := p.management.Status()
		return s.Members == len(p.members) && len(s.Envoys) == 1 && s.Envoys[0].Current
	})
}

// knows waits until Envoy's pool has just these engines.
func (p *pool) knows(t *testing.T, proxy *proxy) {
	t.Helper()
	p.settled(t)
	eventually(t, "Envoy's pool has the engines", func() bool {
		_, text := proxy.ask(t, "/clusters")
		hosts := make(map[string]bool)
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(line, "pool::"); ok && strings.Contains(rest, "::cx_active::") {
				host, _, _ := strings.Cut(rest, "::")
				hosts[host] = true
			}
		}
		for _, m := range p.members {
			if !hosts[m.engine.address] {
				return false
			}
		}
		return len(hosts) == len(p.members)
	})
}

// startDynamic starts a service, an xDS server and an Envoy with these engines.
func startDynamic(t *testing.T, route envoy.Route, protocol envoy.Protocol, engines ...*engine) (*pool, *proxy) {
	t.Helper()
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	c := config(s)
	c.Route = route
	p := &pool{service: s, management: startManagement(t, c, "127.0.0.1:0")}
	p.add(engines...)
	proxy := startDynamicEnvoy(t, c, p.management, protocol)
	p.knows(t, proxy)
	return p, proxy
}

// ways are those to tell Envoy the choice, each over both protocols.
var ways = []struct {
	route    envoy.Route
	protocol envoy.Protocol
}{
	{envoy.RouteOverrideHost, envoy.StateOfTheWorld},
	{envoy.RouteOverrideHost, envoy.Delta},
	{envoy.RouteClusterHeader, envoy.StateOfTheWorld},
	{envoy.RouteClusterHeader, envoy.Delta},
}

// Engines are added, drained, removed and swapped again and again under load: no
// request is lost, a stream of an engine that is removed is not cut, and Envoy
// neither restarts nor changes its listener or the pool's cluster.
func TestEnginesComeAndGo(t *testing.T) {
	for _, way := range ways {
		t.Run(string(way.route)+" "+string(way.protocol), func(t *testing.T) {
			a, b, c := startEngine(t), startEngine(t), startEngine(t)
			released := make(chan struct{})
			slow := startEngine(t, func(e *engine) { e.pause = func() { <-released } })
			p, proxy := startDynamic(t, way.route, way.protocol, slow)
			defer func() {
				select {
				case <-released:
				default:
					close(released)
				}
			}()

			// A stream is under way at the first engine when that one goes.
			resp := post(t, proxy, completion("hello"))
			p.add(a)
			p.remove(slow)
			p.knows(t, proxy)

			load := startLoad(t, proxy, 4)
			load.reach(t, 50)
			for range 4 {
				p.add(b)
				p.knows(t, proxy)
				reached(t, b)

				p.mark(a, envoy.Draining)
				p.settled(t)
				quiet(t, load, a)

				p.remove(a)
				p.add(c)
				p.knows(t, proxy)
				reached(t, c)

				// One takes the place of another in one go.
				p.members[len(p.members)-1].engine = a
				p.lastID++
				p.members[len(p.members)-1].id = p.lastID
				p.tell()
				p.knows(t, proxy)
				reached(t, a)
				quiet(t, load, c)

				p.remove(b)
				p.knows(t, proxy)
				quiet(t, load, b)
			}
			if failed := load.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
			if chosen := load.chosen.Load(); chosen != load.done.Load() {
				t.Errorf("the service chose for %d of %d requests", chosen, load.done.Load())
			}

			close(released)
			if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
				t.Errorf("the stream of the removed engine: %v %s %q", err, resp.status, body)
			}
			if n := proxy.stat(t, "listener_manager.listener_modified"); n != 0 {
				t.Errorf("%d listeners were modified", n)
			}
			if n := proxy.stat(t, "cluster_manager.cluster_modified"); n != 0 {
				t.Errorf("%d clusters were modified", n)
			}
			if n := proxy.stat(t, "cluster_manager.cds.update_rejected") + proxy.stat(t, "listener_manager.lds.update_rejected"); n != 0 {
				t.Errorf("%d updates were rejected", n)
			}
		})
	}
}

// reached waits until an engine gets requests.
func reached(t *testing.T, e *engine) {
	t.Helper()
	before := e.requests.Load()
	eventually(t, "the engine gets requests", func() bool { return e.requests.Load() > before })
}

// quiet checks that requests go by an engine which gets none any more. Those
// that were decided before are through when as many as there are clients are
// answered.
func quiet(t *testing.T, l *load, e *engine) {
	t.Helper()
	l.reach(t, l.done.Load()+16)
	before := e.requests.Load()
	l.reach(t, l.done.Load()+16)
	if n := e.requests.Load() - before; n != 0 {
		t.Errorf("an engine that may get no requests got %d", n)
	}
}

// The xDS server goes away under load, comes back, and knows no engine at first:
// Envoy goes on with those it knew, and hears of new ones afterwards.
func TestManagementRestarts(t *testing.T) {
	for _, way := range ways {
		t.Run(string(way.route)+" "+string(way.protocol), func(t *testing.T) {
			a, b := startEngine(t), startEngine(t)
			p, proxy := startDynamic(t, way.route, way.protocol, a)
			load := startLoad(t, proxy, 4)
			load.reach(t, 50)
			p.management.stop()
			load.reach(t, load.done.Load()+50)

			c := config(p.service)
			c.Route = way.route
			p.management = startManagement(t, c, p.management.address)
			eventually(t, "Envoy is back", func() bool { return len(p.management.Status().Envoys) == 1 })
			load.reach(t, load.done.Load()+50)
			p.add(b)
			p.knows(t, proxy)
			reached(t, b)
			if failed := load.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
		})
	}
}

// Before any engine is known Envoy is told nothing: an empty pool would answer
// 503 to everybody.
func TestNothingIsToldBeforeAnEngineIsKnown(t *testing.T) {
	for _, protocol := range []envoy.Protocol{envoy.StateOfTheWorld, envoy.Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			e := startEngine(t)
			s := startService(t, scoring.PolicyRoundRobin, e)
			c := config(s)
			p := &pool{service: s, management: startManagement(t, c, "127.0.0.1:0")}
			p.management.SetMembers(nil)
			told := make(chan struct{})
			go func() {
				defer close(told)
				for len(p.management.Status().Envoys) == 0 {
					if t.Context().Err() != nil {
						return
					}
				}
				p.add(e)
			}()
			// It is ready when it was told of the engine, not before.
			proxy := startDynamicEnvoy(t, c, p.management, protocol)
			<-told
			p.knows(t, proxy)
			if failed := parallel(t, proxy, 20, completion("hello")); len(failed) > 0 {
				t.Errorf("%d failed, the first: %s", len(failed), failed[0])
			}
			p.management.SetMembers(nil)
			if failed := parallel(t, proxy, 20, completion("hello")); len(failed) > 0 {
				t.Errorf("told of no engine: %d failed, the first: %s", len(failed), failed[0])
			}
		})
	}
}

// Where Envoy chooses by itself it leaves out engines that are not ready and
// those that drain; where none is ready it tries all the same.
func TestEnvoyChoosesAmongTheHealthy(t *testing.T) {
	good, sick, leaving := startEngine(t), startEngine(t), startEngine(t)
	p, proxy := startDynamic(t, envoy.RouteOverrideHost, envoy.StateOfTheWorld, good, sick, leaving)
	p.mark(sick, envoy.Unhealthy)
	p.mark(leaving, envoy.Draining)
	p.settled(t)
	const n = 20
	ask := func() {
		t.Helper()
		for range n {
			resp, err := http.Get(proxy.clients + "/v1/models") // without a choice of the service
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("answer: %s", resp.Status)
			}
		}
	}
	// Nobody but Envoy chooses.
	p.service.picker.SetEndpoints(nil)
	// Envoy's worker hears of endpoints a moment after Envoy has taken them. One that
	// does not heed their health spreads every twenty over the three.
	eventually(t, "all requests go to the one that is healthy", func() bool {
		before := good.requests.Load()
		ask()
		return good.requests.Load() == before+n
	})
	p.mark(good, envoy.Unhealthy)
	p.settled(t)
	p.service.picker.SetEndpoints(nil)
	ask()
}

// The cluster of a removed engine goes after its time; a stream there is not cut.
func TestClusterOfRemovedEngineEnds(t *testing.T) {
	for _, protocol := range []envoy.Protocol{envoy.StateOfTheWorld, envoy.Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			released := make(chan struct{})
			leaving := startEngine(t, func(e *engine) { e.pause = func() { <-released } })
			staying := startEngine(t)
			s := startService(t, scoring.PolicyRoundRobin, leaving)
			c := config(s)
			c.Route = envoy.RouteClusterHeader
			p := &pool{service: s, management: startLingering(t, c, "127.0.0.1:0", time.Millisecond)}
			p.add(leaving)
			proxy := startDynamicEnvoy(t, c, p.management, protocol)
			p.knows(t, proxy)
			resp := post(t, proxy, completion("hello"))
			p.add(staying)
			p.remove(leaving)
			p.knows(t, proxy)
			eventually(t, "the cluster is gone", func() bool {
				_, text := proxy.ask(t, "/clusters")
				return strings.Contains(text, cluster(staying)+"::") && !strings.Contains(text, cluster(leaving)+"::")
			})
			close(released)
			if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
				t.Errorf("the stream of the removed engine: %v %s %q", err, resp.status, body)
			}
		})
	}
}

// A choice whose cluster Envoy does not know is the pool's affair, not an error.
func TestUnknownClusterGoesToThePool(t *testing.T) {
	known, unknown := startEngine(t), startEngine(t)
	p, proxy := startDynamic(t, envoy.RouteClusterHeader, envoy.Delta, known)
	p.service.picker.SetEndpoints(endpoints([]*engine{unknown}))
	for range 5 {
		resp := post(t, proxy, completion("hello"))
		if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
			t.Fatalf("answer: %v %s %q", err, resp.status, body)
		}
	}
	if known.requests.Load() != 5 || unknown.requests.Load() != 0 {
		t.Errorf("requests: known %d, unknown %d", known.requests.Load(), unknown.requests.Load())
	}
}

// What Envoy does not take is seen in the status, with its own words.
func TestRejectedConfigurationIsSeen(t *testing.T) {
	for _, protocol := range []envoy.Protocol{envoy.StateOfTheWorld, envoy.Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			e := startEngine(t)
			s := startService(t, scoring.PolicyRoundRobin, e)
			c := config(s)
			c.CAFile = filepath.Join(t.TempDir(), "missing.pem")
			p := &pool{service: s, management: startManagement(t, c, "127.0.0.1:0")}
			p.add(e)
			proxy := startDynamicEnvoy(t, c, p.management, protocol)
			p.knows(t, proxy)
			members := append(p.list(), envoy.Member{Address: "127.0.0.1:1", TLS: true, Host: "engine.example", Health: envoy.Healthy})
			p.management.SetMembers(members)
			eventually(t, "the fault is seen", func() bool {
				envoys := p.management.Status().Envoys
				return len(envoys) == 1 && !envoys[0].Current && len(envoys[0].Faults) == 1 &&
					strings.HasPrefix(envoys[0].Faults[0], "clusters: ") && strings.Contains(envoys[0].Faults[0], "missing.pem")
			})
			if failed := parallel(t, proxy, 20, completion("hello")); len(failed) > 0 {
				t.Errorf("%d failed, the first: %s", len(failed), failed[0])
			}
			p.tell()
			p.settled(t)
		})
	}
}

// Engines that speak https are verified by the name or the address that the
// operator wrote, though Envoy is told addresses only.
func TestHTTPSByXDS(t *testing.T) {
	const name, ip = "localhost", "127.0.0.1"
	for _, c := range []struct {
		host, certified string
		skipVerify      bool
		status          int
	}{
		{host: name, certified: name, status: http.StatusOK},
		{host: ip, certified: ip, status: http.StatusOK},
		{host: name, certified: "other.example", status: http.StatusServiceUnavailable},
		{host: ip, certified: "127.0.0.2", status: http.StatusServiceUnavailable},
		{host: name, certified: "other.example", skipVerify: true, status: http.StatusOK},
	} {
		for _, route := range []envoy.Route{envoy.RouteOverrideHost, envoy.RouteClusterHeader} {
			t.Run(fmt.Sprintf("%s certified as %s, skip %t, %s", c.host, c.certified, c.skipVerify, route), func(t *testing.T) {
				certificate, file := certify(t, c.certified)
				e := startEngine(t, func(e *engine) { e.certificate = certificate })
				s := startService(t, scoring.PolicyRoundRobin, e)
				cfg := config(s)
				cfg.Route, cfg.CAFile, cfg.SkipVerify = route, file, c.skipVerify
				m := startManagement(t, cfg, "127.0.0.1:0")
				m.SetMembers([]envoy.Member{{Address: e.address, Cluster: cluster(e), TLS: true, Host: c.host, Health: envoy.Healthy}})
				proxy := startDynamicEnvoy(t, cfg, m, envoy.StateOfTheWorld)
				resp := post(t, proxy, completion("hello"))
				body, err := io.ReadAll(resp.body)
				if err != nil || resp.code != c.status || (c.status == http.StatusOK && string(body) != answer()) {
					t.Errorf("answer: %v %s %q, want %d", err, resp.status, body, c.status)
				}
			})
		}
	}
}
