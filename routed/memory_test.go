package routed

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// fleet is a Picker over a Memory, told of decisions as the service tells it.
type fleet struct {
	t      *testing.T
	memory *Memory
	picker *scoring.Picker
	next   int
}

func newFleet(t *testing.T, capacity scoring.Tokens) *fleet {
	t.Helper()
	return fleetOf(t, Config{CapacityTokens: capacity})
}

func fleetOf(t *testing.T, cfg Config) *fleet {
	t.Helper()
	m := New(cfg, slog.New(slog.DiscardHandler))
	p, err := scoring.NewPicker(scoring.DefaultConfig(), func() time.Time { return time.Unix(0, 0) }, rand.New(rand.NewPCG(1, 2)), m)
	if err != nil {
		t.Fatal(err)
	}
	return &fleet{t: t, memory: m, picker: p}
}

func (f *fleet) endpoints(ids ...int) {
	var list []scoring.Endpoint
	for _, id := range ids {
		list = append(list, scoring.Endpoint{ID: scoring.EndpointID(id), Address: fmt.Sprint("e", id), Ready: true})
	}
	f.memory.SetEndpoints(list)
	f.picker.SetEndpoints(list)
}

func (f *fleet) route(p *scoring.Prompt) *scoring.Decision {
	f.t.Helper()
	f.next++
	d, err := f.picker.Pick(fmt.Sprint(f.next), p)
	if err != nil {
		f.t.Fatal(err)
	}
	f.memory.Decided(d)
	return d
}

func (f *fleet) firstToken(d *scoring.Decision) {
	d.Reservation.FirstToken()
	f.memory.FirstToken(d, 0)
}

// held is what endpoint id is believed to hold of p.
func (f *fleet) held(id int, p *scoring.Prompt) scoring.Tokens {
	row := f.memory.Match(p, []scoring.Endpoint{{ID: scoring.EndpointID(id)}})[0]
	if row == nil {
		return -1
	}
	return row[0].Cached
}

// prompt is n tokens of one conversation.
func prompt(conversation, n int) *scoring.Prompt {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(conversation*1_000_000 + i)
	}
	return &scoring.Prompt{
		Streamed: true, Source: scoring.TokensNative,
		Sequences: []scoring.Sequence{{TokenIDs: ids, Length: scoring.Tokens(n), Usable: scoring.Tokens(n), Copies: 1}},
	}
}

func TestHeldFromTheFirstTokenOn(t *testing.T) {
	f := newFleet(t, 10_000)
	f.endpoints(1)
	p := prompt(1, 1000)
	d := f.route(p)
	if got := f.held(1, p); got != 0 {
		t.Errorf("before the first token: %d tokens held", got)
	}
	f.firstToken(d)
	if got := f.held(1, p); got != 1000/block*block {
		t.Errorf("after it: %d tokens held", got)
	}
	if got := f.held(1, prompt(2, 1000)); got != 0 {
		t.Errorf("another prompt: %d tokens held", got)
	}
	if got := f.held(2, p); got != -1 {
		t.Errorf("an endpoint that is not known: %d, want no row", got)
	}
}

// TestSharedPrefixOfPending: a prompt that is computed says nothing of the
// blocks that only a waiting prompt has.
func TestSharedPrefixOfPending(t *testing.T) {
	f := newFleet(t, 10_000)
	f.endpoints(1)
	long, short := prompt(1, 10*block), prompt(1, 4*block)
	f.route(long)
	f.firstToken(f.route(short))
	if got := f.held(1, long); got != 4*block {
		t.Errorf("%d tokens held of the waiting prompt, want the %d of the other", got, 4*block)
	}
}

func TestRetryIsHeldWhereItWasServed(t *testing.T) {
	f := newFleet(t, 10_000)
	f.endpoints(1, 2)
	p := prompt(1, 500)
	d := f.route(p)
	chosen, other := 1, 2
	if d.Endpoint().Address == "e2" {
		chosen, other = 2, 1
	}
	d.Reservation.Served(fmt.Sprint("e", other))
	f.firstToken(d)
	if got := f.held(chosen, p); got != 0 {
		t.Errorf("the endpoint that lost it holds %d", got)
	}
	if got := f.held(other, p); got == 0 {
		t.Error("the endpoint that served it holds nothing")
	}
}

func TestPlainAnswerIsHeldAtItsEnd(t *testing.T) {
	f := newFleet(t, 10_000)
	f.endpoints(1)
	p := prompt(1, 500)
	p.Streamed = false
	d := f.route(p)
	f.memory.Ended(d, scoring.OutcomeCancelled, "e1")
	if got := f.held(1, p); got != 0 {
		t.Errorf("cancelled: %d held", got)
	}
	f.memory.Ended(d, scoring.OutcomeComplete, "e1")
	if got := f.held(1, p); got == 0 {
		t.Error("complete: nothing held")
	}
}

