package kvevents

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// fleet is engines with events under a picker, on a clock of its own.
type fleet struct {
	t      *testing.T
	ix     *index
	s      *Subscriber
	picker *scoring.Picker
	now    time.Time
	next   int
}

// Match makes the fleet the picker's source.
func (f *fleet) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	return f.ix.match(p, endpoints)
}

func newFleet(t *testing.T, ranks ...int) *fleet {
	t.Helper()
	ix := newIndex(DefaultConfig())
	f := &fleet{t: t, ix: ix, s: &Subscriber{index: ix}, now: time.Unix(1000, 0)}
	var err error
	if f.picker, err = scoring.NewPicker(scoring.DefaultConfig(), func() time.Time { return f.now }, rand.New(rand.NewPCG(1, 2)), f); err != nil {
		t.Fatal(err)
	}
	var endpoints []scoring.Endpoint
	for i, n := range ranks {
		id := scoring.EndpointID(i + 1)
		ix.open(id, feed(n))
		endpoints = append(endpoints, scoring.Endpoint{ID: id, Name: fmt.Sprint("e", id), Address: fmt.Sprint("e", id), Ready: true})
	}
	f.picker.SetEndpoints(endpoints)
	return f
}

// asked is a request for those ids.
func asked(sequences ...[]uint32) *scoring.Prompt {
	p := &scoring.Prompt{Source: scoring.TokensGiven}
	for _, ids := range sequences {
		n := scoring.Tokens(len(ids))
		p.Sequences = append(p.Sequences, scoring.Sequence{TokenIDs: ids, Length: n, Usable: n, Copies: 1})
	}
	return p
}

func (f *fleet) route(p *scoring.Prompt) *scoring.Decision {
	f.t.Helper()
	f.next++
	d, err := f.picker.Pick(strconv.Itoa(f.next), p)
	if err != nil {
		f.t.Fatal(err)
	}
	f.s.Decided(d)
	return d
}

// tell lets rank 0 of endpoint 1 tell of one step.
func (f *fleet) tell(events ...event) { f.tellRank(0, events...) }

func (f *fleet) tellRank(rank int, events ...event) {
	f.ix.endpoints[1][rank].apply(&batch{events: events}, f.now, true)
}

func (f *fleet) end(d *scoring.Decision) {
	d.Reservation.End()
	f.s.Ended(d, scoring.OutcomeComplete, "")
}

// owes compares the books of endpoint 1: work in tokens of a prompt of n that
// are left, requests before and past their first token.
func (f *fleet) owes(work scoring.Work, waiting, decoding int) {
	f.t.Helper()
	e := f.picker.Stats().Endpoints[0]
	if e.QueuedArea != work || e.Waiting != waiting || e.Decoding != decoding {
		f.t.Errorf("queued %.0f, waiting %d, decoding %d; want %.0f, %d, %d", e.QueuedArea, e.Waiting, e.Decoding, work, waiting, decoding)
	}
}

// idle: nothing is followed any more, and nothing left behind.
func (f *fleet) idle() {
	f.t.Helper()
	for id := range f.ix.endpoints {
		p := f.ix.progress(id)
		if len(p.bookings) > 0 || len(p.next) > 0 || p.blocks != 0 || p.waiting.Load() != 0 {
			f.t.Errorf("endpoint %d: %d bookings, %d lines, %d blocks, %d waiting", id, len(p.bookings), len(p.next), p.blocks, p.waiting.Load())
		}
	}
}

func left(n, done int) scoring.Work {
	return scoring.Prefill(scoring.Tokens(n), scoring.Tokens(done))
}

// Blocks of a prefill are told as they are computed; with the last full one the
// prompt is computed, long before a request that is not streamed is answered.
func TestPrefillIsFollowed(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		t.Run(fmt.Sprint("streamed=", streamed), func(t *testing.T) {
			f := newFleet(t, 1)
			ids := prompt(1, 0, 18)
			p := asked(ids)
			p.Streamed = streamed
			d := f.route(p)
			f.owes(left(18, 0), 1, 0)
			f.tell(say{}.stored(ids[:8], 0))
			f.owes(left(18, 8), 1, 0)
			f.tell(say{}.stored(prompt(2, 0, 40), 0)) // Somebody else's.
			f.owes(left(18, 8), 1, 0)
			f.tell(say{}.stored(ids[:12], 8))
			f.owes(left(18, 12), 1, 0)
			f.now = f.now.Add(time.Millisecond)
			f.tell(say{}.stored(ids[:16], 12))
			f.owes(0, 0, 1)
			if n := f.ix.endpoints[1][0].status().Counts.Prefills; n != 1 {
				t.Errorf("%d prefills counted", n)
			}
			f.idle()
			f.now = f.now.Add(time.Millisecond)
			ttft, first := d.Reservation.FirstToken()
			if first != streamed || streamed && ttft != 2*time.Millisecond {
				t.Errorf("first token after %s, %v", ttft, first)
			}
			f.owes(0, 0, 1)
			f.end(d)
			f.owes(0, 0, 0)
		})
	}
}

