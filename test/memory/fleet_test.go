// Package memory_test weighs our own memory against exact knowledge: simulated
// engines on a simulated clock, the same requests for each way to know.
package memory_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
)

// block is the size of the engines' blocks, that of routed too, so that the
// exact index and the memory differ in what they know and in nothing else.
const block = 64

// arrival is one request: a turn of a conversation, whose prompt is the one
// before, its answer and a new question.
type arrival struct {
	at     time.Duration
	prompt *scoring.Prompt
	keys   []simulator.Key // of prompt and answer
	answer int
}

// arrivals are conversations that begin and go on at random. Together they are
// more than the engines hold.
func arrivals(seed uint64, conversations, turns int, mean time.Duration) []arrival {
	rng := rand.New(rand.NewPCG(seed, 1))
	type chat struct{ length, turn int }
	chats := make([]chat, conversations)
	var list []arrival
	var now time.Duration
	for len(list) < conversations*turns {
		c := rng.IntN(len(chats))
		if chats[c].turn == turns {
			continue
		}
		now += time.Duration(rng.ExpFloat64() * float64(mean))
		answer := 20 + rng.IntN(100)
		n := chats[c].length + 300 + rng.IntN(1500)
		ids := make([]uint32, n+answer)
		for i := range ids {
			ids[i] = uint32(c*1_000_000 + i)
			if i < 200 {
				ids[i] = uint32(i) // the system prompt of all
			}
		}
		a := arrival{at: now, answer: answer}
		var prev uint64
		for end := block; end <= len(ids); end += block {
			prev = scoring.ChainBlock(prev, ids[end-block:end])
			a.keys = append(a.keys, simulator.Key(prev))
		}
		length := scoring.Tokens(n)
		a.prompt = &scoring.Prompt{
			Streamed: true, Source: scoring.TokensGiven,
			Sequences: []scoring.Sequence{{TokenIDs: ids[:n], Length: length, Usable: length, Copies: 1}},
		}
		chats[c] = chat{n + answer, chats[c].turn + 1}
		list = append(list, a)
	}
	return list
}

// exact is what the engines really hold, at every moment.
type exact struct{ held []map[simulator.Key]int }

// Match implements scoring.CacheIndex.
func (x *exact) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	ids := p.Sequences[0].TokenIDs
	rows := make([][]scoring.Match, len(endpoints))
	for i, e := range endpoints {
		var n scoring.Tokens
		var prev uint64
		for end := block; end < len(ids); end += block {
			prev = scoring.ChainBlock(prev, ids[end-block:end])
			if x.held[e.ID-1][simulator.Key(prev)] == 0 {
				break
			}
			n = scoring.Tokens(end)
		}
		rows[i] = []scoring.Match{{Cached: n}}
		if n > 0 {
			rows[i][0].Spans = []scoring.Span{{End: n, Location: "exact"}}
		}
	}
	return rows
}

