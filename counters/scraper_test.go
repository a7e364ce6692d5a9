package counters

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// fleet is a Scraper over engines that answer what a test says, and what its
// observer was told.
type fleet struct {
	*Scraper

	mu      sync.Mutex // guards the following
	log     strings.Builder
	answers map[scoring.EndpointID]func(context.Context) (string, error)
	asked   map[scoring.EndpointID]int
	told    map[scoring.EndpointID][]bool // restarted, by reading
}

func newFleet(cfg Config) *fleet {
	f := &fleet{
		answers: make(map[scoring.EndpointID]func(context.Context) (string, error)),
		asked:   make(map[scoring.EndpointID]int),
		told:    make(map[scoring.EndpointID][]bool),
	}
	f.Scraper = New(cfg, f.fetch, slog.New(slog.NewTextHandler(f, nil)), func(id scoring.EndpointID, _ Reading, restarted bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.told[id] = append(f.told[id], restarted)
	})
	return f
}

func (f *fleet) fetch(ctx context.Context, id scoring.EndpointID, path string, limit int64) ([]byte, error) {
	f.mu.Lock()
	answer := f.answers[id]
	f.asked[id]++
	f.mu.Unlock()
	if path != "/metrics" || limit < 1<<20 {
		return nil, fmt.Errorf("asked for %d bytes of %s", limit, path)
	}
	text, err := answer(ctx)
	return []byte(text), err
}

// Write takes in the log.
func (f *fleet) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.Write(line)
}

func (f *fleet) logged() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.String()
}

// of is how often an endpoint was asked, and what the observer was told of it.
func (f *fleet) of(id scoring.EndpointID) (asked int, told []bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[id], slices.Clone(f.told[id])
}

// reading is the newest of an endpoint, as the status shows it.
func (f *fleet) reading(id scoring.EndpointID) (r Reading, ok bool) {
	for _, row := range f.Status() {
		if row.Endpoint == id && row.Reading != nil {
			return *row.Reading, true
		}
	}
	return Reading{}, false
}

// answer sets what an engine says from now on.
func (f *fleet) answer(id scoring.EndpointID, text string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[id] = func(context.Context) (string, error) { return text, err }
}

func (f *fleet) endpoints(ids ...scoring.EndpointID) {
	var list []scoring.Endpoint
	for _, id := range ids {
		list = append(list, scoring.Endpoint{ID: id, Name: fmt.Sprint("e", id), Ready: true})
	}
	f.SetEndpoints(list)
}

// run runs f until the test ends.
func (f *fleet) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// pass lets d pass and everything happen that happens then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func counted(start time.Time, queries int) string {
	return fmt.Sprintf("process_start_time_seconds %d\nvllm:prefix_cache_queries_total %d\nvllm:prefix_cache_hits_total %d\n", start.Unix(), queries, queries/2)
}

func TestReadsEachEndpointAtItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(DefaultConfig())
		f.endpoints(1)
		f.answer(1, counted(time.Now(), 10), nil)
		f.answer(2, counted(time.Now(), 20), nil)
		f.run(t)
		synctest.Wait()
		if r, ok := f.reading(1); !ok || r.PrefixQueries != 10 || !r.At.Equal(time.Now()) {
			t.Errorf("not read at once: %+v", r)
		}
		if _, ok := f.reading(2); ok {
			t.Error("a reading of an endpoint that is not there")
		}
		f.endpoints(1, 2)
		pass(time.Minute)
		for _, id := range []scoring.EndpointID{1, 2} {
			// An interval of 2 s to 2.2 s.
			if n, told := f.of(id); n < 28 || n > 31 || len(told) != n {
				t.Errorf("endpoint %d: asked %d times in a minute, told %d", id, n, len(told))
			}
		}
		f.endpoints(2)
		pass(0)
		n, _ := f.of(1)
		pass(time.Minute)
		if again, _ := f.of(1); again != n {
			t.Error("an endpoint that is gone is still asked")
		}
		if _, ok := f.reading(1); ok || len(f.Status()) != 1 {
			t.Error("an endpoint that is gone is still known")
		}
	})
}

func TestSlowEngineDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Timeout = 10 * time.Second
		f := newFleet(cfg)
		f.answers[1] = func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}
		f.answer(2, counted(time.Now(), 1), nil)
		f.endpoints(1, 2)
		f.run(t)
		pass(59 * time.Second)
		if _, told := f.of(2); len(told) < 27 {
			t.Errorf("the other was read %d times in a minute", len(told))
		}
		if n, told := f.of(1); n != 6 || len(told) != 0 {
			t.Errorf("the slow one was asked %d times and read %d times; want 6 with a timeout of 10s, and 0", n, len(told))
		}
	})
}

