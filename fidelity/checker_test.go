package fidelity

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// TestFaultsAreNoticed: whatever is wrong with a source from the start is
// noticed within 100 requests, said with its fix, and the source does not count.
func TestFaultsAreNoticed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sources func(f *fleet) []Source
		set     func(f *fleet)
		finder  Finder
		source  string // that is at fault
		used    string // that speaks instead
		fault   string
		fix     string
	}{
		{
			name:    "all is well",
			sources: func(f *fleet) []Source { return []Source{f.events(""), f.lmcache(true)} },
			source:  "events", used: "events",
		},
		{
			name:    "nothing is published",
			sources: func(f *fleet) []Source { return []Source{f.events("silent")} },
			set:     func(f *fleet) { f.mute() },
			source:  "events", used: "routed", fault: "it has told nothing of this endpoint", fix: "fix silent",
		},
		{
			name:    "nothing is stored",
			sources: func(f *fleet) []Source { return []Source{f.empty()} },
			source:  "events", used: "routed", fault: "nothing held", fix: "fix empty",
		},
		{
			name:    "wrong keys, nothing else to compare with",
			sources: func(f *fleet) []Source { return []Source{f.lmcache(false)} },
			source:  "lmcache", used: "routed", fault: "the keys it tells of are not those of our prompts", fix: "PYTHONHASHSEED",
		},
		{
			name:    "wrong keys, right ids",
			sources: func(f *fleet) []Source { return []Source{f.events(""), f.lmcache(false)} },
			source:  "lmcache", used: "events", fault: "events shows them, so our token ids are right", fix: "PYTHONHASHSEED",
		},
		{
			name:    "other ids in the engine",
			sources: func(f *fleet) []Source { return []Source{f.events("")} },
			set:     func(f *fleet) { f.otherDate() },
			source:  "events", used: "routed", fault: "other token ids than ours", fix: "time_zone",
		},
		{
			name:    "other ids, found out by somebody",
			sources: func(f *fleet) []Source { return []Source{f.lmcache(false)} },
			set:     func(f *fleet) { f.otherDate() },
			finder: func(scoring.EndpointID) []Finding {
				return []Finding{{Source: SourcePrompt, Fault: "the template differs", Fix: "set chat_template"}}
			},
			source: "lmcache", used: "routed", fault: "the template differs", fix: "set chat_template",
		},
		{
			name:    "nothing is published, and the ids are wrong too",
			sources: func(f *fleet) []Source { return []Source{f.events("silent")} },
			set:     func(f *fleet) { f.mute() },
			finder: func(scoring.EndpointID) []Finding {
				return []Finding{{Source: SourcePrompt, Fault: "the template differs", Fix: "set chat_template"}}
			},
			source: "events", used: "routed", fault: "it has told nothing of this endpoint", fix: "fix silent",
		},
		{
			name:    "removals are never told",
			sources: func(f *fleet) []Source { return []Source{f.events("store-only")} },
			set:     func(f *fleet) { f.room(60); f.forgetful(60 * engineBlock / 64) },
			source:  "events", used: "routed", fault: "the engine finds far less in its caches than was told", fix: "fix gone",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var finders []Finder
			if tt.finder != nil {
				finders = append(finders, tt.finder)
			}
			f := newFleet(t, 3, tt.sources, finders...)
			if tt.set != nil {
				tt.set(f)
			}
			f.traffic(5)
			for _, e := range f.list {
				row := f.row(e.ID, tt.source)
				if !strings.Contains(row.Fault, tt.fault) || (tt.fault == "") != (row.Fault == "") {
					t.Errorf("endpoint %s: fault %q, want %q", e.Name, row.Fault, tt.fault)
				}
				if !strings.Contains(row.Fix, tt.fix) || (tt.fix == "") != (row.Fix == "") {
					t.Errorf("endpoint %s: fix %q, want %q", e.Name, row.Fix, tt.fix)
				}
				if row.Used != (tt.source == tt.used) {
					t.Errorf("endpoint %s: used is %v", e.Name, row.Used)
				}
				if !f.row(e.ID, tt.used).Used {
					t.Errorf("endpoint %s: %s does not speak instead", e.Name, tt.used)
				}
			}
			d := f.serve(promptOf(0, 10_000))
			for _, candidate := range d.Candidates {
				if got := candidate.Matches[0].Source; got != tt.used {
					t.Errorf("the decision counts what %q says, want %q", got, tt.used)
				}
			}
			if n := strings.Count(f.logs.String(), "left out"); (tt.fault != "") != (n == len(f.list)) {
				t.Errorf("%d lines of the log tell of it:\n%s", n, f.logs.String())
			}
		})
	}
}

