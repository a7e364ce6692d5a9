package routed

import (
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// serve routes a prompt and lets its first token and its end come.
func (f *fleet) serve(p *scoring.Prompt) {
	f.t.Helper()
	d := f.route(p)
	f.firstToken(d)
	f.end(d)
}

func (f *fleet) end(d *scoring.Decision) {
	served := d.Endpoint().Address
	d.Reservation.End()
	f.memory.Ended(d, scoring.OutcomeComplete, served)
}

func (f *fleet) observe(r counters.Reading, restarted bool) { f.memory.Observe(1, r, restarted) }

// The engine's own word bounds what is believed, the newest of it stays, and
// what is said later counts.
func TestCapacityIsTheEngines(t *testing.T) {
	f := newFleet(t, 10_000)
	f.endpoints(1)
	for c := range 6 {
		f.serve(prompt(c, 10*block+1))
	}
	all := func() (held []scoring.Tokens) {
		for c := range 6 {
			held = append(held, f.held(1, prompt(c, 10*block+1))/block)
		}
		return held
	}
	for _, step := range []struct {
		name string
		r    counters.Reading
		want []scoring.Tokens
	}{
		{"it does not say", counters.Reading{}, []scoring.Tokens{10, 10, 10, 10, 10, 10}},
		{"25 blocks of ours", counters.Reading{CapacityTokens: 25 * block}, []scoring.Tokens{0, 0, 0, 5, 10, 10}},
		{"more", counters.Reading{CapacityTokens: 500 * block}, []scoring.Tokens{0, 0, 0, 5, 10, 10}},
		{"and in its host", counters.Reading{CapacityTokens: 12 * block, HostTokens: 5 * block}, []scoring.Tokens{0, 0, 0, 0, 7, 10}},
		{"nothing is reused", counters.Reading{CapacityTokens: 25 * block, PrefixCaching: counters.SwitchOff}, []scoring.Tokens{0, 0, 0, 0, 0, 0}},
	} {
		f.observe(step.r, false)
		if diff := cmp.Diff(step.want, all()); diff != "" {
			t.Errorf("%s: blocks held -want +got\n%s", step.name, diff)
		}
	}
	f.serve(prompt(1, 1000))
	if got := f.held(1, prompt(1, 1000)); got != 0 {
		t.Errorf("%d tokens held by an engine that reuses nothing", got)
	}
}

func TestForgottenWithTheEnginesCache(t *testing.T) {
	p := prompt(1, 1000)
	for name, happens := range map[string]func(*fleet){
		"restart":             func(f *fleet) { f.observe(counters.Reading{}, true) },
		"reset of its cache":  func(f *fleet) { f.observe(counters.Reading{CacheResets: 3}, false) },
		"whoever knows of it": func(f *fleet) { f.memory.Forget(1) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, 10_000)
			f.endpoints(1)
			f.observe(counters.Reading{CacheResets: 2}, false)
			f.serve(p)
			f.observe(counters.Reading{CacheResets: 2}, false)
			if f.held(1, p) == 0 {
				t.Fatal("nothing held before")
			}
			d := f.route(prompt(2, 500))
			happens(f)
			if got := f.held(1, p); got != 0 {
				t.Errorf("%d tokens held after it", got)
			}
			f.firstToken(d)
			if f.held(1, prompt(2, 500)) == 0 {
				t.Error("what is computed after it is not held")
			}
		})
	}
}

// An engine that was down may have been restarted; only its counters can tell
// that it was not.
func TestReadyAgain(t *testing.T) {
	p := prompt(1, 1000)
	for _, told := range []bool{false, true} {
		f := newFleet(t, 10_000)
		f.endpoints(1)
		if told {
			f.observe(counters.Reading{}, false)
		}
		f.serve(p)
		e := scoring.Endpoint{ID: 1, Address: "e1"}
		f.memory.SetEndpoints([]scoring.Endpoint{e})
		if f.held(1, p) == 0 {
			t.Error("forgotten while it is down")
		}
		e.Ready = true
		f.memory.SetEndpoints([]scoring.Endpoint{e})
		if got := f.held(1, p) > 0; got != told {
			t.Errorf("with counters %v: held is %v", told, got)
		}
	}
}

