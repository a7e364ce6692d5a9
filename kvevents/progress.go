package kvevents

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/firsttoken/firsttoken/scoring"
)

// progress follows the prompts that are computed at one endpoint. The engine
// tells each block at the end of the step that fills it, so the blocks of a
// prompt are its prefill's progress, and its last full block is its end, some
// milliseconds before the first token.
//
// Events do not name requests. A block may be announced by any request with the
// same beginning, of ours or not. For all that wait for it it is no work any
// more; but only one request, the one dispatched first, computed it, and only
// for that one it may be the end. What is never announced (a prompt that is held
// whole) is not waited for.
//
// Safe for concurrent use. Locks: mu, then a view's.
type progress struct {
	id    scoring.EndpointID // set once
	views []*view            // set once
	// waiting is the number of awaited sequences; a writer that reads 0 has
	// nothing to look for.
	waiting atomic.Int64

	mu sync.Mutex // guards the following fields
	// grain is the block size that the engine told last; 0: none yet.
	grain int
	// order counts bookings, the one dispatched first having the least.
	order uint64
	// bookings are those that are open, by decision id. They are removed at their
	// first token or end, and when the events tell of their end.
	bookings map[string]*booking
	// next finds sequences by the block that they wait for, in their bookings'
	// order. blocks is what their chains hold together, at most maxAwaited.
	next   map[uint64][]*awaited
	blocks int
}

// maxAwaited bounds the chains of one endpoint, at 8 bytes each: 500 prompts of
// 32,000 tokens. Those past it are released by their first token alone.
const maxAwaited = 1 << 20

// booking is one request under way.
type booking struct {
	id          string // of its decision
	reservation *scoring.Reservation
	order       uint64
	// rank computes it; unknownRank: nothing of it was computed yet.
	rank int
	// sequences are those that something is told of, open how many of them have
	// not come to their end; unknown: the end of some is not told, an image's or
	// that of a prompt whose blocks another request computed.
	sequences []*awaited
	open      int
	unknown   bool
}

// awaited is one sequence of a booking.
type awaited struct {
	booking  *booking
	sequence int
	prompt   *scoring.Sequence
	root     uint64
	noCache  bool
	// chain are the hashes of its full blocks, done how many of them are held.
	chain []uint64
	done  int
	over  bool
	// touched: the event that is looked at moved it.
	touched bool
}

const unknownRank = -1

// told is what a reservation is to be told once no lock is held.
type told struct {
	reservation *scoring.Reservation
	sequence    int
	tokens      scoring.Tokens
	over        bool
}

func newProgress(id scoring.EndpointID, views []*view) *progress {
	return &progress{id: id, views: views, bookings: make(map[string]*booking), next: make(map[uint64][]*awaited)}
}

// await follows a decision for this endpoint.
func (p *progress) await(d *scoring.Decision) {
	if d.Prompt.NoCache && slices.ContainsFunc(d.Prompt.Sequences, func(s scoring.Sequence) bool { return s.Copies > 1 }) {
		return // Each copy is computed in full, and nothing tells them apart.
	}
	e := d.Endpoint()
	root := d.Prompt.Root(&e)
	b := &booking{id: d.ID, reservation: d.Reservation, rank: unknownRank}
	for i := range d.Prompt.Sequences {
		s := &d.Prompt.Sequences[i]
		b.unknown = b.unknown || s.Usable < s.Length
		if s.Usable > 0 {
			b.sequences = append(b.sequences, &awaited{booking: b, sequence: i, prompt: s, root: root, noCache: d.Prompt.NoCache})
		}
	}
	if len(b.sequences) == 0 {
		return
	}
	b.open = len(b.sequences)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.order++
	b.order = p.order
	p.bookings[d.ID] = b
	// Counted before the views are looked at: a block that is stored after that is
	// told to us.
	p.waiting.Add(int64(len(b.sequences)))
	for _, v := range p.views {
		if p.grain == 0 {
			p.grain = v.grain()
		}
	}
	if p.grain > 0 {
		p.chainLocked(b, nil)
	}
}

// forget ends the following of a decision, if it goes on.
func (p *progress) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.bookings[id]
	if b == nil {
		return
	}
	delete(p.bookings, id)
	for _, a := range b.sequences {
		p.dropLocked(a)
	}
}

// dropLocked takes a sequence out of its line. Caller must hold p.mu.
func (p *progress) dropLocked(a *awaited) {
	if a.over {
		return
	}
	p.endLocked(a)
	if len(a.chain) == 0 {
		return // Its line is not known yet.
	}
	hash := a.waitsFor()
	list := slices.DeleteFunc(p.next[hash], func(other *awaited) bool { return other == a })
	if len(list) == 0 {
		delete(p.next, hash)
	} else {
		p.next[hash] = list
	}
}

// waitsFor is the block whose announcement is news: the next, or the last one
// again, where another request has computed that.
func (a *awaited) waitsFor() uint64 { return a.chain[min(a.done, len(a.chain)-1)] }

