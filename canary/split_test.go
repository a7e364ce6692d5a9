package canary_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/scoring"
)

// two is a canary of so many per cent beside the rest.
func two(percent int) canary.Config {
	c := canary.DefaultConfig()
	c.Arms = []canary.Arm{{Name: "canary", Weight: percent}, {Name: "rest", Weight: 100 - percent, Policy: canary.PolicyEnvoy}}
	return c
}

// request has headers as a map.
func request(model, session string, headers map[string]string) canary.Request {
	return canary.Request{Model: model, Session: session, Header: func(name string) string { return headers[name] }}
}

// name is the arm's, empty where there is none.
func name(s *canary.Split, r canary.Request, draw uint64) string {
	a, _ := s.Assign(r, draw)
	return a.Name
}

// What decides: the header first, then weights, each among the arms that are for
// the model.
func TestAssign(t *testing.T) {
	arms := []canary.Arm{
		{Name: "on", Header: "X-Canary: on", Policy: "ttft"},
		{Name: "any", Header: "x-try"},
		{Name: "only-a", Header: "x-a: 1", Models: []string{"a"}},
		{Name: "weighed", Weight: 1, Models: []string{"a", "b"}},
	}
	s := canary.New(canary.Config{Arms: arms})
	for _, c := range []struct {
		name, model string
		headers     map[string]string
		want        string
	}{
		{"by its value", "c", map[string]string{"x-canary": "on"}, "on"},
		{"another value", "c", map[string]string{"x-canary": "off"}, ""},
		{"any value", "c", map[string]string{"x-try": "whatever"}, "any"},
		{"the first of two", "a", map[string]string{"x-try": "1", "x-canary": "on"}, "on"},
		{"header and model", "a", map[string]string{"x-a": "1"}, "only-a"},
		{"header of another model's arm", "b", map[string]string{"x-a": "1"}, "weighed"},
		{"weight", "a", nil, "weighed"},
		{"another model", "c", nil, ""},
		{"no model", "", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for draw := range uint64(20) {
				if got := name(s, request(c.model, "", c.headers), draw*0x9e3779b97f4a7c15); got != c.want {
					t.Fatalf("arm %q, want %q", got, c.want)
				}
			}
		})
	}
	if got := fmt.Sprint(s.Headers()); got != "[x-a x-canary x-try]" {
		t.Errorf("looks at %s", got)
	}
	if got := fmt.Sprint(s.Arms()); got != "[on any only-a weighed]" {
		t.Errorf("arms %s", got)
	}
}

// Without arms nothing is assigned, and no header is looked at.
func TestNoArms(t *testing.T) {
	for _, s := range []*canary.Split{{}, canary.New(canary.DefaultConfig()), canary.New(canary.Config{Sticky: true, UserHeader: "x-user"})} {
		if a, ok := s.Assign(request("m", "s", nil), 1); ok || a.Name != "" || len(s.Headers()) != 0 {
			t.Errorf("assigned %+v, looks at %q", a, s.Headers())
		}
	}
}

// A user has one arm, whatever is drawn; who is none is drawn.
func TestSticky(t *testing.T) {
	c := two(50)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, mode := range []struct {
		name           string
		sticky         bool
		header         string
		session, value string
		stays          bool
	}{
		{"session", true, "", "s", "", true},
		{"no session", true, "", "", "u", false},
		{"header", true, "X-User", "", "u", true},
		{"session, but the header counts", true, "X-User", "s", "", false},
		{"not wanted", false, "", "s", "", false},
	} {
		t.Run(mode.name, func(t *testing.T) {
			c.Sticky, c.UserHeader = mode.sticky, mode.header
			s := canary.New(c)
			seen := map[string]int{}
			for range 200 {
				seen[name(s, request("m", mode.session, map[string]string{"x-user": mode.value}), rng.Uint64())]++
			}
			// 200 draws that all fall on one side by chance: 1 in 2^199.
			if stays := len(seen) == 1; stays != mode.stays {
				t.Errorf("arms %v", seen)
			}
		})
	}
}

// A share that grows keeps all it had, in steps from nothing to everything, with
// two arms and with three, whatever the order of the arms.
func TestGrowingShareKeepsItsUsers(t *testing.T) {
	const users = 2000
	for _, others := range []int{1, 2} {
		in := map[int]bool{}
		for share := 0; share <= 100; share += 5 {
			var arms []canary.Arm
			for i := range others {
				arms = append(arms, canary.Arm{Name: fmt.Sprint("other-", i), Weight: 100 - share})
			}
			arms = append(arms, canary.Arm{Name: "canary", Weight: others * share})
			if share%10 == 0 { // the order is of no account
				arms[0], arms[len(arms)-1] = arms[len(arms)-1], arms[0]
			}
			s := canary.New(canary.Config{Arms: arms, Sticky: true})
			for u := range users {
				now := name(s, request("m", fmt.Sprint("user-", u), nil), 0) == "canary"
				if in[u] && !now {
					t.Fatalf("with %d others: user %d was in the canary and left it at a share of %d", others, u, share)
				}
				in[u] = now
			}
			if share == 0 || share == 100 {
				for u := range users {
					if in[u] != (share == 100) {
						t.Fatalf("at a share of %d user %d is in: %v", share, u, in[u])
					}
				}
			}
		}
	}
}

