package scoring

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// holdingConfig holds.
func holdingConfig() Config {
	cfg := DefaultConfig()
	cfg.Policy, cfg.Hold.Enabled = PolicyTTFT, true
	return cfg
}

// blocksPrompt is a prompt of n tokens in blocks of 64 whose chain begins with
// the shared blocks of a family.
func blocksPrompt(model string, n, shared, family, own int) *Prompt {
	chain := make([]uint64, n/64)
	for i := range chain {
		chain[i] = uint64(own)<<32 | uint64(i)
		if i < shared/64 {
			chain[i] = uint64(family)<<16 | uint64(i) | 1<<63
		}
	}
	return &Prompt{
		Model: model, Streamed: own%5 != 0, Source: TokensNative, BlockTokens: 64,
		Sequences: []Sequence{{Length: Tokens(n), Usable: Tokens(n / 64 * 64), Chain: chain, Copies: 1}},
	}
}

// dispatcher is a picker and what its releases were.
type dispatcher struct {
	*Picker
	gone   []string
	booked map[string]*Reservation
}

func newDispatcher(t *testing.T, clock Clock, seed uint64) *dispatcher {
	t.Helper()
	p, err := NewPicker(holdingConfig(), clock, rand.New(rand.NewPCG(seed, 7)))
	if err != nil {
		t.Fatal(err)
	}
	return &dispatcher{Picker: p, booked: make(map[string]*Reservation)}
}

// release notes what became of a request.
func (h *dispatcher) release(id string) func(*Decision, error) {
	return func(d *Decision, err error) {
		if err != nil {
			h.gone = append(h.gone, fmt.Sprint(id, " ", err))
			return
		}
		h.booked[id] = d.Reservation
		c := d.Candidates[0]
		h.gone = append(h.gone, fmt.Sprintf("%s to %d, cost %.9f backlog %.9f kv %.9f held %s", id, c.Endpoint.ID, c.Cost, c.Backlog, c.KVWait, d.Held))
	}
}

// dumbDispatcher holds by the letter of the description: it keeps a list, and after
// each event sorts it and weighs everything in it anew.
type dumbDispatcher struct {
	*dispatcher
	list []*dumbHeld
}

type dumbHeld struct {
	id      string
	prompt  *Prompt
	arrived time.Time
	key     float64
	number  int
}

func (h *dumbDispatcher) offer(id string, prompt *Prompt, number int) {
	d, err := h.prepare(id, prompt)
	if err != nil {
		h.release(id)(nil, err)
		return
	}
	l := h.ledger
	arrived := l.lock()
	if err := l.completeLocked(d); err != nil {
		panic(err)
	}
	l.arriveLocked(d)
	least := slices.MinFunc(d.Candidates, func(a, b Candidate) int { return cmp.Compare(a.Work, b.Work) }).Work
	l.mu.Unlock()
	h.list = append(h.list, &dumbHeld{id, prompt, arrived, least + 0.1*arrived.Sub(l.began).Seconds(), number})
	h.pass()
}