// fillsLast: the prompt's last token fills a block, which is computed, and told,
// even if it is held.
func (a *awaited) fillsLast(grain int) bool {
	return scoring.Tokens(len(a.chain)*grain) == a.prompt.Length
}

// chainLocked begins to wait for the blocks of a booking that are not held,
// taking those of run for news. Caller must hold p.mu.
func (p *progress) chainLocked(b *booking, run []uint64) {
	for _, a := range b.sequences {
		if a.over {
			continue
		}
		ids := a.prompt.TokenIDs[:min(len(a.prompt.TokenIDs), int(a.prompt.Usable))]
		n := len(ids) / p.grain
		if p.blocks+n > maxAwaited {
			b.unknown, n = true, 0
		}
		a.chain = make([]uint64, 0, n)
		prev := a.root
		for end := p.grain; len(a.chain) < n; end += p.grain {
			prev = scoring.ChainBlock(prev, ids[end-p.grain:end])
			a.chain = append(a.chain, prev)
		}
		p.blocks += n
		a.done = p.held(a, run)
		if a.done == n {
			p.endLocked(a) // Held whole: what is left to compute fills no block.
			continue
		}
		p.waitLocked(a, a.chain[a.done])
	}
}

// held is how many leading blocks the engine will not compute, taking those of
// run for computed just now.
func (p *progress) held(a *awaited, run []uint64) (n int) {
	if a.noCache {
		return 0
	}
	for _, v := range p.views {
		n = max(n, v.leading(p.grain, a.chain, run))
	}
	if n == len(a.chain) && a.fillsLast(p.grain) {
		n--
	}
	return n
}

// restarted forgets what was waited for: the engine has another life.
func (p *progress) restarted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.bookings)
	clear(p.next)
	p.grain, p.blocks = 0, 0
	p.waiting.Store(0)
}

// stored takes in the blocks of one event, in order, and returns what is to be
// told of it.
func (p *progress) stored(rank, grain int, run []uint64) []told {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.grain != grain {
		if len(p.next) > 0 {
			return nil // Blocks of another size, beside those that are waited for.
		}
		p.grain = grain
		for _, b := range p.inOrderLocked() {
			p.chainLocked(b, run)
		}
	}
	var touched []*awaited
	for i, hash := range run {
		list := p.next[hash]
		if list == nil {
			continue
		}
		delete(p.next, hash)
		computing := p.computing(list, rank)
		for _, a := range list {
			if len(p.views) > 1 && a.booking.rank != rank {
				p.waitLocked(a, hash) // Another rank's blocks are of no use to it.
				continue
			}
			a.done = min(a.done+1, len(a.chain))
			if !a.touched {
				a.touched = true
				touched = append(touched, a)
			}
			// A prefill's last full block is the last that its step fills.
			its := a.booking == computing && i == len(run)-1
			switch {
			case a.done < len(a.chain), !its && a.fillsLast(grain):
				p.waitLocked(a, a.waitsFor())
			case its:
				p.endLocked(a)
			default:
				a.booking.unknown = true // It finds all its blocks and has nothing to tell.
				p.endLocked(a)
			}
		}
	}
	news := make([]told, len(touched))
	for i, a := range touched {
		a.touched = false
		b, done := a.booking, scoring.Tokens(a.done*grain)
		if !a.over && a.fillsLast(grain) && a.done == len(a.chain) {
			done -= scoring.Tokens(grain) // It will compute its last token's block again.
		}
		news[i] = told{b.reservation, a.sequence, done, a.over && b.open == 0 && !b.unknown}
		if news[i].over {
			delete(p.bookings, b.id)
		}
	}
	return news
}

// endLocked lets go of a sequence that stands in no line. Caller must hold p.mu.
func (p *progress) endLocked(a *awaited) {
	a.over = true
	a.booking.open--
	p.waiting.Add(-1)
	p.blocks -= len(a.chain)
}

// computing is whose work a block is that all of list wait for, in order: of
// those that the rank computes, else of those of which no rank is known, the
// first.
func (p *progress) computing(list []*awaited, rank int) *booking {
	for _, wanted := range []int{rank, unknownRank} {
		for _, a := range list {
			if a.booking.rank == wanted {
				a.booking.rank = rank
				return a.booking
			}
		}
	}
	return nil
}

// waitLocked puts a sequence in line for a block. Caller must hold p.mu.
func (p *progress) waitLocked(a *awaited, hash uint64) {
	list := p.next[hash]
	at := len(list)
	for at > 0 && list[at-1].booking.order > a.booking.order {
		at--
	}
	p.next[hash] = slices.Insert(list, at, a)
}

func (p *progress) inOrderLocked() []*booking {
	list := make([]*booking, 0, len(p.bookings))
	for _, b := range p.bookings {
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b *booking) int { return int(a.order) - int(b.order) }) //nolint:gosec // No process lives to count so far.
	return list
}

// tell passes the news on. No lock is held.
func (p *progress) tell(news []told) (ended uint64) {
	for _, n := range news {
		n.reservation.Computed(p.id, n.sequence, n.tokens)
		if n.over && n.reservation.Prefilled(p.id) {
			ended++
		}
	}
	return ended
}