// run routes a trace to n engines of a profile and returns the mean time to
// first token. memory hears of the requests; index is asked.
func run(t *testing.T, trace []arrival, n int, profile simulator.Profile, index func(*exact) scoring.CacheIndex, memory *routed.Memory) time.Duration {
	t.Helper()
	truth := &exact{held: make([]map[simulator.Key]int, n)}
	var sources []scoring.CacheIndex
	if source := index(truth); source != nil {
		sources = append(sources, source)
	}
	start := time.Unix(0, 0)
	var now, total time.Duration
	picker, err := scoring.NewPicker(scoring.DefaultConfig(), func() time.Time { return start.Add(now) }, rand.New(rand.NewPCG(5, 6)), sources...)
	if err != nil {
		t.Fatal(err)
	}
	engines, busy := make([]*simulator.Engine, n), make([]time.Duration, n) // until; 0: idle
	endpoints := make([]scoring.Endpoint, n)
	for i := range engines {
		truth.held[i] = make(map[simulator.Key]int)
		engines[i] = simulator.New(profile, simulator.Options{BlockTokens: block})
		endpoints[i] = scoring.Endpoint{ID: scoring.EndpointID(i + 1), Address: fmt.Sprint("e", i), Ready: true}
	}
	picker.SetEndpoints(endpoints)
	memory.SetEndpoints(endpoints)

	decisions := make(map[simulator.ID]*scoring.Decision)
	schedule := func(i int) {
		busy[i] = 0
		if took, ok := engines[i].Schedule(); ok {
			busy[i] = now + took
		}
	}
	complete := func(i int) {
		result := engines[i].Complete()
		for _, c := range result.Blocks {
			switch c.Kind {
			case simulator.BlocksStored:
				for _, key := range trace[c.ID].keys[c.First:c.Last] {
					truth.held[i][key]++
				}
			case simulator.BlockLost:
				truth.held[i][c.Key]--
			case simulator.CacheReset:
				t.Fatal("nobody resets a cache here")
			}
		}
		for _, out := range result.Outputs {
			d := decisions[out.ID]
			if out.First {
				ttft, _ := d.Reservation.FirstToken()
				memory.FirstToken(d, ttft)
				total += now - trace[out.ID].at
			}
			if out.Finished {
				d.Reservation.End()
				memory.Ended(d, scoring.OutcomeComplete, d.Endpoint().Address)
				delete(decisions, out.ID)
			}
		}
		schedule(i)
	}
	for next := 0; next < len(trace) || len(decisions) > 0; {
		soonest := -1
		for i, until := range busy {
			if until > 0 && (soonest < 0 || until < busy[soonest]) {
				soonest = i
			}
		}
		if soonest >= 0 && (next == len(trace) || busy[soonest] <= trace[next].at) {
			now = busy[soonest]
			complete(soonest)
			continue
		}
		a := &trace[next]
		now = a.at
		d, err := picker.Pick(fmt.Sprint(next), a.prompt)
		if err != nil {
			t.Fatal(err)
		}
		memory.Decided(d)
		i := slices.IndexFunc(endpoints, func(e scoring.Endpoint) bool { return e.ID == d.Endpoint().ID })
		id := simulator.ID(next)
		decisions[id] = d
		if err := engines[i].Add(simulator.Request{ID: id, PromptTokens: int(a.prompt.Length()), OutputTokens: a.answer, Blocks: a.keys}); err != nil {
			t.Fatal(err)
		}
		if busy[i] == 0 {
			schedule(i)
		}
		next++
	}
	return total / time.Duration(len(trace))
}

// TestMemoryAgainstExactKnowledge: without any report of the engines, and with
// conversations of more than they hold, the mean time to first token is within
// a tenth of what exact knowledge gives (the planning simulator: 0 to 8 % for
// engines without a host tier), and far from what no knowledge gives.
func TestMemoryAgainstExactKnowledge(t *testing.T) {
	profile, err := simulator.ProfileByName("3090-7b")
	if err != nil {
		t.Fatal(err)
	}
	var all [5]time.Duration
	names := [5]string{"exact", "memory", "memory, half the capacity", "memory, twice the capacity", "nothing known"}
	for seed := range uint64(3) {
		trace := arrivals(seed, 120, 5, 420*time.Millisecond)
		for i, share := range [5]float64{1, 1, 0.5, 2, 1} {
			memory := routed.New(routed.Config{CapacityTokens: scoring.Tokens(float64(profile.KVTokens) * share)}, slog.New(slog.DiscardHandler))
			all[i] += run(t, trace, 4, profile, func(x *exact) scoring.CacheIndex {
				switch i {
				case 0:
					return x
				case 4:
					return nil
				}
				return memory
			}, memory) / 3
		}
	}
	for i, name := range names {
		t.Logf("%-28s %8s  %.3f of exact", name, all[i].Round(time.Millisecond), float64(all[i])/float64(all[0]))
	}
	if ratio := float64(all[1]) / float64(all[0]); ratio > 1.1 {
		t.Errorf("our own memory gives %.2f of the time to first token of exact knowledge", ratio)
	}
	if all[4] < all[1]*3/2 {
		t.Errorf("without any knowledge it is %s, with memory %s: this trace shows nothing", all[4], all[1])
	}
}