// What one of several processes counts says neither that its cache was reset
// nor that the endpoint is the same as before.
func TestSeveralProcesses(t *testing.T) {
	p := prompt(1, 1000)
	f := newFleet(t, 10_000)
	f.endpoints(1)
	f.observe(counters.Reading{CacheResets: 2}, false)
	f.serve(p)
	f.observe(counters.Reading{Several: true}, false)
	f.observe(counters.Reading{CacheResets: 2}, false)
	if f.held(1, p) == 0 {
		t.Error("forgotten when one of several was alone again")
	}
	f.observe(counters.Reading{Several: true}, false)
	for _, ready := range []bool{false, true} {
		f.memory.SetEndpoints([]scoring.Endpoint{{ID: 1, Address: "e1", Ready: ready}})
	}
	if f.held(1, p) != 0 {
		t.Error("held by an endpoint that was down, and whose counters tell nothing")
	}
}

// What should have left the GPU by now is in the host's memory, at its price.
func TestHostTier(t *testing.T) {
	f := fleetOf(t, Config{CapacityTokens: 10 * block, HostTokens: 20 * block, HostSecondsPerToken: 1e-5})
	f.endpoints(1)
	f.serve(prompt(1, 8*block+1))
	f.serve(prompt(2, 5*block+1))
	match := func(p *scoring.Prompt) scoring.Match {
		return f.memory.Match(p, []scoring.Endpoint{{ID: 1}})[0][0]
	}
	host := func(end scoring.Tokens) scoring.Span {
		return scoring.Span{End: end, Location: LocationHost, SecondsPerToken: 1e-5}
	}
	for _, tt := range []struct {
		name string
		p    *scoring.Prompt
		want scoring.Match
	}{
		{"the newest", prompt(2, 5*block+1), scoring.Match{Cached: 5 * block, Spans: []scoring.Span{{End: 5 * block, Location: Location}}}},
		{"its beginning stays longest", prompt(1, 8*block+1), scoring.Match{Cached: 8 * block, Spans: []scoring.Span{{End: 5 * block, Location: Location}, host(8 * block)}}},
	} {
		if diff := cmp.Diff(tt.want, match(tt.p)); diff != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, diff)
		}
	}
	f.serve(prompt(3, 10*block+1))
	if diff := cmp.Diff(scoring.Match{Cached: 8 * block, Spans: []scoring.Span{host(8 * block)}}, match(prompt(1, 8*block+1))); diff != "" {
		t.Errorf("all of it in the host: -want +got\n%s", diff)
	}
	f.serve(prompt(4, 10*block+1))
	if got := match(prompt(1, 8*block+1)).Cached; got != 5*block {
		t.Errorf("past both %d tokens are held, want %d", got, 5*block)
	}
}

// An engine finds whole blocks of its own size, and never a whole prompt.
func TestWholeBlocksOfTheEngine(t *testing.T) {
	f := newFleet(t, 100_000)
	f.endpoints(1)
	f.serve(prompt(1, 2000))
	for _, tt := range []struct{ block, length, want scoring.Tokens }{
		{0, 2000, 1984}, {16, 2000, 1984}, {16, 1984, 1968}, {0, 1984, 1983}, {528, 2000, 1584}, {528, 527, 0}, {128, 129, 128}, {128, 128, 0},
	} {
		f.observe(counters.Reading{BlockSize: tt.block}, false)
		if got := f.held(1, prompt(1, int(tt.length))); got != tt.want {
			t.Errorf("blocks of %d: %d of %d tokens held, want %d", tt.block, got, tt.length, tt.want)
		}
	}
}

// fakeCache is an engine's cache: blocks of 64, least recently used first out.
type fakeCache struct {
	stack *stack
	room  int
	r     counters.Reading
}

func (c *fakeCache) serve(p *scoring.Prompt) {
	c.stack.resize([tiers]int{c.room, 0, 0})
	chain := chainOf(p, 0, 0)
	c.r.PrefixQueries += uint64(p.Length())
	c.r.PrefixHits += uint64(c.stack.leading(chain)[onGPU] * block)
	c.stack.put(chain, true)
}

