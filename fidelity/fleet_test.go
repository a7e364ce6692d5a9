package fidelity

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

const (
	engineBlock = 16
	plenty      = 1 << 20 // blocks; nothing is evicted
)

// engine is an engine of the fleet: what it really holds and counts.
type engine struct {
	// blocks it holds, by the chain of the ids that it sees; order is the one
	// in which they came, and bounds them by room.
	blocks  map[uint64]bool
	order   []uint64
	room    int
	reading counters.Reading
	// told is what each fault of the sources remembers of it.
	ever map[uint64]bool
	// chunks are what LMCache keeps, whatever the salt.
	chunks map[uint64]bool
	heard  time.Time
	mute   bool // reports nothing from now on
	shown  map[uint64]bool
}

// fleet is a Picker over a Checker, fed by engines whose sources can be set up
// wrong on purpose. Its clock stands still but for what the tests do.
type fleet struct {
	t       *testing.T
	clock   time.Time
	engines map[scoring.EndpointID]*engine
	list    []scoring.Endpoint
	checker *Checker
	picker  *scoring.Picker
	memory  map[scoring.EndpointID]map[uint64]bool
	// memoryRoom bounds the blocks that memory keeps, the last ones; 0: all.
	memoryRoom int
	logs       bytes.Buffer
	next       int
	// skew changes the ids as the engines see them.
	skew func(ids []uint32) []uint32
	// blind: the engines look up nothing in their caches.
	blind bool
	// bySource: they count found tokens by source, too.
	bySource bool
	// shared: requests that nobody books are expected.
	shared bool
}

func newFleet(t *testing.T, n int, sources func(f *fleet) []Source, finders ...Finder) *fleet {
	t.Helper()
	f := &fleet{
		t: t, clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), engines: make(map[scoring.EndpointID]*engine),
		memory: make(map[scoring.EndpointID]map[uint64]bool), list: endpoints(n),
		skew: func(ids []uint32) []uint32 { return ids },
	}
	for _, e := range f.list {
		f.engines[e.ID] = &engine{
			blocks: make(map[uint64]bool), ever: make(map[uint64]bool), chunks: make(map[uint64]bool), shown: make(map[uint64]bool), room: plenty,
			reading: counters.Reading{Counted: true, PrefixCaching: counters.SwitchOn, BlockSize: engineBlock},
		}
		f.memory[e.ID] = make(map[uint64]bool)
	}
	memory := Source{Name: "routed", Index: index(func(e scoring.Endpoint, p *scoring.Prompt) (scoring.Tokens, bool) {
		return leading(f.memory[e.ID], salted(p, p.Sequences[0].TokenIDs), 64), true
	}), Fixes: Fixes{Gone: "less memory"}}
	f.checker = New(sources(f), memory, Options{
		Now: func() time.Time { return f.clock }, Log: slog.New(slog.NewTextHandler(&f.logs, nil)), Finders: finders, Shared: func() bool { return f.shared },
	})
	var err error
	cfg := scoring.DefaultConfig()
	cfg.Policy = scoring.PolicyRoundRobin // so that every engine gets its share
	if f.picker, err = scoring.NewPicker(cfg, func() time.Time { return f.clock }, rand.New(rand.NewPCG(1, 2)), f.checker); err != nil {
		t.Fatal(err)
	}
	f.checker.SetEndpoints(f.list)
	f.picker.SetEndpoints(f.list)
	f.scrape()
	return f
}

type index func(e scoring.Endpoint, p *scoring.Prompt) (scoring.Tokens, bool)

func (x index) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	for i, e := range endpoints {
		if n, known := x(e, p); known {
			rows[i] = []scoring.Match{{Cached: n}}
		}
	}
	return rows
}

func chain(ids []uint32, block int) []uint64 {
	var list []uint64
	prev := uint64(block)
	for end := block; end <= len(ids); end += block {
		prev = scoring.ChainBlock(prev, ids[end-block:end])
		list = append(list, prev)
	}
	return list
}

func leading(held map[uint64]bool, ids []uint32, block int) scoring.Tokens {
	n := 0
	for _, h := range chain(ids, block) {
		if !held[h] {
			break
		}
		n += block
	}
	return scoring.Tokens(n)
}

// events is a source that tells what the engines hold; how says what is wrong.
func (f *fleet) events(how string) Source {
	return Source{
		Name: "events", Settle: 2 * time.Second,
		Wanted: func(scoring.Endpoint) bool { return true },
		Heard:  func(id scoring.EndpointID) time.Time { return f.engines[id].heard },
		Held:   func(id scoring.EndpointID) int { return len(f.engines[id].shown) },
		Grain:  func(scoring.EndpointID) scoring.Tokens { return engineBlock },
		Fixes:  Fixes{Silent: "fix silent", Stale: "fix stale", Empty: "fix empty", Gone: "fix gone"},
		Index: index(func(e scoring.Endpoint, p *scoring.Prompt) (scoring.Tokens, bool) {
			ids := p.Sequences[0].TokenIDs
			ids = ids[:max(0, len(ids)-1)]
			switch at := f.engines[e.ID]; how {
			case "silent":
				return 0, false
			case "empty":
				return 0, true
			case "store-only":
				return leading(at.ever, ids, engineBlock), true
			default:
				return leading(at.shown, ids, engineBlock), !at.heard.IsZero()
			}
		}),
	}
}