// Two experiments with other names draw anew: who is in one is in the other by
// chance.
func TestNamesDrawAnew(t *testing.T) {
	const users = 20_000
	one := canary.New(two(50))
	c := two(50)
	c.Arms[0].Name, c.Arms[1].Name = "second", "others"
	other := canary.New(c)
	both := 0
	for u := range users {
		r := request("m", fmt.Sprint(u), nil)
		if name(one, r, 0) == "canary" && name(other, r, 0) == "second" {
			both++
		}
	}
	within(t, "in both", both, users, 0.25)
}

// Shares are the weights', of random draws and of users with names as they come.
func TestShares(t *testing.T) {
	const n = 50_000
	rng := rand.New(rand.NewPCG(7, 11))
	for _, weights := range [][]int{{1, 1}, {20, 80}, {1, 99}, {1, 99_999}, {10, 20, 30, 40}, {5, 5, 0, 90}} {
		total := 0
		c := canary.Config{Sticky: true}
		for i, w := range weights {
			total += w
			c.Arms = append(c.Arms, canary.Arm{Name: fmt.Sprint("arm-", i), Weight: w})
		}
		s := canary.New(c)
		for _, source := range []struct {
			name string
			of   func(i int) canary.Request
		}{
			{"draws", func(int) canary.Request { return request("m", "", nil) }},
			{"numbers", func(i int) canary.Request { return request("m", fmt.Sprint(i), nil) }},
			{"addresses", func(i int) canary.Request {
				return request("m", fmt.Sprintf("user%d@example.com", i), nil)
			}},
		} {
			t.Run(fmt.Sprint(weights, " ", source.name), func(t *testing.T) {
				counts := map[string]int{}
				for i := range n {
					counts[name(s, source.of(i), rng.Uint64())]++
				}
				for i, w := range weights {
					within(t, fmt.Sprint("arm-", i), counts[fmt.Sprint("arm-", i)], n, float64(w)/float64(total))
				}
			})
		}
	}
}

// within checks that a count of n draws with probability p is none that chance
// would give once in ten million times or less on its side.
func within(t *testing.T, what string, count, n int, p float64) {
	t.Helper()
	b := distuv.Binomial{N: float64(n), P: p}
	tail := b.CDF(float64(count))
	if float64(count) > b.Mean() {
		tail = 1 - b.CDF(float64(count-1))
	}
	if tail < 1e-7 {
		t.Errorf("%s: %d of %d, want some %.0f; chance gives that once in %.0f times", what, count, n, b.Mean(), 1/tail)
	}
}

// An assignment costs nothing beside a decision, and no memory where a user is
// known.
func BenchmarkAssign(b *testing.B) {
	s := canary.New(two(20))
	r := request("m", "user-4711@example.com", nil)
	b.ReportAllocs()
	for b.Loop() {
		s.Assign(r, 1)
	}
}

// Every policy can be an arm's.
func TestPolicies(t *testing.T) {
	c := canary.DefaultConfig()
	for _, id := range append(scoring.PolicyIDs(), canary.PolicyEnvoy, "") {
		c.Arms = append(c.Arms, canary.Arm{Name: "arm-" + id + "0", Weight: 1, Policy: id})
	}
	if err := c.Validate("canary"); err != nil {
		t.Error(err)
	}
}

// An arm for an alias takes requests by it, one for the model behind it those too.
func TestAssignByAlias(t *testing.T) {
	s := canary.New(canary.Config{Arms: []canary.Arm{
		{Name: "alias", Header: "x-alias", Models: []string{"nick"}},
		{Name: "model", Weight: 1, Models: []string{"m"}},
	}})
	marked := map[string]string{"x-alias": "1"}
	for _, c := range []struct {
		model, alias, want string
		headers            map[string]string
	}{
		{"m", "nick", "alias", marked},
		{"m", "nick", "model", nil},
		{"m", "other", "model", marked},
		{"m", "", "model", marked},
		{"x", "", "", marked},
	} {
		r := request(c.model, "", c.headers)
		r.Alias = c.alias
		if got := name(s, r, 1); got != c.want {
			t.Errorf("%s for %s: arm %q, want %q", c.alias, c.model, got, c.want)
		}
	}
}
