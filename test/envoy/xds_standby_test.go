package envoy_test

import (
	"testing"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// startDynamicPair starts a service, two xDS servers that tell the same, and an
// Envoy that knows both.
func startDynamicPair(t *testing.T, route envoy.Route, protocol envoy.Protocol, e *engine) (first, second *pool, p *proxy, c envoy.Config) {
	t.Helper()
	s := startService(t, scoring.PolicyRoundRobin, e)
	c = config(s)
	c.Route = route
	// The listener names a log for each service; here both are one.
	c.Standby = []string{deadEngine(t).address}
	first = &pool{service: s, management: startManagement(t, c, "127.0.0.1:0")}
	second = &pool{service: s, management: startManagement(t, c, "127.0.0.1:0")}
	c.Admin = "127.0.0.1:0"
	bootstrap, err := envoy.DynamicBootstrap(c, envoy.Management{
		Address: first.management.address, Standby: []string{second.management.address}, Protocol: protocol, Node: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	second.add(e)
	// The first knows of no engine yet: the second is asked.
	p = startEnvoyWith(t, bootstrap)
	second.knows(t, p)
	first.add(e)
	return first, second, p, c
}

// Two xDS servers that tell the same: Envoy asks the one that has something to
// tell, goes over to the other under load, and back, and takes nothing of what it
// has for new.
func TestManagementFailsOver(t *testing.T) {
	for _, way := range ways {
		t.Run(string(way.route)+" "+string(way.protocol), func(t *testing.T) {
			t.Parallel()
			a, b := startEngine(t), startEngine(t)
			first, second, p, c := startDynamicPair(t, way.route, way.protocol, a)
			load := startLoad(t, p, 4)
			load.reach(t, 50)

			second.management.stop()
			first.settled(t)
			load.reach(t, load.done.Load()+50)

			second.management = startManagement(t, c, second.management.address)
			second.tell()
			eventually(t, "Envoy thinks both healthy", func() bool { return p.stat(t, "cluster.firsttoken-xds.membership_healthy") == 2 })
			first.management.stop()
			second.settled(t)
			for _, told := range []string{"cluster_manager.cluster_modified", "listener_manager.listener_modified", "cluster_manager.cds.update_rejected", "listener_manager.lds.update_rejected"} {
				if n := p.stat(t, told); n != 0 {
					t.Errorf("%s is %d", told, n)
				}
			}
			second.add(b)
			second.knows(t, p)
			reached(t, b)
			if failed := load.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
			if chosen := load.chosen.Load(); chosen != load.done.Load() {
				t.Errorf("the service chose for %d of %d requests", chosen, load.done.Load())
			}
		})
	}
}