func TestNewLifeBeginsEmpty(t *testing.T) {
	f := newFleet(t, 10_000)
	f.endpoints(1)
	p := prompt(1, 500)
	f.firstToken(f.route(p))
	f.endpoints(2)
	if got := f.held(2, p); got != 0 {
		t.Errorf("the new life of the address holds %d", got)
	}
	if got := f.held(1, p); got != -1 {
		t.Errorf("the old life is still known: %d", got)
	}
}

// TestTwin compares with a plain list of blocks in routing order.
func TestTwin(t *testing.T) {
	const room = 40
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 9))
		f := newFleet(t, room*block)
		f.endpoints(1)
		type entry struct {
			conversation, index int
			computed            bool
		}
		var list []*entry // the first goes first
		note := func(conversation, blocks int, computed bool) {
			for i := blocks - 1; i >= 0; i-- {
				at := slices.IndexFunc(list, func(e *entry) bool { return e.conversation == conversation && e.index == i })
				e := &entry{conversation, i, computed}
				if at >= 0 {
					e.computed = e.computed || list[at].computed
					list = slices.Delete(list, at, at+1)
				}
				list = append(list, e)
				if len(list) > room {
					list = list[1:]
				}
			}
		}
		var waiting []*scoring.Decision
		shape := make(map[*scoring.Decision][2]int)
		for range 300 {
			if len(waiting) > 0 && rng.IntN(2) == 0 {
				i := rng.IntN(len(waiting))
				d := waiting[i]
				waiting = slices.Delete(waiting, i, i+1)
				f.firstToken(d)
				d.Reservation.End()
				note(shape[d][0], shape[d][1], true)
			} else {
				conversation, blocks := rng.IntN(6), 1+rng.IntN(15)
				d := f.route(prompt(conversation, blocks*block+rng.IntN(block)))
				shape[d] = [2]int{conversation, blocks}
				waiting = append(waiting, d)
				note(conversation, blocks, false)
			}
			for conversation := range 6 {
				want := 0
				for slices.ContainsFunc(list, func(e *entry) bool { return e.conversation == conversation && e.index == want && e.computed }) {
					want++
				}
				if got := f.held(1, prompt(conversation, 20*block)); got != scoring.Tokens(want*block) {
					t.Fatalf("seed %d: conversation %d: %d tokens held, want %d", seed, conversation, got, want*block)
				}
			}
		}
	}
}

func TestConfigFaults(t *testing.T) {
	if err := DefaultConfig().Validate("memory"); err != nil {
		t.Error(err)
	}
	for _, c := range []Config{{}, {CapacityTokens: 1e12}, {CapacityTokens: 1e5, HostTokens: -1}, {CapacityTokens: 1e5, HostSecondsPerToken: math.NaN()}} {
		if err := c.Validate("memory"); err == nil || !strings.Contains(err.Error(), "memory.") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	m := New(DefaultConfig(), slog.New(slog.DiscardHandler))
	var endpoints []scoring.Endpoint
	for i := range 16 {
		endpoints = append(endpoints, scoring.Endpoint{ID: scoring.EndpointID(i + 1), Address: fmt.Sprint(i)})
	}
	m.SetEndpoints(endpoints)
	p := prompt(1, 32_000)
	for i := range endpoints {
		m.computed(&endpoints[i], p)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Match(p, endpoints)
	}
}

// A salt's blocks are its own, and so are an adapter's, which is one only where
// the engine says so.
func TestSaltsAndAdaptersShareNothing(t *testing.T) {
	m := New(Config{CapacityTokens: 10_000}, slog.New(slog.DiscardHandler))
	base := scoring.Endpoint{ID: 1, Address: "e1", Ready: true, Models: []string{"m", "l"}, Adapters: []string{"l"}}
	alias := scoring.Endpoint{ID: 2, Address: "e2", Ready: true, Models: []string{"m", "l"}}
	m.SetEndpoints([]scoring.Endpoint{base, alias})
	as := func(model, salt string) *scoring.Prompt {
		p := prompt(1, 1000)
		p.Model, p.Salt = model, salt
		return p
	}
	const all = 1000 / block * block
	m.computed(&base, as("m", ""))
	m.computed(&alias, as("m", ""))
	m.computed(&alias, as("l", "s"))
	for _, tt := range []struct {
		model, salt string
		want        []scoring.Tokens
	}{
		{"m", "", []scoring.Tokens{all, all}},
		{"m", "s", []scoring.Tokens{0, all}},
		{"m", "other", []scoring.Tokens{0, 0}},
		{"l", "", []scoring.Tokens{0, all}},
		{"l", "s", []scoring.Tokens{0, all}},
	} {
		var got []scoring.Tokens
		for _, row := range m.Match(as(tt.model, tt.salt), []scoring.Endpoint{base, alias}) {
			got = append(got, row[0].Cached)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("model %q, salt %q: %d held, want %d", tt.model, tt.salt, got, tt.want)
		}
	}
}
