package envoy_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// modify changes Envoy's runtime by its admin interface.
func (p *proxy) modify(t *testing.T, query string) {
	t.Helper()
	resp, err := http.Post(p.admin+"/runtime_modify?"+query, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("runtime_modify?%s: %s", query, resp.Status)
	}
}

// Envoy shares requests out by its runtime: to the service by fraction, by header,
// and the others to its own balancer; with both routes, static and by xDS.
func TestCanaryRoutes(t *testing.T) {
	for _, route := range []envoy.Route{envoy.RouteOverrideHost, envoy.RouteClusterHeader} {
		for _, dynamic := range []bool{false, true} {
			t.Run(fmt.Sprint(route, " dynamic ", dynamic), func(t *testing.T) {
				t.Parallel()
				engines := []*engine{startEngine(t), startEngine(t)}
				c := envoy.Config{Route: route, Canary: &envoy.Canary{Percent: 20, Header: "X-Canary: on"}}
				var s *service
				var p *proxy
				if dynamic {
					s, p = startDynamicCanary(t, c, engines...)
				} else {
					s = startService(t, scoring.PolicyRoundRobin, engines...)
					full := config(s, engines...)
					full.Route, full.Canary = c.Route, c.Canary
					p = startEnvoy(t, full)
				}
				const n = 150
				asked := 0
				for _, step := range []struct {
					modify string
					share  float64
					header bool
				}{
					{"", 0.2, true},
					{"canary.fraction=60", 0.6, true},
					{"canary.fraction=0", 0, true},
					{"canary.fraction=0&canary.header=0", 0, false},
					{"canary.fraction=100&canary.header=100", 1, true},
					{"canary.off=100", 0, false},
					{"canary.off=0", 1, true},
				} {
					if step.modify != "" {
						p.modify(t, step.modify)
					}
					v := newSurvey(t, p)
					v.ask(n, func(i int, r *http.Request) {
						if i%10 == 0 {
							r.Header.Set("x-canary", "on")
						}
					})
					v.answered(t, n)
					byHeader := 0
					if step.header {
						byHeader = n / 10
					}
					if step.share == 0 || step.header {
						share(t, step.modify, v.chosen-byHeader, n-n/10, step.share)
					}
					asked += v.chosen
				}
				eventually(t, "every choice has ended", func() bool { return s.picker.Stats().Open == 0 })
				if got := len(s.events.decided); got != asked {
					t.Errorf("the service chose %d times, clients saw %d", got, asked)
				}
			})
		}
	}
}

// Under load the share is switched between nothing and everything many times: every
// request is answered.
func TestCanaryFlips(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	c := config(s, engines...)
	c.Canary = &envoy.Canary{Percent: 50}
	p := startEnvoy(t, c)
	const n, flips = 1500, 30
	v := newSurvey(t, p)
	ended := make(chan struct{})
	go func() { v.ask(n, nil); close(ended) }()
	for i := range flips {
		eventually(t, "requests go on", func() bool { return v.done.Load() >= int64(i*n/(flips+2)) })
		p.modify(t, []string{"canary.fraction=0", "canary.fraction=100", "canary.off=100", "canary.off=0"}[i%4])
	}
	next(t, "last answer", ended)
	v.answered(t, n)
	if v.chosen == 0 || v.chosen == n {
		t.Errorf("the service chose for %d of %d", v.chosen, n)
	}
	eventually(t, "nothing is booked", func() bool { return s.picker.Stats().Open == 0 })
}

// By a user's header each user is wholly on one side, within what chance allows of
// the share; a request without one is shared out by itself, and the switch holds
// for all.
func TestCanaryByUser(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	c := config(s, engines...)
	c.Canary = &envoy.Canary{Percent: 30, UserHeader: "X-User"}
	p := startEnvoy(t, c)
	const users, each = 150, 4
	as := func(i int, r *http.Request) { r.Header.Set("x-user", fmt.Sprint("user-", i%users)) }
	v := newSurvey(t, p)
	v.ask(users*each, as)
	v.answered(t, users*each)
	in := map[string]bool{}
	for user, seen := range v.users {
		if len(seen) != 1 {
			t.Errorf("%s was on both sides", user)
		}
		if seen[" true"] {
			in[user] = true
		}
	}
	share(t, "users", len(in), users, 0.3)
	p.modify(t, "canary.users.pool=60&canary.users.plain=40")
	raised := newSurvey(t, p)
	raised.ask(users, as)
	raised.answered(t, users)
	share(t, "users of a share that was raised", raised.chosen, users, 0.6)
	for user := range in {
		if !raised.users[user][" true"] {
			t.Errorf("%s left when the share was raised", user)
		}
	}

	anybody := newSurvey(t, p)
	anybody.ask(300, nil)
	anybody.answered(t, 300)
	share(t, "requests without a user", anybody.chosen, 300, 0.3)

	for _, step := range []struct {
		modify string
		want   int
	}{{"canary.users.pool=0&canary.users.plain=100", 0}, {"canary.users.pool=100&canary.users.plain=0", users}, {"canary.off=100", 0}} {
		p.modify(t, step.modify)
		v := newSurvey(t, p)
		v.ask(users, as)
		v.answered(t, users)
		if v.chosen != step.want {
			t.Errorf("%s: the service chose for %d of %d users, want %d", step.modify, v.chosen, users, step.want)
		}
	}
}

// startDynamicCanary starts a service, an xDS server and an Envoy that asks it.
func startDynamicCanary(t *testing.T, c envoy.Config, engines ...*engine) (*service, *proxy) {
	t.Helper()
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	full := config(s)
	full.Route, full.Canary = c.Route, c.Canary
	p := &pool{service: s, management: startManagement(t, full, "127.0.0.1:0")}
	p.add(engines...)
	// By deltas here; whole states are told in the tests of engines that come and go.
	proxy := startDynamicEnvoy(t, full, p.management, envoy.Delta)
	p.knows(t, proxy)
	return s, proxy
}
