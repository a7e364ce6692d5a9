package envoy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// survey is many clients' requests, and what was seen of them.
type survey struct {
	t     *testing.T
	proxy *proxy
	// done counts answers; while one runs a test may change the world at a number.
	done atomic.Int64
	mu   sync.Mutex // guards the following
	// failed is what went wrong.
	failed []string
	// arms counts answers by their header x-firsttoken-arm, empty where there is
	// none, chosen those with a reason.
	arms   map[string]int
	chosen int
	// users are the arms that each user was in.
	users map[string]map[string]bool
}

// ask sends n requests, eight at a time, and returns when the last is answered.
// prepare, which may be nil, may change the i-th one.
func (s *survey) ask(n int, prepare func(i int, r *http.Request)) {
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				s.one(transport, i, prepare)
				s.done.Add(1)
			}
		})
	}
	clients.Wait()
}

func (s *survey) one(transport *http.Transport, i int, prepare func(int, *http.Request)) {
	fail := func(format string, args ...any) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failed = append(s.failed, fmt.Sprintf(format, args...))
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.proxy.clients+"/v1/completions", strings.NewReader(completion("hello")))
	if err != nil {
		fail("%v", err)
		return
	}
	if prepare != nil {
		prepare(i, req)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		fail("%v", err)
		return
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(text) != answer() {
		fail("%s %q %v", resp.Status, text, err)
		return
	}
	arm, user := resp.Header.Get(envoy.HeaderArm), req.Header.Get("x-user")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arms[arm]++
	reason := resp.Header.Get(envoy.HeaderReason)
	if reason != "" {
		s.chosen++
	}
	if user != "" {
		if s.users[user] == nil {
			s.users[user] = map[string]bool{}
		}
		s.users[user][arm+" "+fmt.Sprint(reason != "")] = true
	}
}

func newSurvey(t *testing.T, p *proxy) *survey {
	t.Helper()
	return &survey{t: t, proxy: p, arms: map[string]int{}, users: map[string]map[string]bool{}}
}

// answered checks that n requests had their whole answer.
func (s *survey) answered(t *testing.T, n int) {
	t.Helper()
	total := 0
	for _, count := range s.arms {
		total += count
	}
	if len(s.failed) > 0 {
		t.Errorf("%d of %d failed, the first: %s", len(s.failed), n, s.failed[0])
	}
	if total != n {
		t.Errorf("%d of %d were answered", total, n)
	}
}

// share checks a count of n independent draws with probability p. All such checks
// of a run of these tests together, some 25, fail by chance once in a million runs.
func share(t *testing.T, what string, count, n int, p float64) {
	t.Helper()
	b := distuv.Binomial{N: float64(n), P: p}
	tail := b.CDF(float64(count))
	if float64(count) > b.Mean() {
		tail = 1 - b.CDF(float64(count-1))
	}
	if tail < 2e-8 {
		t.Errorf("%s: %d of %d, want some %.0f", what, count, n, b.Mean())
	}
}

// shareOut are arms of so many per cent for the service, the rest for Envoy.
func shareOut(percent int) canary.Config {
	c := canary.DefaultConfig()
	c.Arms = []canary.Arm{
		{Name: "ours", Weight: percent, Policy: scoring.PolicyLeastLoad},
		{Name: "plain", Weight: 100 - percent, Policy: canary.PolicyEnvoy},
		{Name: "asked", Policy: scoring.PolicyTTFT, Header: "x-canary: on"},
	}
	return c
}