func (h *dumbDispatcher) pass() {
	l := h.ledger
	slices.SortFunc(h.list, func(a, b *dumbHeld) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.number, b.number))
	})
	vb, extra := make(map[EndpointID]float64), make(map[EndpointID]Tokens)
	limit := make(map[EndpointID]float64)
	l.lock()
	for _, e := range h.Endpoints() {
		a := l.accounts[e.ID]
		fit := l.fitLocked(a)
		limit[e.ID] = exact(fit.SecondsPerToken()*float64(l.cfg.BatchTokens) + fit.SecondsPerStep()).Seconds()
		vb[e.ID] = a.backlog(l.now).Seconds()
	}
	var kept []*dumbHeld
	var told []func()
	for _, r := range h.list {
		d, err := h.prepare(r.id, r.prompt)
		if err != nil {
			told = append(told, func() { h.release(r.id)(nil, err) })
			continue
		}
		if err := l.completeLocked(d); err != nil {
			panic(err)
		}
		free := func(c Candidate) bool { return vb[c.Endpoint.ID] <= limit[c.Endpoint.ID] }
		if !slices.ContainsFunc(d.Candidates, free) {
			kept = append(kept, r)
			continue
		}
		kappa := d.Candidates[0].account.pool.kappa()
		real := slices.Clone(d.Candidates)
		for i := range d.Candidates {
			c := &d.Candidates[i]
			if n := extra[c.Endpoint.ID]; n > 0 && c.account.pool.room {
				c.KVWait = c.account.waitForRoom(c.HeldTokens+n, r.prompt.Length())
			}
			c.Cost = vb[c.Endpoint.ID] + c.KVWait + (1+kappa)*c.Work
			real[i].Cost = c.Cost
		}
		best := l.bestLocked(d.Candidates)
		c := d.Candidates[best]
		goes := free(c)
		vb[c.Endpoint.ID] += c.Work
		if !goes {
			extra[c.Endpoint.ID] += r.prompt.Length()
			kept = append(kept, r)
			continue
		}
		d.Candidates[0], d.Candidates[best] = d.Candidates[best], d.Candidates[0]
		l.frontLocked(d.Candidates[1:], alternates)
		for i := range d.Candidates {
			d.Candidates[i] = real[slices.IndexFunc(real, func(c Candidate) bool { return c.Endpoint.ID == d.Candidates[i].Endpoint.ID })]
		}
		d.Time, d.Held = l.now, l.now.Sub(r.arrived)
		l.bookLocked(d)
		told = append(told, func() { h.release(r.id)(d, nil) })
	}
	h.list = kept
	l.mu.Unlock()
	for _, tell := range told {
		tell()
	}
}

// Both meet the same events at the same times and must let go of the
// same requests, to the same endpoints at the same costs.
func TestHoldTwin(t *testing.T) {
	held, released, refused := 0, 0, 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		now := time.Unix(0, 0)
		clock := func() time.Time { return now }
		a, b := newDispatcher(t, clock, seed), &dumbDispatcher{dispatcher: newDispatcher(t, clock, seed)}
		a.ledger.cfg.Hold.Max = time.Hour
		var present []Endpoint
		life := EndpointID(0)
		join := func(models ...string) {
			life++
			present = append(present, Endpoint{ID: life, Name: strconv.Itoa(int(life)), Models: models, Ready: true})
		}
		publish := func() {
			a.SetEndpoints(slices.Clone(present))
			b.SetEndpoints(slices.Clone(present))
			b.pass()
			for _, e := range present {
				if seed%2 == 0 {
					engine := Engine{CapacityTokens: 30_000}
					a.SetEngine(e.ID, engine)
					b.SetEngine(e.ID, engine)
					b.pass()
				}
			}
		}
		join("m")
		join("m", "n")
		join("m")
		join("n")
		if seed%3 == 0 {
			join() // it may serve anything
		}
		publish()
		var open []string
		for n := range 300 {
			now = now.Add(time.Duration(rng.IntN(60)) * time.Millisecond)
			switch rng.IntN(10) {
			case 0, 1, 2, 3, 4:
				id := strconv.Itoa(n)
				model := []string{"m", "m", "m", "n", "n", "x", "y"}[rng.IntN(7)]
				size := 200 + rng.IntN(6000)
				if rng.IntN(10) == 0 {
					size = 30_000
				}
				p := blocksPrompt(model, size, min(size, 3000), rng.IntN(4), n+1)
				d, h, err := a.Offer(id, p, a.release(id))
				if h == nil {
					a.release(id)(d, err)
				}
				before := len(b.list)
				b.offer(id, p, n)
				held += len(b.list) - before
				open = append(open, id)
			case 5, 6, 7:
				if i := slices.IndexFunc(open, func(id string) bool { return a.booked[id] != nil }); i >= 0 {
					a.booked[open[i]].FirstToken()
					b.booked[open[i]].FirstToken()
					b.pass()
					if rng.IntN(2) == 0 {
						a.booked[open[i]].End()
						b.booked[open[i]].End()
						b.pass()
					}
					open = slices.Delete(open, i, i+1)
				}
			case 8:
				if at, ok := a.NextRelease(); ok && at.After(now) {
					now = at // else it is late
				}
				a.Expire()
				b.Expire()
				b.pass()
				if next, ok := a.NextRelease(); ok && !next.After(now) {
					t.Fatalf("seed %d: the next release is now, again", seed)
				}
			case 9:
				switch rng.IntN(6) {
				case 0:
					at := rng.IntN(len(present))
					present = slices.Delete(present, at, at+1)
				case 1:
					present[rng.IntN(len(present))].Ready = rng.IntN(3) > 0
				}
				if len(present) < 3 {
					join("m", "n")
				}
				if i := slices.IndexFunc(present, func(e Endpoint) bool { return len(e.Models) == 0 }); i >= 0 && rng.IntN(3) == 0 {
					present[i].Models = []string{"x"} // now it is known
				}
				publish()
			}
			a.Expire() // also where nothing of the above happened
			b.Expire()
			b.pass()
			slices.Sort(a.gone) // Offer returns what goes at once, after the others are told
			slices.Sort(b.gone)
			if !slices.Equal(a.gone, b.gone) {
				t.Fatalf("seed %d, event %d: let go of\n%q, want\n%q", seed, n, a.gone, b.gone)
			}
			for _, line := range a.gone {
				if released++; line[len(line)-1] == 't' { // … endpoint
					refused++
				}
			}
			a.gone, b.gone = nil, nil
			got, want := a.Stats(), b.Stats()
			b.pass()
			if got.Open != want.Open || got.Held != len(b.list) {
				t.Fatalf("seed %d: %d booked and %d held, want %d and %d", seed, got.Open, got.Held, want.Open, len(b.list))
			}
		}
	}
	t.Logf("%d held, %d let go, %d refused", held, released, refused)
	if held < 1000 || refused == 0 {
		t.Errorf("%d held, %d refused: the events do not try what is to be tried", held, refused)
	}
}

