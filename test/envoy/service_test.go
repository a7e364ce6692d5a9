package envoy_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// service is our side, in this process.
type service struct {
	address string
	picker  *scoring.Picker
	server  *extproc.Server
	metrics *prometheus.Registry
	events  *events
}

// bodyLimit is the service's in most tests.
const bodyLimit = 8 << 20

// startService serves a pool of engines until the test ends.
func startService(t *testing.T, policy string, engines ...*engine) *service {
	t.Helper()
	l, err := extproc.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startServiceOn(t, l, policy, engines...)
}

// startServiceOn serves on l.
func startServiceOn(t *testing.T, l net.Listener, policy string, engines ...*engine) *service {
	t.Helper()
	return startServiceWith(t, l, choosing(policy), engines...)
}

// startWatcher serves a pool of engines that others route to.
func startWatcher(t *testing.T, cfg extproc.ShadowConfig, engines ...*engine) *service {
	t.Helper()
	l, err := extproc.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startServiceFrom(t, l, choosing(scoring.PolicyTTFT), endpoints(engines), func(c *extproc.Config, _ *extproc.Deps) { c.Shadow = cfg })
}

// startServiceWith serves on l and chooses as cfg says.
func startServiceWith(t *testing.T, l net.Listener, choice scoring.Config, engines ...*engine) *service {
	t.Helper()
	return startServiceFrom(t, l, choice, endpoints(engines), func(*extproc.Config, *extproc.Deps) {})
}

// startServiceFrom serves a pool on l, set up as change does.
func startServiceFrom(t *testing.T, l net.Listener, choice scoring.Config, pool []scoring.Endpoint, change func(*extproc.Config, *extproc.Deps)) *service {
	t.Helper()
	picker, err := scoring.NewPicker(choice, time.Now, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	picker.SetEndpoints(pool)
	s := &service{picker: picker, metrics: prometheus.NewRegistry(), events: newEvents()}
	cfg := extproc.DefaultConfig()
	cfg.BodyLimit, cfg.DrainDelay = bodyLimit, 0
	deps := extproc.Deps{
		Picker: picker, Encoder: encoder{}, Metrics: extproc.NewMetrics(s.metrics),
		Log: slog.New(slog.DiscardHandler), Observer: s.events, Probe: s.events.probe,
	}
	change(&cfg, &deps)
	s.server = extproc.NewServer(cfg, deps)
	s.address = l.Addr().String()
	s.server.SetReady(true)
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(l) }()
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		s.server.Drain(now)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

// value is that of a metric: the one with the label, or all together where it is
// empty.
func (s *service) value(t *testing.T, name, label string) (sum float64) {
	t.Helper()
	families, err := s.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || m.GetLabel()[0].GetValue() == label {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func endpoints(engines []*engine) []scoring.Endpoint {
	var list []scoring.Endpoint
	for i, e := range engines {
		list = append(list, scoring.Endpoint{
			ID: scoring.EndpointID(i + 1), Name: e.address, Address: e.address, Cluster: "engine-" + e.address,
			Models: []string{"m"}, Ready: true,
		})
	}
	return list
}

// config is the Envoy config for a service and its engines. Envoy waits for the
// service for as long as a test does: what a test says of choices must hold on
// a busy machine too.
func config(s *service, engines ...*engine) envoy.Config {
	c := envoy.Config{Service: s.address, BodyLimit: bodyLimit, DecisionDeadline: patience, Route: envoy.RouteOverrideHost}
	for _, e := range engines {
		c.Endpoints = append(c.Endpoints, envoy.Endpoint{Address: e.address, Cluster: "engine-" + e.address})
	}
	return c
}

// encoder reads just enough of a request for these tests.
type encoder struct{}

func (encoder) Encode(_ context.Context, r prompt.Request) (*scoring.Prompt, error) {
	var body struct {
		Model  string `json:"model"`
		Prompt string `json:"prompt"`
		Stream bool   `json:"stream"`
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		return nil, &prompt.RequestError{Status: http.StatusBadRequest, Type: "Bad Request", Message: err.Error(), Param: "body"}
	}
	return &scoring.Prompt{
		Model: body.Model, Streamed: body.Stream, Source: scoring.TokensEstimated,
		Sequences: []scoring.Sequence{{Length: scoring.Tokens(len(body.Prompt)/4 + 1), Copies: 1}},
	}, nil
}

// events hands on what the service learns, so that tests can wait for it.
type events struct {
	decided    chan *scoring.Decision
	firstToken chan time.Duration
	ended      chan ending
	probed     chan string
}

// ending is one call of Ended.
type ending struct {
	decision *scoring.Decision
	outcome  scoring.Outcome
	served   string
}

// newEvents has room for the largest test.
func newEvents() *events {
	const room = 1 << 16
	return &events{
		decided: make(chan *scoring.Decision, room), firstToken: make(chan time.Duration, room),
		ended: make(chan ending, room), probed: make(chan string, room),
	}
}

func (e *events) Decided(d *scoring.Decision)                            { e.decided <- d }
func (e *events) FirstToken(_ *scoring.Decision, ttft time.Duration)     { e.firstToken <- ttft }
func (e *events) Ended(d *scoring.Decision, o scoring.Outcome, s string) { e.ended <- ending{d, o, s} }
func (e *events) probe(address string)                                   { e.probed <- address }

// next waits for one event.
func next[T any](t *testing.T, what string, events <-chan T) T {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case e := <-events:
		return e
	case <-timeout.C:
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// none checks that an event that cannot come any more has not come.
func none[T any](t *testing.T, what string, events <-chan T) {
	t.Helper()
	select {
	case e := <-events:
		t.Errorf("unwanted %s: %v", what, e)
	default:
	}
}

// choosing is the default one with a policy.
func choosing(policy string) scoring.Config {
	c := scoring.DefaultConfig()
	c.Policy = policy
	return c
}