func (f *fleet) mute() {
	for _, e := range f.engines {
		e.mute = true
	}
}

func (f *fleet) room(blocks int) {
	for _, e := range f.engines {
		e.room = blocks
	}
}

// forgetful bounds memory to so many blocks, in no good order.
func (f *fleet) forgetful(blocks int) {
	for id := range f.memory {
		f.memory[id] = map[uint64]bool{}
	}
	f.memoryRoom = blocks
}

// otherDate has the engines see another date after the first tokens, as a
// template does in another time zone.
func (f *fleet) otherDate() {
	f.skew = func(ids []uint32) []uint32 {
		other := append([]uint32(nil), ids...)
		other[40]++
		return other
	}
}

// empty is a source that is heard and tells of nothing held.
func (f *fleet) empty() Source {
	s := f.events("empty")
	s.Held = func(scoring.EndpointID) int { return 0 }
	return s
}

// TestSaltsAreNamed: LMCache's keys know of no salt, the engine's cache does. It
// is left out where that makes it promise what is not found, and said why.
func TestSaltsAreNamed(t *testing.T) {
	f := newFleet(t, 2, func(f *fleet) []Source { return []Source{f.lmcache(true)} })
	for i := range 100 {
		p := promptOf(i%3, 3000)
		p.Salt = "tenant " + string(rune('a'+i/6))
		f.serve(p)
		f.pass(200 * time.Millisecond)
	}
	for _, e := range f.list {
		if row := f.row(e.ID, "lmcache"); row.Used || !strings.Contains(row.Fault, "finds far less") || !strings.Contains(row.Fix, "cache_salt") {
			t.Errorf("endpoint %s: %+v", e.Name, row)
		}
	}
}

// TestSilenceIsNoticedAndForgiven: a source that stops telling is left out, and
// counts again when it shows what is computed.
func TestSilenceIsNoticedAndForgiven(t *testing.T) {
	f := newFleet(t, 2, func(f *fleet) []Source { return []Source{f.events("")} })
	f.traffic(4)
	f.mute()
	f.traffic(4)
	for _, e := range f.list {
		row := f.row(e.ID, "events")
		if row.Used || !strings.Contains(row.Fault, "last heard at 2026-01-02T03:0") || row.Fix != "fix stale" {
			t.Errorf("endpoint %s: %+v", e.Name, row)
		}
	}
	for _, e := range f.engines {
		e.mute = false
	}
	f.traffic(4)
	for _, e := range f.list {
		if row := f.row(e.ID, "events"); !row.Used || row.Fault != "" {
			t.Errorf("endpoint %s: %+v", e.Name, row)
		}
	}
	if out, back := strings.Count(f.logs.String(), "left out"), strings.Count(f.logs.String(), "right again"); out != 2 || back != 2 {
		t.Errorf("%d and %d lines of the log tell of it:\n%s", out, back, f.logs.String())
	}
}

// TestNothingIsProvenByLittle: prompts without one more whole chunk, with a salt
// or for an adapter say nothing of a source by keys.
func TestNothingIsProvenByLittle(t *testing.T) {
	for _, tt := range []struct {
		name   string
		prompt func(i int) *scoring.Prompt
	}{
		{"shorter than a chunk", func(i int) *scoring.Prompt { return promptOf(i, 256) }},
		{"salted", func(i int) *scoring.Prompt { p := promptOf(i, 2000); p.Salt = "tenant"; return p }},
		{"for an adapter", func(i int) *scoring.Prompt { p := promptOf(i, 2000); p.Model = "lora"; return p }},
		{"computed anew", func(i int) *scoring.Prompt { p := promptOf(i, 2000); p.NoCache = true; return p }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t, 2, func(f *fleet) []Source { return []Source{f.lmcache(false)} })
			for i := range f.list {
				f.list[i].Models, f.list[i].Adapters = []string{"m", "lora"}, []string{"lora"}
			}
			f.checker.SetEndpoints(f.list)
			f.picker.SetEndpoints(f.list)
			for i := range 60 {
				p := tt.prompt(i)
				if p.Model == "" {
					p.Model = "m"
				}
				f.serve(p)
				f.pass(time.Second)
			}
			f.pass(20 * time.Second)
			for _, e := range f.list {
				if row := f.row(e.ID, "lmcache"); row.Echo.Asked != 0 || row.Fault != "" {
					t.Errorf("endpoint %s: %+v", e.Name, row)
				}
			}
		})
	}
}