// lmcache is a source by keys; wrong keys show nothing though much is held.
func (f *fleet) lmcache(right bool) Source {
	return Source{
		Name: "lmcache", Settle: 5 * time.Second, AfterEnd: true, Keyed: true,
		Wanted: func(scoring.Endpoint) bool { return true },
		Heard:  func(id scoring.EndpointID) time.Time { return f.engines[id].heard },
		Held:   func(id scoring.EndpointID) int { return len(f.engines[id].blocks) },
		Grain:  func(scoring.EndpointID) scoring.Tokens { return 256 },
		Fixes:  Fixes{Silent: "fix silent", Stale: "fix stale", Keys: "set PYTHONHASHSEED"},
		Index: index(func(e scoring.Endpoint, p *scoring.Prompt) (scoring.Tokens, bool) {
			if !right {
				return 0, true
			}
			return leading(f.engines[e.ID].chunks, p.Sequences[0].TokenIDs, 256), true
		}),
	}
}

// promptOf is a turn of a conversation, n tokens long.
func promptOf(conversation, n int) *scoring.Prompt {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(conversation*1_000_000 + i)
	}
	return &scoring.Prompt{
		Streamed: true, Source: scoring.TokensNative,
		Sequences: []scoring.Sequence{{TokenIDs: ids, Length: scoring.Tokens(n), Usable: scoring.Tokens(n), Copies: 1}},
	}
}

// salted are ids that only prompts with the same salt have.
func salted(p *scoring.Prompt, ids []uint32) []uint32 {
	other := slices.Clone(ids)
	for _, c := range p.Salt {
		other[0] += uint32(c) << 16
	}
	return other
}

// serve routes a prompt and lets the engine compute it and answer.
func (f *fleet) serve(p *scoring.Prompt) *scoring.Decision {
	f.t.Helper()
	f.next++
	d, err := f.picker.Pick(fmt.Sprint(f.next), p)
	if err != nil {
		f.t.Fatal(err)
	}
	f.checker.Decided(d)
	e := d.Endpoint()
	f.compute(e.ID, p)
	f.clock = f.clock.Add(50 * time.Millisecond)
	if p.Streamed {
		first := d.Reservation.Decision()
		d.Reservation.FirstToken()
		f.checker.FirstToken(first, 0)
	}
	f.clock = f.clock.Add(50 * time.Millisecond)
	d.Reservation.End()
	f.checker.Ended(d.Reservation.Decision(), scoring.OutcomeComplete, e.Address)
	held := f.memory[e.ID]
	for _, h := range chain(salted(p, p.Sequences[0].TokenIDs), 64) {
		held[h] = true
	}
	if f.memoryRoom > 0 && len(held) > f.memoryRoom {
		clear(held)
		for _, h := range chain(p.Sequences[0].TokenIDs, 64) {
			held[h] = true
		}
	}
	return d
}

// compute is what the engine does with a prompt, wherever it came from.
func (f *fleet) compute(id scoring.EndpointID, p *scoring.Prompt) {
	at := f.engines[id]
	ids := f.skew(p.Sequences[0].TokenIDs)
	for _, h := range chain(ids, 256) {
		at.chunks[h] = true
	}
	ids = salted(p, ids)
	found := leading(at.blocks, ids[:len(ids)-1], engineBlock)
	at.reading.PromptTokens += uint64(len(ids))
	if !f.blind {
		at.reading.PrefixQueries += uint64(len(ids))
		at.reading.PrefixHits += uint64(found)
	}
	if f.bySource {
		at.reading.CachedBySource = map[string]uint64{"device": at.reading.PrefixHits}
	}
	for _, h := range chain(ids, engineBlock) {
		at.ever[h] = true
		if !at.blocks[h] {
			at.blocks[h], at.order = true, append(at.order, h)
		}
	}
	for len(at.order) > at.room {
		delete(at.blocks, at.order[0])
		at.order = at.order[1:]
	}
	if !at.mute {
		at.heard = f.clock
		clear(at.shown)
		for h := range at.blocks {
			at.shown[h] = true
		}
	}
}

func (f *fleet) scrape() {
	for _, e := range f.list {
		at := f.engines[e.ID]
		at.reading.At = f.clock
		f.checker.Counted(e.ID, at.reading, false)
	}
}

// pass lets time pass, with what the service does meanwhile.
func (f *fleet) pass(d time.Duration) {
	const step = 100 * time.Millisecond
	for ; d > 0; d -= step {
		f.clock = f.clock.Add(step)
		f.checker.Probe(f.t.Context())
	}
	f.scrape()
}

// traffic serves 100 prompts: conversations that grow turn by turn.
func (f *fleet) traffic(conversations int) {
	for range 100 {
		turn := f.next/conversations + 1
		f.serve(promptOf(f.next%conversations, 600+turn*300))
		f.pass(200 * time.Millisecond)
	}
	f.pass(8 * time.Second)
}

// row is what status says of a source at an endpoint.
func (f *fleet) row(id scoring.EndpointID, source string) SourceStatus {
	f.t.Helper()
	for _, row := range f.checker.Status(id).Sources {
		if row.Source == source {
			return row
		}
	}
	f.t.Fatalf("endpoint %d has no row for %s: %+v", id, source, f.checker.Status(id))
	return SourceStatus{}
}