// Whoever releases, cancels or dispatches at the same time: each request is let go
// once, and at the end nothing is held or booked.
func TestHoldConcurrently(t *testing.T) {
	p, err := NewPicker(holdingConfig(), time.Now, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	endpoints := []Endpoint{{ID: 1, Name: "a", Ready: true}, {ID: 2, Name: "b", Ready: true}}
	p.SetEndpoints(endpoints)
	const workers, each = 8, 300
	var released, cancelled, decided atomic.Int64
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 5))
			for n := range each {
				id := fmt.Sprint(w, ".", n)
				told := make(chan *Decision, 1)
				d, h, err := p.Offer(id, blocksPrompt("", 20_000+rng.IntN(20_000), 0, 0, w*each+n+1), func(d *Decision, err error) {
					if released.Add(1); err != nil {
						t.Errorf("released with %v", err)
					}
					told <- d
				})
				switch {
				case err != nil:
					t.Error(err)
					continue
				case h == nil:
					decided.Add(1)
				case rng.IntN(3) == 0:
					if h.Cancel() {
						cancelled.Add(1)
						if h.Dispatch() || h.Cancel() {
							t.Error("let go of twice")
						}
						continue
					}
					d = <-told
				case rng.IntN(2) == 0:
					h.Dispatch()
					d = <-told
				default:
					p.SetEndpoints(endpoints)
					h.Dispatch()
					d = <-told
				}
				d.Reservation.FirstToken()
				d.Reservation.End()
			}
		})
	}
	all.Wait()
	if got := released.Load() + cancelled.Load() + decided.Load(); got != workers*each {
		t.Errorf("%d let go, %d cancelled, %d at once: %d, want %d", released.Load(), cancelled.Load(), decided.Load(), got, workers*each)
	}
	if s := p.Stats(); s.Open != 0 || s.Held != 0 || len(p.ledger.held.groups) != 0 {
		t.Errorf("%d booked, %d held are left", s.Open, s.Held)
	}
	if released.Load() == 0 || cancelled.Load() == 0 {
		t.Errorf("%d released, %d cancelled: nothing was held", released.Load(), cancelled.Load())
	}
}