// armMetric is a counter, or the count of a histogram, of one arm; of one outcome
// where it is named.
func (s *service) armMetric(t *testing.T, name, arm, outcome string) (sum int) {
	t.Helper()
	families, err := s.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "firsttoken_arm_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["arm"] == arm && (outcome == "" || labels["outcome"] == outcome) {
				sum += int(m.GetCounter().GetValue()) + int(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// The service shares requests out by weight: each arm has its share within what
// chance allows, also when the weights change under load; a header decides
// whatever the weights; and the metrics of each arm are what clients saw.
func TestArms(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t)}
			s := startService(t, scoring.PolicyRoundRobin, engines...)
			s.server.SetArms(shareOut(20))
			p := startEnvoyWith(t, withModes(t, config(s, engines...), mode, "SEND", "STREAMED"))
			const n = 250
			total := map[string]int{}
			for _, percent := range []int{20, 50, 0, 100} {
				v := newSurvey(t, p)
				arms := shareOut(percent)
				if percent == 0 { // nothing but its weight is said of an arm that rests
					arms.Arms[0].Header = "x-never"
				}
				s.server.SetArms(arms)
				v.ask(n, func(i int, r *http.Request) {
					if i%10 == 0 {
						r.Header.Set("x-canary", "on")
					}
				})
				v.answered(t, n)
				if v.arms["asked"] != n/10 {
					t.Errorf("at %d: %d answers bear the arm of the header, want %d", percent, v.arms["asked"], n/10)
				}
				if got := v.arms["ours"] + v.arms["plain"]; got != n-n/10 {
					t.Errorf("at %d: arms %v", percent, v.arms)
				}
				share(t, fmt.Sprint("at ", percent), v.arms["ours"], n-n/10, float64(percent)/100)
				if v.chosen != v.arms["ours"]+v.arms["asked"] {
					t.Errorf("at %d: the service chose %d times, arms %v", percent, v.chosen, v.arms)
				}
				for arm, count := range v.arms {
					total[arm] += count
				}
			}
			for arm, want := range total {
				eventually(t, "the end of every request of "+arm+" was told", func() bool {
					return s.armMetric(t, "requests_ended_total", arm, "complete") == want
				})
				if got := s.armMetric(t, "requests_total", arm, ""); got != want {
					t.Errorf("%d requests of arm %s, clients saw %d", got, arm, want)
				}
				if got := s.armMetric(t, "ttft_seconds", arm, ""); got != want {
					t.Errorf("%d first tokens of arm %s, clients saw %d", got, arm, want)
				}
				if got := s.armMetric(t, "requests_ended_total", arm, ""); got != want {
					t.Errorf("%d ends of arm %s, clients saw %d", got, arm, want)
				}
			}
			if open := s.picker.Stats().Open; open != 0 {
				t.Errorf("%d reservations are left", open)
			}
		})
	}
}

// Each user is wholly in one arm, and who was in at 20 per cent is in at 50.
func TestArmsSticky(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t)}
	s := startService(t, scoring.PolicyRoundRobin, engines...)
	p := startEnvoy(t, config(s, engines...))
	const users, each = 120, 5
	in := map[string]bool{}
	for _, percent := range []int{20, 50} {
		arms := shareOut(percent)
		arms.UserHeader = "x-user"
		s.server.SetArms(arms)
		v := newSurvey(t, p)
		v.ask(users*each, func(i int, r *http.Request) { r.Header.Set("x-user", fmt.Sprint("user-", i%users)) })
		v.answered(t, users*each)
		inside := 0
		for user, seen := range v.users {
			if len(seen) != 1 {
				t.Errorf("at %d: %s was in %v", percent, user, seen)
			}
			now := seen["ours true"]
			if in[user] && !now {
				t.Errorf("at %d: %s has left the arm", percent, user)
			}
			if in[user] = now; now {
				inside++
			}
		}
		share(t, fmt.Sprint("users at ", percent), inside, users, float64(percent)/100)
	}
}

// A request without an arm says nothing of any.
func TestNoArms(t *testing.T) {
	e := startEngine(t)
	s := startService(t, scoring.PolicyRoundRobin, e)
	resp := post(t, startEnvoy(t, config(s, e)), completion("hello"))
	if got, there := resp.header[http.CanonicalHeaderKey(envoy.HeaderArm)]; there {
		t.Errorf("%s: %q", envoy.HeaderArm, got)
	}
}