func TestRestartIsSeen(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	plain := func(queries, external, prompt int) string {
		return fmt.Sprintf("vllm:prefix_cache_queries_total %d\nvllm:prefix_cache_hits_total %d\nvllm:external_prefix_cache_queries_total %d\nvllm:prompt_tokens_total %d\n", queries, queries, external, prompt)
	}
	tests := []struct {
		name          string
		before, after string
		want          bool
	}{
		{"goes on", counted(began, 10), counted(began, 20), false},
		{"nothing new", counted(began, 10), counted(began, 10), false},
		{"counts less", counted(began, 10), counted(began, 9), true},
		{"another process that has counted more", counted(began, 10), counted(began.Add(5*time.Second), 20), true},
		{"the clock of the kernel was set", counted(began, 10), counted(began.Add(time.Second), 20), false},
		{"no start told, counts less", plain(10, 5, 7), plain(9, 5, 7), true},
		{"the connector counts less", plain(10, 5, 7), plain(10, 4, 7), true},
		{"fewer prompts", plain(10, 5, 7), plain(10, 5, 6), true},
		{"no start told, goes on", plain(10, 5, 7), plain(11, 6, 8), false},
		{"nothing is counted", "", "", false},
		{"the count begins later", "", plain(10, 5, 7), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(DefaultConfig())
				f.endpoints(1)
				f.answer(1, tt.before, nil)
				f.run(t)
				pass(time.Second)
				// While it starts it does not answer; that alone says nothing.
				f.answer(1, "", errors.New("connection refused"))
				pass(10 * time.Second)
				if _, ok := f.reading(1); !ok || f.Status()[0].Fault == "" {
					t.Error("the reading is lost with an engine that does not answer, or the fault is not told")
				}
				f.answer(1, tt.after, nil)
				pass(10 * time.Second)
				_, told := f.of(1)
				if told[0] || told[1] != tt.want {
					t.Errorf("restarted: %v, want the second to be %v", told, tt.want)
				}
				for _, again := range told[2:] {
					if again {
						t.Error("told twice")
					}
				}
				if n := f.Status()[0].Restarts; n > 0 != tt.want {
					t.Errorf("%d restarts in the status", n)
				}
			})
		})
	}
}

// Engines behind one address answer by turns: that is said once, and is no
// restart again and again.
func TestSeveralProcessesAreNoRestarts(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	plain := func(prompt int) string { return fmt.Sprintf("vllm:prompt_tokens_total %d\n", prompt) }
	tests := []struct {
		name string
		// turns are answers one after the other; then the last goes on alone.
		turns    []string
		restarts uint64 // believed at most, before it is known
	}{
		{"two, round robin", []string{counted(began, 10), counted(began.Add(time.Hour), 5)}, 1},
		{"three, with one more often", []string{counted(began, 10), counted(began.Add(time.Hour), 5), counted(began, 11), counted(began.Add(-time.Hour), 90)}, 1},
		{"no starts told", []string{plain(900), plain(50)}, maxChanges - 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(DefaultConfig())
				turn := 0
				f.answers[1] = func(context.Context) (string, error) {
					turn++
					return tt.turns[turn%len(tt.turns)], nil
				}
				f.endpoints(1)
				f.run(t)
				pass(10 * time.Minute)
				row := f.Status()[0]
				if !row.Reading.Several || row.Restarts > tt.restarts {
					t.Errorf("%d restarts, want at most %d: %+v", row.Restarts, tt.restarts, row.Reading)
				}
				if r := row.Reading; r.Counted || r.PrefixQueries+r.PromptTokens > 0 || !r.Started.IsZero() {
					t.Errorf("counts of one of several: %+v", r)
				}
				if n := strings.Count(f.logged(), "several engine processes"); n != 1 {
					t.Errorf("logged %d times:\n%s", n, f.logged())
				}
				f.answer(1, tt.turns[0], nil)
				pass(severalFor + time.Minute)
				f.answer(1, counted(began.Add(24*time.Hour), 1), nil)
				pass(time.Minute)
				if again := f.Status()[0]; again.Reading.Several || again.Restarts != row.Restarts+1 {
					t.Errorf("after one was alone for long, %d restarts, want one more than %d: %+v", again.Restarts, row.Restarts, again.Reading)
				}
			})
		})
	}
}

// An engine that is restarted now and then stays one.
func TestRestartsAreNotSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(DefaultConfig())
		f.endpoints(1)
		f.answer(1, counted(time.Now(), 10), nil)
		f.run(t)
		for range 40 {
			pass(30 * time.Second)
			f.answer(1, counted(time.Now(), 10), nil)
		}
		pass(30 * time.Second)
		if row := f.Status()[0]; row.Restarts != 40 || row.Reading.Several {
			t.Errorf("%d restarts of 40: %+v", row.Restarts, row.Reading)
		}
	})
}