// What is held already is not waited for, and the end of a prompt that is held
// whole is never told; but where its last token fills a block, that is computed
// and told again.
func TestHeldPromptsAreNotWaitedFor(t *testing.T) {
	f := newFleet(t, 1)
	ids := prompt(1, 0, 16)
	f.tell(say{}.stored(ids, 0))
	whole := append(slices.Clone(ids), 1, 2)
	d := f.route(asked(whole))
	f.owes(left(18, 16), 1, 0)
	f.tell(say{}.stored(ids, 12)) // Another's.
	f.owes(left(18, 16), 1, 0)
	f.end(d)
	f.idle()

	d = f.route(asked(ids))
	f.owes(left(16, 12), 1, 0)
	f.tell(say{}.stored(ids, 12))
	f.owes(0, 0, 1)
	f.idle()
	f.end(d)

	// Half of it is held.
	longer := append(slices.Clone(ids), prompt(3, 0, 10)...)
	f.route(asked(longer))
	f.owes(left(26, 16), 1, 0)
	f.tell(say{}.stored(longer[:24], 16))
	f.owes(0, 0, 1)
	f.idle()

	// Nothing that is held counts, so all is told again.
	again := asked(ids)
	again.NoCache = true
	f.route(again)
	f.tell(say{}.stored(ids[:8], 0))
	f.owes(left(16, 8), 1, 1)
	f.tell(say{}.stored(ids, 8))
	f.owes(0, 0, 2)
	f.idle()
}

// One announcement is the end of one prefill: of the first of two that are the
// same. The other has next to nothing left to do, and has it still to do.
func TestEqualPrompts(t *testing.T) {
	f := newFleet(t, 1)
	ids := prompt(1, 0, 17)
	first, second := f.route(asked(ids)), f.route(asked(ids))
	f.owes(2*left(17, 0), 2, 0)
	f.tell(say{}.stored(ids[:16], 0))
	f.owes(left(17, 16), 1, 1)
	if first.Reservation.Prefilled(1) || !second.Reservation.Prefilled(1) {
		t.Error("the second was released, not the first")
	}
	f.end(first)
	f.end(second)
	f.idle()

	// Where the last token fills a block, both announce it.
	ids = prompt(2, 0, 16)
	f.route(asked(ids))
	f.route(asked(ids))
	f.tell(say{}.stored(ids, 0))
	f.owes(left(16, 12), 1, 1)
	f.tell(say{}.stored(ids, 12))
	f.owes(0, 0, 2)
	f.idle()
}

// A prompt that another goes on from is computed with that other one: no work is
// left, but its own turn has not come.
func TestPromptsThatShareBlocks(t *testing.T) {
	for _, longFirst := range []bool{true, false} {
		t.Run(fmt.Sprint("longFirst=", longFirst), func(t *testing.T) {
			f := newFleet(t, 1)
			long := prompt(1, 0, 26)
			short := long[:9]
			if longFirst {
				f.route(asked(long))
				f.route(asked(short))
			} else {
				f.route(asked(short))
				f.route(asked(long))
			}
			f.tell(say{}.stored(long[:16], 0))
			f.owes(left(26, 16)+left(9, 8), 2, 0)
			f.tell(say{}.stored(long[:24], 16))
			f.owes(left(9, 8), 1, 1)
			// The engine has nothing to tell of it: its first token is its end.
			id := "1"
			if longFirst {
				id = "2"
			}
			d := f.picker.Find(id)
			d.FirstToken()
			f.s.FirstToken(d.Decision(), 0)
			f.owes(0, 0, 2)
			f.idle()
		})
	}
	t.Run("chunk of the first ends where the second does", func(t *testing.T) {
		f := newFleet(t, 1)
		long := prompt(1, 0, 26)
		f.route(asked(long))
		f.route(asked(long[:9]))
		f.tell(say{}.stored(long[:8], 0))
		f.owes(left(26, 8)+left(9, 8), 2, 0)
	})
}

