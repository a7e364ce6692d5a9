package remote_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/lmcache/remote"
	"github.com/firsttoken/firsttoken/scoring"
)

// registry answers as a controller and as a coordinator do, with what a test
// sets.
type registry struct {
	*httptest.Server
	lookup  atomic.Value // func(http.ResponseWriter, *http.Request)
	lookups atomic.Int32

	mu    sync.Mutex // guards the following
	conns map[string]bool
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{conns: make(map[string]bool)}
	r.answer(`{"layout_info":{}}`)
	answer := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/query_worker_info", answer(`{"event_id":"e","worker_infos":[{"instance_id":"i","worker_id":0,"ip":"10.0.0.1","port":5,"registration_time":1.5,"extra":[]},
		{"instance_id":"i","worker_id":1,"ip":"10.0.0.1","port":6,"registration_time":1.5},{"instance_id":"j","worker_id":0,"ip":"10.0.0.2","port":0,"registration_time":2}]}`))
	mux.HandleFunc("/instances", answer(`{"instances":[{"instance_id":"i","ip":"10.0.0.1"},{"instance_id":"mute","ip":"10.0.0.2"}]}`))
	mux.HandleFunc("/directory/stats", answer(`{"l1_keys_by_instance":{"i":3}}`))
	look := func(w http.ResponseWriter, q *http.Request) {
		r.lookups.Add(1)
		r.mu.Lock()
		r.conns[q.RemoteAddr] = true
		r.mu.Unlock()
		_, _ = io.Copy(io.Discard, q.Body)
		r.lookup.Load().(func(http.ResponseWriter, *http.Request))(w, q)
	}
	mux.HandleFunc("/lookup", look)
	mux.HandleFunc("/directory/lookup", look)
	r.Server = httptest.NewServer(mux)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) answer(text string) {
	r.lookup.Store(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
}

func (r *registry) fail(status int) {
	r.lookup.Store(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
}

// hang answers when release is called.
func (r *registry) hang() (release func()) {
	free := make(chan struct{})
	r.lookup.Store(func(w http.ResponseWriter, q *http.Request) {
		select {
		case <-free:
		case <-q.Context().Done():
		}
		_, _ = w.Write([]byte(`{"layout_info":{}}`))
	})
	return sync.OnceFunc(func() { close(free) })
}

type fixture struct {
	*remote.Source
	reg *prometheus.Registry
}

// counted is how many questions had the result.
func (f *fixture) counted(t *testing.T, result string) int {
	t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "firsttoken_lmcache_asked_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "result" && l.GetValue() == result {
					return int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return 0
}

func endpoints() []scoring.Endpoint {
	return []scoring.Endpoint{
		{ID: 1, Name: "a", Address: "10.0.0.1:8000", Models: []string{"m"}, Ready: true},
		{ID: 2, Name: "b", Address: "10.0.0.2:8000", Models: []string{"m"}, Ready: true},
		{ID: 3, Name: "c", Address: "10.0.0.3:8000", Models: []string{"m"}, Ready: true},
	}
}

func newFixture(t *testing.T, r *registry, kind string, change ...func(*remote.Config)) *fixture {
	t.Helper()
	cfg := remote.DefaultConfig()
	cfg.Coordinator, cfg.Controller, cfg.Deadline = r.URL, r.URL, time.Minute
	for _, c := range change {
		c(&cfg)
	}
	f := &fixture{reg: prometheus.NewRegistry()}
	log, metrics := slog.New(slog.DiscardHandler), remote.NewMetrics(f.reg)
	if kind == "controller" {
		f.Source = remote.NewController(cfg, log, metrics)
	} else {
		f.Source = remote.NewCoordinator(cfg, coordinator.Fleet{ChunkSize: 4}, log, metrics)
	}
	f.SetEndpoints(endpoints())
	go f.Run(t.Context())
	for deadline := time.Now().Add(time.Minute); len(f.Status().Mapped) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no members: %+v", f.Status())
		}
	}
	return f
}

func prompt(n int) *scoring.Prompt {
	return &scoring.Prompt{Model: "m", Sequences: []scoring.Sequence{{TokenIDs: make([]uint32, n), Length: scoring.Tokens(n), Usable: scoring.Tokens(n), Copies: 1}}}
}

// ask asks and returns the rows.
func (f *fixture) ask(ctx context.Context, p *scoring.Prompt) [][]scoring.Match {
	defer f.Ask(ctx, p)()
	return f.Match(p, endpoints())
}

var unknown = make([][]scoring.Match, 3)

func on(location string, end scoring.Tokens) []scoring.Match {
	return []scoring.Match{{Cached: end, Spans: []scoring.Span{{End: end, Location: location}}}}
}

var nothing = []scoring.Match{{}}

// "for each chunk in order take the FIRST instance that has the chunk": of who
// is not named nothing is known, unless nobody is.
func TestControllerAnswers(t *testing.T) {
	r := newRegistry(t)
	f := newFixture(t, r, "controller")
	for _, c := range []struct {
		answer string
		want   [][]scoring.Match
	}{
		{`{"event_id":"x","layout_info":{}}`, [][]scoring.Match{nothing, nothing, nil}},
		{`{"layout_info":{"i":["LocalCPUBackend",8],"j":["LocalDiskBackend",12]}}`, [][]scoring.Match{on("LocalCPUBackend", 8), on("LocalDiskBackend", 12), nil}},
		{`{"layout_info":{"i":["LocalCPUBackend",99]}}`, [][]scoring.Match{on("LocalCPUBackend", 14), nil, nil}},
		{`{"layout_info":{"stranger":["LocalCPUBackend",8]}}`, unknown},
		{`{"layout_info":{"i":["LocalCPUBackend"]}}`, unknown},
		{`{"layout_info":{"i":[1,2]}}`, unknown},
		{`{"layout_info":`, unknown},
		{``, unknown},
	} {
		r.answer(c.answer)
		if diff := cmp.Diff(c.want, f.ask(t.Context(), prompt(14))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.answer, diff)
		}
	}
	many := prompt(14)
	for range 20 {
		many.Sequences = append(many.Sequences, many.Sequences[0])
	}
	before := r.lookups.Load()
	if got := f.ask(t.Context(), many); !cmp.Equal(unknown, got) || r.lookups.Load() != before {
		t.Errorf("21 prompts in one request: %v after %d questions", got, r.lookups.Load()-before)
	}
	if f.Heard(1).IsZero() || !f.Heard(3).IsZero() {
		t.Errorf("heard %s, %s", f.Heard(1), f.Heard(3))
	}
}

func TestCoordinatorAnswers(t *testing.T) {
	r := newRegistry(t)
	f := newFixture(t, r, "coordinator")
	part := func(hash, instance, tier string) string {
		return fmt.Sprintf(`{"key":{"chunk_hash_hex":%q},"placements":[{"instance_id":%q,"tier":%q}],"token_ids":[1]}`, hash, instance, tier)
	}
	for _, c := range []struct {
		answer string
		want   [][]scoring.Match
	}{
		{`{"chunks":3,"results":[]}`, [][]scoring.Match{nothing, nil, nil}},
		{`{"chunks":3,"results":[` + part("aa", "i", "l1") + `,` + part("bb", "i", "l1") + `,` + part("cc", "x", "l1") + `]}`, [][]scoring.Match{on("l1", 8), nil, nil}},
		{`{"chunks":3,"results":[` + part("aa", "i", "l1") + `,` + part("aa", "i", "l2") + `]}`, [][]scoring.Match{on("l2", 4), nil, nil}},
		// Another chunk size there: nothing of it can be right.
		{`{"chunks":1,"results":[` + part("aa", "i", "l1") + `]}`, unknown},
		{`{"chunks":3,"results":[` + part("aa", "i", "l1") + `,` + part("bb", "i", "l1") + `,` + part("cc", "i", "l1") + `,` + part("dd", "i", "l1") + `]}`, unknown},
		{`[]`, unknown},
	} {
		r.answer(c.answer)
		if diff := cmp.Diff(c.want, f.ask(t.Context(), prompt(14))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.answer, diff)
		}
	}
	// The server of b registered and reports nothing.
	if s := f.Status(); s.Mapped["b"] != "mute" || len(s.Unmapped) != 1 || !f.Heard(2).IsZero() || !strings.Contains(s.Failed, "decode") && !strings.Contains(s.Failed, "unmarshal") {
		t.Errorf("%+v", s)
	}
	if before := r.lookups.Load(); !cmp.Equal([][]scoring.Match{nothing, nil, nil}, f.ask(t.Context(), prompt(3))) || r.lookups.Load() != before {
		t.Error("less than a chunk was asked about")
	}
}

// One that fails is left alone, and tried again after a while.
func TestBreaker(t *testing.T) {
	r := newRegistry(t)
	f := newFixture(t, r, "controller", func(c *remote.Config) { c.Failures, c.Pause = 3, 100*time.Millisecond })
	r.fail(http.StatusInternalServerError)
	for range 8 {
		if got := f.ask(t.Context(), prompt(8)); !cmp.Equal(unknown, got) {
			t.Fatal(got)
		}
	}
	// A busy machine may let the pause pass in between.
	if n := int(r.lookups.Load()); f.counted(t, "failed") != n || f.counted(t, "spared") != 8-n || n < 3 {
		t.Errorf("%d questions, %d failed, %d spared", n, f.counted(t, "failed"), f.counted(t, "spared"))
	}
	r.answer(`{"layout_info":{"i":["LocalCPUBackend",8]}}`)
	for deadline := time.Now().Add(time.Minute); cmp.Equal(unknown, f.ask(t.Context(), prompt(8))); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never asked again: %+v", f.Status())
		}
	}
	if s := f.Status(); s.Breaker != "closed" || !strings.Contains(s.Failed, "500") {
		t.Errorf("%+v", s)
	}
	if n, err := testutil.GatherAndCount(f.reg, "firsttoken_lmcache_breaker_state"); n != 1 || err != nil {
		t.Error(n, err)
	}
}

// Nobody waits longer than the deadline; a client that leaves says nothing of
// the registry.
func TestLate(t *testing.T) {
	r := newRegistry(t)
	defer r.hang()()
	f := newFixture(t, r, "controller", func(c *remote.Config) { c.Failures, c.Pause, c.Deadline = 2, time.Hour, 20*time.Millisecond })
	for range 2 {
		if got := f.ask(t.Context(), prompt(8)); !cmp.Equal(unknown, got) {
			t.Fatal(got)
		}
	}
	if f.counted(t, "late") != 2 || f.Status().Breaker != "open" {
		t.Errorf("%d late, %+v", f.counted(t, "late"), f.Status())
	}
	patient := newFixture(t, r, "controller", func(c *remote.Config) { c.Failures = 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	patient.ask(ctx, prompt(8))
	if patient.counted(t, "late") != 1 || patient.Status().Breaker != "open" {
		t.Errorf("the decision's own deadline: %d late, %+v", patient.counted(t, "late"), patient.Status())
	}
	left := newFixture(t, r, "controller", func(c *remote.Config) { c.Failures = 1 })
	gone, leave := context.WithCancel(t.Context())
	leave()
	left.ask(gone, prompt(8))
	if left.counted(t, "left") != 1 || left.Status().Breaker != "closed" {
		t.Errorf("%d left, %+v", left.counted(t, "left"), left.Status())
	}
}

// Many requests at once share few connections, and each gets its own answer.
func TestConcurrency(t *testing.T) {
	r := newRegistry(t)
	var under, most atomic.Int32
	r.lookup.Store(func(w http.ResponseWriter, _ *http.Request) {
		n := under.Add(1)
		defer under.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		_, _ = w.Write([]byte(`{"layout_info":{"i":["LocalCPUBackend",8]}}`))
	})
	f := newFixture(t, r, "controller", func(c *remote.Config) { c.Concurrency = 3 })
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			if got := f.ask(t.Context(), prompt(8)); !cmp.Equal(on("LocalCPUBackend", 8), got[0]) {
				t.Error(got)
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 || len(r.conns) > 4 {
		t.Errorf("%d questions at once over %d connections", most.Load(), len(r.conns))
	}
	if got := f.Match(prompt(8), endpoints()); !cmp.Equal(unknown, got) {
		t.Errorf("a prompt that was not asked about: %v", got)
	}
}

func TestConfigFaults(t *testing.T) {
	if err := remote.DefaultConfig().Validate("ask"); err != nil {
		t.Error(err)
	}
	err := remote.Config{Coordinator: "lmcache:9300", Controller: "http://lmcache/lookup"}.Validate("lmcache.ask")
	for _, key := range []string{"coordinator", "controller", "deadline", "members_interval", "pause", "concurrency", "failures"} {
		if err == nil || !strings.Contains(err.Error(), "lmcache.ask."+key+": ") {
			t.Errorf("no word of %s in: %v", key, err)
		}
	}
}

// Whatever a registry answers, nothing is believed that cannot be.
func FuzzAnswer(f *testing.F) {
	f.Add(`{"layout_info":{"i":["LocalCPUBackend",8]}}`)
	f.Add(`{"layout_info":{"i":["x",-8],"j":[null,1e3]}}`)
	f.Add(`{"chunks":2,"results":[{"key":{"chunk_hash_hex":"aa"},"placements":[{"instance_id":"i","tier":"l1"}]}]}`)
	f.Add(`{"chunks":2,"results":[{"key":{"chunk_hash_hex":"aa"},"placements":[{"shared":true,"tier":"l3"}]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }))
		defer server.Close()
		for _, found := range remote.Answers(t.Context(), server.URL, prompt(8), endpoints()) {
			for _, row := range found {
				for _, m := range row {
					end := scoring.Tokens(0)
					for _, s := range m.Spans {
						if s.End <= end {
							t.Errorf("%s: spans %+v", text, m.Spans)
						}
						end = s.End
					}
					if m.Cached != end || end > 8 {
						t.Errorf("%s: %+v", text, m)
					}
				}
			}
		}
	})
}