// A fault is logged once until it is over; one of an engine that is not ready
// is known from its probes.
func TestFaultIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(DefaultConfig())
		f.SetEndpoints([]scoring.Endpoint{{ID: 1, Name: "ready", Ready: true}, {ID: 2, Name: "down"}, {ID: 3, Name: "garbled", Ready: true}})
		f.answer(1, "", errors.New("GET /metrics: status 404"))
		f.answer(2, "", errors.New("connection refused"))
		f.answer(3, "vllm:prompt_tokens_total {", nil)
		f.run(t)
		pass(time.Minute)
		if n := strings.Count(f.logged(), "status 404"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, f.logged())
		}
		if strings.Contains(f.logged(), "refused") {
			t.Errorf("an engine that is not ready is logged:\n%s", f.logged())
		}
		if !strings.Contains(f.logged(), "not Prometheus' text format") {
			t.Errorf("the fault in the answer is not named:\n%s", f.logged())
		}
		f.answer(1, "", nil)
		pass(5 * time.Second)
		f.answer(1, "", errors.New("GET /metrics: status 404"))
		pass(time.Minute)
		if n := strings.Count(f.logged(), "status 404"); n != 2 {
			t.Errorf("after it was over, logged %d times", n)
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(DefaultConfig())
		reg := prometheus.NewRegistry()
		NewMetrics(reg, f.Scraper)
		f.endpoints(1, 2)
		f.answer(1, "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\",enable_prefix_caching=\"False\"} 1\n", nil)
		f.answer(2, "", errors.New("no"))
		f.run(t)
		pass(time.Second)
		for want, value := range map[string]float64{
			`firsttoken_engine_counters_scrapes_total e1 ok`:     1,
			`firsttoken_engine_counters_scrapes_total e1 failed`: 0,
			`firsttoken_engine_counters_scrapes_total e2 failed`: 1,
			`firsttoken_engine_counters_age_seconds e1`:          1,
			`firsttoken_engine_counters_age_seconds e2`:          -1,
			`firsttoken_engine_cache_capacity_tokens e1 gpu`:     1600,
			`firsttoken_engine_cache_capacity_tokens e1 host`:    0,
			`firsttoken_engine_restarts_total e1`:                0,
		} {
			if got, ok := gathered(t, reg)[want]; !ok || got != value {
				t.Errorf("%s is %v (%v), want %v", want, got, ok, value)
			}
		}
		if !strings.Contains(f.logged(), "--enable-prefix-caching") {
			t.Errorf("an engine without prefix caching is not logged:\n%s", f.logged())
		}
	})
}

// gathered are the values of all series by name and label values.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

// Over real connections, with engines that answer, fail and are slow.
func TestOverHTTP(t *testing.T) {
	hang := make(chan struct{})
	serve := func(h http.HandlerFunc) string {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		return server.URL
	}
	urls := map[scoring.EndpointID]string{
		1: serve(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "testdata/vllm-0.32.txt") }),
		2: serve(http.NotFound),
		3: serve(func(http.ResponseWriter, *http.Request) { <-hang }),
	}
	t.Cleanup(func() { close(hang) })
	readings := make(chan Reading, 1000)
	cfg := DefaultConfig()
	cfg.Interval = 100 * time.Millisecond
	s := New(cfg, func(ctx context.Context, id scoring.EndpointID, path string, limit int64) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, urls[id]+path, nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, errors.New(resp.Status)
		}
		return io.ReadAll(io.LimitReader(resp.Body, limit))
	}, slog.New(slog.DiscardHandler), func(id scoring.EndpointID, r Reading, restarted bool) {
		if id != 1 || restarted {
			t.Errorf("endpoint %d, restarted %v", id, restarted)
		}
		readings <- r
	})
	s.SetEndpoints([]scoring.Endpoint{{ID: 1}, {ID: 2}, {ID: 3}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	for range 3 {
		if r := <-readings; r.PrefixQueries != captured.PrefixQueries || r.CapacityTokens != captured.CapacityTokens {
			t.Errorf("read %+v", r)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestConfigFaults(t *testing.T) {
	if err := DefaultConfig().Validate("counters"); err != nil {
		t.Error(err)
	}
	err := Config{Path: "metrics"}.Validate("counters")
	for _, key := range []string{"counters.path", "counters.interval", "counters.timeout"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not named in %v", key, err)
		}
	}
}