// A change of the schedule is told of, once.
func TestRescheduled(t *testing.T) {
	now := time.Unix(0, 0)
	h := newDispatcher(t, func() time.Time { return now }, 1)
	h.SetEndpoints([]Endpoint{{ID: 1, Name: "a", Ready: true}})
	rescheduled := func() bool {
		select {
		case <-h.Rescheduled():
			return true
		default:
			return false
		}
	}
	offer := func(id string) *Held {
		d, held, err := h.Offer(id, blocksPrompt("", 10_000, 0, 0, 1), h.release(id))
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			h.booked[id] = d.Reservation
		}
		return held
	}
	offer("1")
	if _, ok := h.NextRelease(); ok || rescheduled() {
		t.Error("something is to go, and nothing is held")
	}
	held := offer("2")
	at, ok := h.NextRelease()
	if !ok || !rescheduled() || rescheduled() {
		t.Fatalf("next %v %v, want to be told of it once", at, ok)
	}
	now = at.Add(-1)
	h.Expire()
	if again, _ := h.NextRelease(); len(h.gone) != 0 || rescheduled() || !again.Equal(at) {
		t.Errorf("before its time: %q, next at %s, want nothing new", h.gone, again)
	}
	if !held.Cancel() || !rescheduled() {
		t.Error("not told that nothing is held any more")
	}
	if _, ok := h.NextRelease(); ok {
		t.Error("something is to go, and nothing is held")
	}
}

// BenchmarkHold has 2,000 requests held at once for 16 busy endpoints, each of 64
// blocks, and lets them go one by one as first tokens come.
func BenchmarkHold(b *testing.B) {
	for _, c := range []struct{ endpoints, blocks int }{{16, 64}, {256, 400}} {
		b.Run(fmt.Sprintf("%d endpoints %d blocks", c.endpoints, c.blocks), func(b *testing.B) {
			const n = 2000
			var offers, events time.Duration
			var bytes, passes int
			for b.Loop() {
				now := time.Unix(0, 0)
				p, err := NewPicker(holdingConfig(), func() time.Time { return now }, rand.New(rand.NewPCG(1, 2)))
				if err != nil {
					b.Fatal(err)
				}
				list := make([]Endpoint, c.endpoints)
				for i := range list {
					list[i] = Endpoint{ID: EndpointID(i + 1), Name: strconv.Itoa(i), Ready: true}
				}
				p.SetEndpoints(list)
				var queue []*Reservation
				for i := range list {
					busy := &Prompt{Streamed: true, Source: TokensEstimated, Sequences: []Sequence{{Length: 1_000_000, Copies: 1}}}
					d, err := p.Pick("busy"+strconv.Itoa(i), busy)
					if err != nil {
						b.Fatal(err)
					}
					queue = append(queue, d.Reservation)
				}
				prompts := make([]*Prompt, n)
				for i := range prompts {
					prompts[i] = blocksPrompt("", c.blocks*64, 1024, i%8, 5*(i+1000)+1)
				}
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				began := time.Now()
				for i := range n {
					now = now.Add(time.Millisecond)
					if _, h, err := p.Offer(strconv.Itoa(i), prompts[i], func(d *Decision, _ error) { queue = append(queue, d.Reservation) }); h == nil || err != nil {
						b.Fatal("not held")
					}
				}
				offers += time.Since(began)
				runtime.GC()
				runtime.ReadMemStats(&after)
				bytes += int(after.HeapAlloc - before.HeapAlloc)
				began = time.Now()
				for len(queue) > 0 {
					now = now.Add(10 * time.Millisecond)
					queue[0].FirstToken()
					queue[0].End()
					queue = queue[1:]
					passes += 2
				}
				events += time.Since(began)
				if s := p.Stats(); s.Open != 0 || s.Held != 0 {
					b.Fatalf("%d booked, %d held", s.Open, s.Held)
				}
			}
			b.ReportMetric(float64(offers.Nanoseconds())/float64(b.N*n), "ns/offer")
			b.ReportMetric(float64(events.Nanoseconds())/float64(passes), "ns/event")
			b.ReportMetric(float64(bytes)/float64(b.N*n), "B/held")
			b.ReportMetric(0, "ns/op")
		})
	}
}