// TestSamplesAreBounded: token ids are kept alive for a few prompts only.
func TestSamplesAreBounded(t *testing.T) {
	f := newFleet(t, 1, func(f *fleet) []Source { return []Source{f.lmcache(false)} })
	for i := range 50 {
		f.serve(promptOf(i, 60_000))
		var tokens scoring.Tokens
		for _, s := range f.checker.of(1).pending {
			tokens += s.prompt.Length()
		}
		if n := len(f.checker.of(1).pending); n > maxPending || tokens > maxPendingTokens {
			t.Fatalf("%d samples with %d tokens wait", n, tokens)
		}
	}
	f.pass(time.Minute)
	if n := len(f.checker.of(1).pending); n != 0 {
		t.Errorf("%d samples wait for ever", n)
	}
}

// TestRestartEndsSamples: what was computed before an engine's restart is not
// expected of anybody.
func TestRestartEndsSamples(t *testing.T) {
	f := newFleet(t, 1, func(f *fleet) []Source { return []Source{f.lmcache(false)} })
	for range 5 {
		for i := range 6 {
			f.serve(promptOf(i, 3000))
		}
		f.checker.Counted(1, f.engines[1].reading, true)
		f.pass(10 * time.Second)
	}
	if row := f.row(1, "lmcache"); row.Echo.Asked != 0 {
		t.Errorf("%+v", row)
	}
}

// asked is a source that knows nothing before it has asked, and only of that
// prompt until done.
type asked struct {
	told
	deaf  bool
	open  map[*scoring.Prompt]bool
	asked int
}

func (s *asked) Ask(ctx context.Context, p *scoring.Prompt) func() {
	s.asked++
	if s.deaf {
		<-ctx.Done()
		return func() {}
	}
	s.open[p] = true
	return func() { delete(s.open, p) }
}

func (s *asked) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	if !s.open[p] {
		return make([][]scoring.Match, len(endpoints))
	}
	return s.told.Match(p, endpoints)
}

// TestSourceThatAsks: it is asked before it is looked at, and let go of after;
// one that does not answer is left out, and holds up a round once.
func TestSourceThatAsks(t *testing.T) {
	source := &asked{told: told{1: 1 << 20}, open: make(map[*scoring.Prompt]bool)}
	f := newFleet(t, 1, func(*fleet) []Source {
		return []Source{{
			Name: "coordinator", Index: source, Ask: source.Ask, Settle: time.Second,
			Wanted: func(scoring.Endpoint) bool { return true },
		}}
	})
	for range 10 {
		f.serve(promptOf(f.next, 3000))
		f.pass(time.Second)
	}
	if row := f.row(1, "coordinator"); row.Echo.Asked == 0 || row.Echo.Shown != row.Echo.Asked || len(source.open) != 0 {
		t.Errorf("%+v, %d answers not let go of", row, len(source.open))
	}
	source.deaf = true
	for range maxPending {
		f.serve(promptOf(f.next, 3000))
	}
	over, cancel := context.WithCancel(t.Context())
	cancel() // as after the time-out
	for range 3 * maxPending {
		f.clock, source.asked = f.clock.Add(time.Minute), 0
		if f.checker.Probe(over); source.asked != 1 {
			t.Errorf("asked %d times in one round, though it does not answer", source.asked)
		}
		f.serve(promptOf(f.next, 3000))
	}
	if row := f.row(1, "coordinator"); row.Used || row.Fault == "" {
		t.Errorf("a source that does not answer counts: %+v", row)
	}
}