// Another salt's blocks are not this prompt's.
func TestProgressOfSalts(t *testing.T) {
	f := newFleet(t, 1)
	ids := prompt(1, 0, 17)
	p := asked(ids)
	p.Salt = "s"
	f.route(p)
	f.tell(say{}.stored(ids[:16], 0))
	f.owes(left(17, 0), 1, 0)
	salted := say{salt: "s"}.stored(ids[:16], 0)
	salted.salt = "s"
	f.tell(salted)
	f.owes(0, 0, 1)
}

// What follows an image is told under a hash that nobody can foresee.
func TestProgressUpToAnImage(t *testing.T) {
	f := newFleet(t, 1)
	p := asked(prompt(1, 0, 30))
	p.Sequences[0].Usable = 10
	d := f.route(p)
	f.tell(say{}.stored(p.Sequences[0].TokenIDs[:8], 0))
	f.owes(left(30, 8), 1, 0)
	f.tell(say{}.stored(p.Sequences[0].TokenIDs[:28], 8))
	f.owes(left(30, 8), 1, 0)
	f.end(d)
	f.idle()
}

// A request with several prompts is over with the last of them; those that hold
// no block are nobody's to tell of.
func TestProgressOfSeveralPrompts(t *testing.T) {
	f := newFleet(t, 1)
	a, b := prompt(1, 0, 9), prompt(2, 0, 17)
	d := f.route(asked(a, b, prompt(3, 0, 3)))
	f.tell(say{}.stored(b[:16], 0))
	f.owes(left(9, 0)+left(3, 0)+left(17, 16), 1, 0)
	f.tell(say{}.stored(a[:8], 0))
	f.owes(0, 0, 1)
	f.idle()
	f.end(d)
	d = f.route(asked(prompt(4, 0, 3)))
	f.owes(left(3, 0), 1, 0)
	f.end(d)
	f.idle()
}

// Ranks share nothing: what one computed is work for another still. Which rank
// has a request is seen by the first block that it computes.
func TestProgressOfRanks(t *testing.T) {
	f := newFleet(t, 2)
	ids := prompt(1, 0, 17)
	f.route(asked(ids))
	f.route(asked(ids))
	f.tellRank(1, say{}.stored(ids[:8], 0))
	f.owes(left(17, 8)+left(17, 0), 2, 0)
	f.tellRank(0, say{}.stored(ids[:4], 0))
	f.owes(left(17, 8)+left(17, 4), 2, 0)
	f.tellRank(1, say{}.stored(ids[:16], 8))
	f.owes(left(17, 4), 1, 1)
	f.tellRank(0, say{}.stored(ids[:16], 4))
	f.owes(0, 0, 2)
	f.idle()
}

// A request that was retried elsewhere is not followed there, nor where it was
// meant to be.
func TestProgressOfARetry(t *testing.T) {
	f := newFleet(t, 1, 1)
	ids := prompt(1, 0, 17)
	other := f.route(asked(prompt(2, 0, 400))) // Endpoint 1 or 2 is busy now.
	d := f.route(asked(ids))
	chosen, served := d.Endpoint(), other.Endpoint()
	d.Reservation.Served(served.Address)
	for _, id := range []scoring.EndpointID{chosen.ID, served.ID} {
		f.ix.endpoints[id][0].apply(&batch{events: []event{say{}.stored(ids[:16], 0)}}, f.now, true)
	}
	for _, e := range f.picker.Stats().Endpoints {
		want := scoring.Work(0)
		if e.Endpoint.ID == served.ID {
			want = left(400, 0) + left(17, 0)
		}
		if e.QueuedArea != want {
			t.Errorf("%s owes %.0f, want %.0f", e.Endpoint.Name, e.QueuedArea, want)
		}
	}
	f.end(d)
	f.end(other)
	f.idle()
}

// Only what is told live says when something was computed.
func TestReplayIsNoProgress(t *testing.T) {
	f := newFleet(t, 1)
	ids := prompt(1, 0, 17)
	d := f.route(asked(ids))
	f.ix.endpoints[1][0].apply(&batch{events: []event{say{}.stored(ids[:16], 0)}}, f.now, false)
	f.owes(left(17, 0), 1, 0)
	f.end(d)
	f.idle()
}

