package discovery

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/scoring"
)

// world is a network of fakes: names, and engines by ip:port.
type world struct {
	mu      sync.Mutex
	names   map[string]string // host to addresses; missing: the resolver fails
	engines map[string]*fakeEngine
}

type fakeEngine struct {
	world   *world
	down    bool
	hangs   bool
	serves  []string // nil: /v1/models fails
	probes  []time.Time
	queries int
	// stuck: it answers probes and computes nothing.
	stuck  bool
	trials []trial
	// refuses, when set, is the status of every trial.
	refuses int
}

// trial is one question for a token.
type trial struct {
	at    time.Time
	model string
}

func (w *world) engine(_ target, address netip.AddrPort) engine {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.engines[address.String()]
	if e == nil {
		e = &fakeEngine{down: true}
		w.engines[address.String()] = e
	}
	e.world = w
	return e
}

func (w *world) resolve(_ context.Context, t target) ([]found, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list, ok := w.names[t.host]
	if !ok {
		return nil, errors.New("no such host")
	}
	return t.at(addrs(strings.Fields(list)...)), nil
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (e *fakeEngine) health(ctx context.Context, _ string) error {
	e.world.mu.Lock()
	down, hangs := e.down, e.hangs
	e.probes = append(e.probes, time.Now())
	e.world.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if down {
		return errDown
	}
	return nil
}

func (e *fakeEngine) models(context.Context) (served, error) {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	e.queries++
	if e.serves == nil {
		return served{}, errNoModels
	}
	return served{names: e.serves}, nil
}

func (e *fakeEngine) try(ctx context.Context, model string) error {
	e.world.mu.Lock()
	stuck, refuses := e.stuck, e.refuses
	e.trials = append(e.trials, trial{time.Now(), model})
	e.world.mu.Unlock()
	if refuses != 0 {
		return &statusError{"POST", "/v1/completions", refuses}
	}
	if stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (e *fakeEngine) get(context.Context, string, int64) ([]byte, error) { return nil, errDown }

// fleet is a Watcher that runs in a synctest bubble over a world.
type fleet struct {
	*Watcher
	mu    sync.Mutex
	lists []string
	reg   *prometheus.Registry
}

func (f *fleet) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lists) == 0 {
		return "nothing published"
	}
	return f.lists[len(f.lists)-1]
}

func (f *fleet) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.lists)
}

// run starts a Watcher; it ends, with all its goroutines, when the test does.
func run(t *testing.T, w *world, entries ...Entry) *fleet {
	t.Helper()
	f := &fleet{reg: prometheus.NewRegistry()}
	watcher, err := newWatcher(DefaultConfig(), entries, w, slog.New(slog.DiscardHandler), NewMetrics(f.reg), func(list []scoring.Endpoint) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.lists = append(f.lists, show(list))
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Watcher = watcher
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watcher.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return f
}

func expect(t *testing.T, f *fleet, want string) {
	t.Helper()
	synctest.Wait()
	if got := f.last(); got != want {
		t.Errorf("at %s: got\n%swant\n%s", time.Now().Format("05.000"), got, want)
	}
}

const (
	one = "10.0.0.1:8000"
	two = "10.0.0.2:8000"
)

func TestListFollowsProbesAndModels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{engines: map[string]*fakeEngine{one: {serves: []string{"m", "alias"}}, two: {down: true}}}
		f := run(t, w, Entry{Address: one}, Entry{Address: two})
		expect(t, f, "1 "+one+" "+one+" ready [m alias]\n2 "+two+" "+two+" down []\n")

		// Long enough to be asked for its models again.
		published := f.count()
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if got := f.count() - published; got != 0 {
			t.Errorf("%d lists published though nothing changed", got)
		}

		// The engine comes up with other models than it is known for.
		w.change(func() { w.engines[two].down, w.engines[two].serves = false, []string{"n"} })
		time.Sleep(2 * time.Second)
		expect(t, f, "1 "+one+" "+one+" ready [m alias]\n2 "+two+" "+two+" ready [n]\n")

		// It restarts with yet another one: asked at once when it is back.
		w.change(func() { w.engines[two].down = true })
		time.Sleep(4 * time.Second)
		expect(t, f, "1 "+one+" "+one+" ready [m alias]\n2 "+two+" "+two+" down [n]\n")
		w.change(func() { w.engines[two].down, w.engines[two].serves = false, []string{"o"} })
		time.Sleep(2 * time.Second)
		expect(t, f, "1 "+one+" "+one+" ready [m alias]\n2 "+two+" "+two+" ready [o]\n")

		// An adapter is loaded while it runs: seen within the models interval.
		w.change(func() { w.engines[one].serves = []string{"m", "alias", "lora"} })
		time.Sleep(time.Minute + 2*time.Second)
		expect(t, f, "1 "+one+" "+one+" ready [m alias lora]\n2 "+two+" "+two+" ready [o]\n")
	})
}

func TestModelsAreAskedUntilKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{engines: map[string]*fakeEngine{one: {}, two: {}}}
		f := run(t, w, Entry{Address: one}, Entry{Address: two, Models: []string{"given"}})
		time.Sleep(9 * time.Second)
		w.change(func() {
			if got := w.engines[one].queries; got != 5 {
				t.Errorf("asked %d times in 9 s, want 5: with each good probe", got)
			}
			if got := w.engines[two].queries; got != 1 {
				t.Errorf("asked %d times for adapters of configured models, want once in a models interval", got)
			}
			w.engines[one].serves = []string{"m"}
		})
		time.Sleep(2 * time.Second)
		expect(t, f, "1 "+one+" "+one+" ready [m]\n2 "+two+" "+two+" ready [given]\n")
	})
}