// TestGuard lets conversations go on at an engine that holds less than it
// says, or more than is believed, and wants belief to follow within so many
// prompts, and no alarm where nothing is wrong.
func TestGuard(t *testing.T) {
	const said = 400
	type phase struct {
		name    string
		room    int // blocks that the engine really holds
		prompts int
		want    float64 // share believed at the end
	}
	tests := []struct {
		name   string
		ranks  int
		phases []phase
	}{
		{"as it says", 1, []phase{{"", said, 1000, 1}}},
		{"half of what it says is no gross error", 1, []phase{{"", said / 2, 1000, 1}}},
		{"nothing is reused, then all", 1, []phase{{"off", 0, 300, 0}, {"on", said, 300, 1}}},
		{"a tenth of what it says", 1, []phase{{"small", said / 10, 400, 1. / 16}}},
		{"four ranks each find a fourth", 4, []phase{{"", said, 1000, 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			var log strings.Builder
			f := newFleet(t, 10_000)
			f.memory.log = slog.New(slog.NewTextHandler(&log, nil))
			f.endpoints(1)
			caches := make([]*fakeCache, tt.ranks)
			for i := range caches {
				caches[i] = &fakeCache{stack: newStack()}
			}
			read := func() {
				r := counters.Reading{CapacityTokens: said * block, Ranks: tt.ranks, Counted: true}
				for _, c := range caches {
					r.PrefixQueries += c.r.PrefixQueries
					r.PrefixHits += c.r.PrefixHits
				}
				f.observe(r, false)
			}
			read()
			turns := make([]int, 30)
			for _, phase := range tt.phases {
				for n := range phase.prompts {
					c := rng.IntN(len(turns))
					turns[c] = turns[c]%10 + 1
					p := prompt(c, turns[c]*80+40)
					for _, cache := range caches {
						cache.room = phase.room / tt.ranks
					}
					caches[rng.IntN(len(caches))].serve(p)
					f.serve(p)
					if n%5 == 0 {
						read()
					}
				}
				if got := f.memory.Status(1).Share; got != phase.want {
					t.Errorf("%s: %v of the capacity is believed, want %v\n%s", phase.name, got, phase.want, log.String())
				}
			}
			if quiet := len(tt.phases) == 1 && tt.phases[0].want == 1; quiet != (log.Len() == 0) {
				t.Errorf("logged:\n%s", log.String())
			}
		})
	}
}

// What an engine could not count says nothing of its cache: requests that
// failed, that another endpoint served, or that must not use the cache.
func TestGuardCountsWhatWasServed(t *testing.T) {
	f := newFleet(t, 100_000)
	f.endpoints(1)
	r := counters.Reading{Counted: true}
	f.observe(r, false)
	for range 200 {
		f.memory.computed(&scoring.Endpoint{ID: 1}, prompt(1, 1000))
		failed := f.route(prompt(1, 1000))
		failed.Reservation.End()
		f.memory.Ended(failed, scoring.OutcomeError, "e1")
		moved := f.route(prompt(1, 1000))
		moved.Reservation.Served("elsewhere")
		f.firstToken(moved)
		f.end(moved)
		p := prompt(1, 1000)
		p.NoCache = true
		f.serve(p)
		f.observe(r, false)
	}
	if got := f.memory.Status(1).Share; got != 1 {
		t.Errorf("%v of the capacity is believed", got)
	}
	if h := f.memory.of(1); len(h.waiting) != 0 {
		t.Errorf("%d predictions are kept of requests that ended", len(h.waiting))
	}
}

func TestStatus(t *testing.T) {
	f := fleetOf(t, Config{CapacityTokens: 10_000, HostTokens: 5000})
	f.endpoints(1)
	if f.memory.Status(2) != nil {
		t.Error("something is known of an endpoint that is not")
	}
	f.serve(prompt(1, 10*block))
	if diff := cmp.Diff(&Status{Tokens: 10 * block, GPUTokens: 10_000, HostTokens: 5000, Share: 1}, f.memory.Status(1)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	f.observe(counters.Reading{CapacityTokens: 20_000, HostTokens: 100}, false)
	if diff := cmp.Diff(&Status{Tokens: 10 * block, GPUTokens: 20_000, HostTokens: 5000, Share: 1, CapacityTold: true}, f.memory.Status(1)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