// A new life of the engine has none of the prompts under way, and perhaps other
// blocks.
func TestRestartEndsProgress(t *testing.T) {
	f := newFleet(t, 1)
	ids := prompt(1, 0, 25)
	old := f.route(asked(ids))
	f.tell(say{}.stored(ids[:8], 0))
	f.ix.endpoints[1][0].clear(clearedRestart)
	f.idle()
	f.tell(say{size: 8}.stored(ids[:24], 0))
	f.owes(left(25, 8), 1, 0)
	f.end(old)
	again := append(slices.Clone(ids[:24]), prompt(2, 0, 9)...)
	f.route(asked(again))
	f.tell(say{size: 8}.stored(again[:32], 24))
	f.owes(0, 0, 1)
	f.idle()
}

// Past the bound a prompt is not followed, and costs nothing.
func TestProgressIsBounded(t *testing.T) {
	f := newFleet(t, 1)
	f.tell(say{size: 1}.stored(prompt(9, 0, 2), 0))
	p := f.ix.progress(1)
	for p.blocks+300_000 <= maxAwaited {
		f.route(asked(prompt(f.next, 0, 300_000)))
	}
	before := p.blocks
	d := f.route(asked(prompt(f.next, 0, 300_000)))
	if p.blocks != before {
		t.Errorf("%d blocks awaited, then %d", before, p.blocks)
	}
	f.end(d)
}

// simulated is an engine of one rank: it takes requests in turn, a few tokens a
// step, and tells of each step as vLLM does.
type simulated struct {
	cached map[uint64]bool // by name
	queue  []*simulatedRequest
}

type simulatedRequest struct {
	ids  []uint32
	d    *scoring.Decision
	done int  // tokens, -1: not begun
	told bool // its last block
	held bool // all of it, when it was begun
}

// step computes up to budget tokens and returns what it tells.
func (s *simulated) step(budget int) (events []event) {
	for budget > 0 && len(s.queue) > 0 {
		r := s.queue[0]
		if r.done < 0 {
			r.done = 0
			for r.done+4 <= len(r.ids)-1 && s.cached[name(r.ids[:r.done+4], "")] {
				r.done += 4
			}
			r.held = r.done == len(r.ids)/4*4
		}
		n := min(budget, len(r.ids)-r.done)
		begin := r.done / 4 * 4
		r.done += n
		budget -= n
		if end := r.done / 4 * 4; end > begin {
			e := say{}.stored(r.ids[:end], begin)
			for i := range e.hashes {
				s.cached[e.hashes[i]] = true
			}
			events = append(events, e)
			r.told = end == len(r.ids)/4*4
		}
		if r.done == len(r.ids) {
			s.queue = s.queue[1:]
		}
	}
	return events
}

// However prompts share their beginnings: nobody is released before the engine
// has computed his prompt, everybody is whose last block was told, and nobody
// owes more than what is left of him.
func TestProgressAgainstEngine(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 3))
		f := newFleet(t, 1)
		s := &simulated{cached: map[uint64]bool{}}
		var all []*simulatedRequest
		f.tell(say{}.stored(prompt(99, 0, 4), 0)) // The block size is known.
		for range 120 {
			if rng.IntN(3) > 0 {
				ids := prompt(rng.IntN(3), 4*rng.IntN(4), 1+rng.IntN(40))
				r := &simulatedRequest{ids: ids, d: f.route(asked(ids)), done: -1}
				s.queue, all = append(s.queue, r), append(all, r)
			}
			if events := s.step(rng.IntN(40)); len(events) > 0 {
				f.tell(events...)
			}
			owed := scoring.Work(0)
			for _, r := range all {
				held := 0
				for held+4 <= len(r.ids) && s.cached[name(r.ids[:held+4], "")] {
					held += 4
				}
				b := f.ix.progress(1).bookings[r.d.ID]
				if b != nil && r.held && r.done == len(r.ids) {
					// Nothing tells of it but its first token.
					r.d.Reservation.FirstToken()
					f.end(r.d)
					b = nil
				}
				over := b == nil
				if over && r.done != len(r.ids) && held < len(r.ids)/4*4 {
					t.Fatalf("seed %d: released a prompt of %d tokens, %d of which are computed", seed, len(r.ids), max(r.done, held))
				}
				if !over && r.told {
					t.Fatalf("seed %d: a prompt of %d tokens is computed and not released", seed, len(r.ids))
				}
				if !over {
					owed += left(len(r.ids), min(held, (len(r.ids)-1)/4*4))
				}
			}
			if e := f.picker.Stats().Endpoints[0]; e.QueuedArea != owed {
				t.Fatalf("seed %d: owes %.0f, %.0f are left", seed, e.QueuedArea, owed)
			}
		}
		for _, r := range all {
			f.end(r.d)
		}
		f.idle()
	}
}