// One endpoint that hangs must not delay the others' probes.
func TestProbesRunInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{engines: map[string]*fakeEngine{one: {hangs: true}, two: {serves: []string{"m"}}}}
		f := run(t, w, Entry{Address: one}, Entry{Address: two})
		start := time.Now()
		time.Sleep(3 * time.Second)
		expect(t, f, "1 "+one+" "+one+" down []\n2 "+two+" "+two+" ready [m]\n")
		time.Sleep(3 * time.Second)
		w.change(func() {
			for i, at := range w.engines[two].probes {
				if want := start.Add(time.Duration(i) * 2 * time.Second); !at.Equal(want) {
					t.Errorf("probe %d at +%s, want +%s", i, at.Sub(start), want.Sub(start))
				}
			}
		})
	})
}

func TestFailedRequestsProbeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{engines: map[string]*fakeEngine{one: {serves: []string{"m"}}}}
		f := run(t, w, Entry{Address: one})
		time.Sleep(time.Second)

		// A thousand requests fail within a second, but the engine is well.
		for range 1000 {
			f.ProbeNow(one)
			f.ProbeNow("10.9.9.9:1")
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		w.change(func() {
			if got := len(w.engines[one].probes); got < 4 || got > 6 {
				t.Errorf("%d probes, want one each %s besides the regular ones", got, probeGap)
			}
		})
		expect(t, f, "1 "+one+" "+one+" ready [m]\n")

		// Now it is dead: one failed request and the probe it asked for.
		time.Sleep(time.Second)
		w.change(func() { w.engines[one].down = true })
		f.ProbeNow(one)
		expect(t, f, "1 "+one+" "+one+" down [m]\n")
	})
}

func TestNamesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{names: map[string]string{}, engines: map[string]*fakeEngine{one: {serves: []string{"m"}}, two: {serves: []string{"m"}}}}
		f := run(t, w, Entry{Name: "gpu", Address: "gpu.example:8000"})
		select {
		case <-f.Synced():
		default:
			t.Error("not synced though the name was tried")
		}
		expect(t, f, "nothing published")

		// The DNS learns the name a moment later.
		w.change(func() { w.names["gpu.example"] = "10.0.0.1" })
		time.Sleep(2 * time.Second)
		expect(t, f, "1 gpu "+one+" ready [m]\n")

		// The engine moves: the address is another endpoint.
		w.change(func() { w.names["gpu.example"] = "10.0.0.2" })
		time.Sleep(30 * time.Second)
		expect(t, f, "2 gpu "+two+" ready [m]\n")

		w.change(func() { w.names["gpu.example"] = "10.0.0.1 10.0.0.2" })
		time.Sleep(30 * time.Second)
		expect(t, f, "3 gpu@"+one+" "+one+" ready [m]\n2 gpu@"+two+" "+two+" ready [m]\n")

		// An outage of the DNS takes no engine away.
		w.change(func() { delete(w.names, "gpu.example") })
		time.Sleep(5 * time.Minute)
		expect(t, f, "3 gpu@"+one+" "+one+" ready [m]\n2 gpu@"+two+" "+two+" ready [m]\n")

		w.change(func() { w.names["gpu.example"] = "10.0.0.2" })
		time.Sleep(30 * time.Second)
		expect(t, f, "2 gpu "+two+" ready [m]\n")
		const want = `
			# HELP firsttoken_endpoint_ready 1 where the endpoint may get requests, 0 after failed probes.
			# TYPE firsttoken_endpoint_ready gauge
			firsttoken_endpoint_ready{endpoint="gpu"} 1
		`
		if err := testutil.GatherAndCompare(f.reg, strings.NewReader(want), "firsttoken_endpoint_ready"); err != nil {
			t.Error(err)
		}

		// Nothing probes the addresses that are gone.
		w.change(func() { w.engines[one].probes = nil })
		time.Sleep(time.Minute)
		w.change(func() {
			if got := len(w.engines[one].probes); got != 0 {
				t.Errorf("%d probes of an endpoint that is gone", got)
			}
		})
	})
}

func TestStatusTellsTheFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{engines: map[string]*fakeEngine{one: {down: true}}}
		f := run(t, w, Entry{Address: one})
		status := f.Status()
		if len(status) != 1 || !errors.Is(status[0].Fault, errDown) || status[0].Probed.IsZero() || status[0].Endpoint.Ready {
			t.Errorf("%+v", status)
		}
	})
}

// A fleet of a thousand is probed five hundred times a second: a probe that
// changes nothing must cost next to nothing.
func BenchmarkProbedThousandEndpoints(b *testing.B) {
	entries := make([]Entry, 1000)
	for i := range entries {
		entries[i].Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 8000).String()
	}
	w, err := newWatcher(DefaultConfig(), entries, &world{}, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), func([]scoring.Endpoint) {})
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range w.roster.entries {
		ip, _ := e.target.literal()
		w.roster.resolved(e, e.target.at([]netip.Addr{ip}))
	}
	w.publishLocked()
	for i := 0; b.Loop(); i++ {
		w.probed(scoring.EndpointID(i%1000+1), time.Millisecond, nil, false)
	}
}
