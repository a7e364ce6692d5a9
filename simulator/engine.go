package simulator

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Options are the sizes that do not belong to a kind of engine.
type Options struct {
	// BlockTokens is the size of a block of the prefix cache; 0: 16.
	BlockTokens int
	// ChunkTokens is the size of a chunk of the host tier; 0: 256.
	ChunkTokens int
	// Shared joins the host tiers of engines: what another has is fetched where
	// the own tiers do not have it. It needs a host tier. Nil: there is none.
	Shared *Shared
	// WriteThrough: a prompt is in the host tier as soon as it is computed, not
	// only when its answer has ended.
	WriteThrough bool
}

// ID names a request; the caller gives it and never gives it twice.
type ID uint64

// Request is one prompt to compute and answer.
type Request struct {
	ID ID
	// PromptTokens is the length of the prompt, at least 1; OutputTokens that of
	// the answer, at least 1.
	PromptTokens, OutputTokens int
	// Blocks are the keys of the full blocks of prompt and answer. Blocks
	// without a key are never found again.
	Blocks []Key
	// Chunks are the keys of the prompt's chunks in the host tier; the last may
	// stand for a chunk that is not full.
	Chunks []Key
	// NoCache: nothing that is cached may be used; what is computed is cached as
	// always.
	NoCache bool
}

// Output is the token that a request got from a step.
type Output struct {
	ID ID
	// First: it is the answer's first. Finished: it is the last; the request's
	// memory is free again.
	First, Finished bool
	// Cached is the number of prompt tokens that were not computed when the
	// request was first admitted, Loaded how many of them came from the host
	// tier, its own or another engine's.
	Cached, Loaded int
}

// Result is what a step brought forth.
type Result struct {
	// Outputs are in the order of admission.
	Outputs []Output
	// Prefill is the number of prompt tokens computed, Decode that of the
	// requests that were decoding. Preempted is how many had to give up their
	// memory.
	Prefill, Decode, Preempted int
	// Admitted are the requests that left the queue for the first time.
	Admitted []Admission
	// Host is what changed in the host tier, in order.
	Host []HostChange
	// Blocks is what changed in the prefix cache, in order: blocks are lost
	// before those are stored that took their place.
	Blocks []BlockChange
}

// Admission is a request's first leave from the queue.
type Admission struct {
	ID ID
	// Queried is the number of prompt tokens looked up in the prefix cache, 0
	// with NoCache. Cached and Loaded are those of Output.
	Queried, Cached, Loaded int
}

// BlockChange is one change of the prefix cache.
type BlockChange struct {
	Kind BlockChangeKind
	// ID, First and Last say which blocks of which request were stored: from
	// First on, Last excluded. A key may be stored several times, by requests
	// that compute the same at once; each copy is lost by itself.
	ID          ID
	First, Last int
	// Key is the one that was lost.
	Key Key
}

// BlockChangeKind says what happened.
type BlockChangeKind uint8

// The kinds.
const (
	// BlocksStored: a step computed blocks of one request.
	BlocksStored BlockChangeKind = iota
	// BlockLost: the memory of a block was handed out anew.
	BlockLost
	// CacheReset: all content was made unknown at once.
	CacheReset
)

// HostChange is a chunk that entered or left the host tier.
type HostChange struct {
	Key     Key
	Evicted bool
}

// Stats are an engine's sizes now.
type Stats struct {
	Running, Waiting int
	// BlocksHeld is the number of blocks that live requests hold, of Blocks.
	BlocksHeld, Blocks int
}

// ErrTooLarge says that not even an idle engine could hold the request.
var ErrTooLarge = errors.New("request needs more KV memory than there is")

// state is a request on its way. total is prompt plus answer so far; computed
// counts the positions whose KV is in memory. When they meet, the next token
// comes out.
type state struct {
	Request
	total, computed int
	held            []slot
	named           int // leading blocks of held that have been given their key
	cached, loaded  int // at the first admission; -1 before
	scheduled       int // tokens in the step under way
}

func (s *state) decoding() bool { return s.total > s.PromptTokens && s.total-s.computed == 1 }

// Engine is one engine. It belongs to one goroutine at a time. Its memory is
// bounded by the profile's sizes and the requests that are waiting.
type Engine struct {
	profile  Profile
	block    int // tokens
	chunk    int // tokens
	pool     *pool
	host     *host // nil: no host tier
	shared   *Shared
	through  bool // WriteThrough
	frozen   bool // nothing may enter or leave the host tier
	byID     map[ID]*state
	running  []*state // in order of admission
	waiting  []*state // the head first
	stepping bool
	result   Result // of the step under way, so far
	// reset: the cache was reset, which the next step with work tells.
	reset bool
	// blocked: at the last step's begin the head of the queue had no room, and
	// nothing was freed since.
	blocked bool
}

// New makes an idle engine with nothing cached.
func New(p Profile, o Options) *Engine {
	if o.BlockTokens == 0 {
		o.BlockTokens = 16
	}
	if o.ChunkTokens == 0 {
		o.ChunkTokens = 256
	}
	e := &Engine{
		profile: p, block: o.BlockTokens, chunk: o.ChunkTokens,
		pool: newPool(p.KVTokens / o.BlockTokens),
		byID: make(map[ID]*state), shared: o.Shared, through: o.WriteThrough,
	}
	if n := p.HostTokens / o.ChunkTokens; n > 0 {
		e.host = newHost(n, o.Shared)
	}
	return e
}

// Add appends a request to the queue. The error is ErrTooLarge or says which
// length is not positive.
func (e *Engine) Add(r Request) error {
	if r.PromptTokens < 1 || r.OutputTokens < 1 {
		return fmt.Errorf("request of %d prompt and %d answer tokens: each must be at least 1", r.PromptTokens, r.OutputTokens)
	}
	if need := e.blocks(r.PromptTokens + r.OutputTokens - 1); need > e.pool.size() {
		return fmt.Errorf("%w: %d blocks of %d", ErrTooLarge, need, e.pool.size())
	}
	s := &state{Request: r, total: r.PromptTokens, cached: -1}
	e.byID[r.ID] = s
	e.waiting = append(e.waiting, s)
	return nil
}

// Cancel takes a request out, wherever it is, and frees its memory at once. It
// reports whether there was one. A token of the step under way is lost.
func (e *Engine) Cancel(id ID) bool {
	s := e.byID[id]
	if s == nil {
		return false
	}
	e.drop(s)
	is := func(other *state) bool { return other == s }
	e.running = slices.DeleteFunc(e.running, is)
	e.waiting = slices.DeleteFunc(e.waiting, is)
	return true
}

// drop ends a running or waiting request; both queues are the caller's affair.
func (e *Engine) drop(s *state) {
	e.pool.release(s.held)
	s.held = nil
	delete(e.byID, s.ID)
	e.blocked = false
}

// Schedule begins a step and says how long it takes; false: there is nothing to
// do. The caller calls Complete when that time has passed. Requests may be added
// and cancelled meanwhile; what is added waits for the next step.
func (e *Engine) Schedule() (time.Duration, bool) {
	if e.stepping {
		panic("simulator: Schedule before the step under way is complete")
	}
	e.result, e.blocked = Result{}, false
	if e.reset {
		e.result.Blocks = append(e.result.Blocks, BlockChange{Kind: CacheReset})
	}
	var l load
	budget := e.profile.BatchTokens
	budget = e.scheduleDecodes(budget, &l)
	for _, s := range e.running {
		if s.scheduled == 0 && budget > 0 {
			budget -= e.compute(s, budget, &l)
		}
	}
	if e.result.Preempted == 0 { // else the head would take what was just freed
		for budget > 0 && len(e.waiting) > 0 && len(e.running) < e.profile.MaxSeqs {
			s := e.waiting[0]
			if !e.admit(s, &l) {
				e.blocked = true
				break
			}
			e.waiting[0] = nil
			e.waiting = e.waiting[1:]
			e.running = append(e.running, s)
			budget -= e.compute(s, budget, &l)
		}
	}
	if l.prefill+l.decodes == 0 {
		return 0, false
	}
	e.reset = false
	e.stepping, e.result.Prefill, e.result.Decode = true, l.prefill, l.decodes
	return e.profile.duration(l), true
}

// scheduleDecodes gives every decoding request its token and the block for it,
// and returns what is left of the budget.
func (e *Engine) scheduleDecodes(budget int, l *load) int {
	for i := 0; i < len(e.running) && budget > 0; i++ {
		s := e.running[i]
		if !s.decoding() {
			continue
		}
		for e.blocks(s.total) > len(s.held) {
			if e.pool.idle > 0 {
				s.held = append(s.held, e.take())
				continue
			}
			if e.preempt() == s {
				return budget // the newest was s itself: it has no later ones
			}
		}
		s.scheduled = 1
		budget--
		l.decodes++
		l.decodeContext += s.total
		e.name(s)
	}
	return budget
}

// take is a block for a request; the caller has seen that one is free.
func (e *Engine) take() slot {
	b, key, lost := e.pool.take()
	if lost {
		e.result.Blocks = append(e.result.Blocks, BlockChange{Kind: BlockLost, Key: key})
	}
	return b
}

// preempt takes the memory of the newest request and puts it back to the head
// of the queue, where it will compute again what is no longer cached.
func (e *Engine) preempt() *state {
	s := e.running[len(e.running)-1]
	e.running = e.running[:len(e.running)-1]
	e.pool.release(s.held)
	s.held, s.named, s.computed = nil, 0, 0
	e.waiting = slices.Insert(e.waiting, 0, s)
	e.result.Preempted++
	return s
}

// admit finds what is cached of a request and reserves the blocks for the rest
// of its prompt; false: there is no room now.
func (e *Engine) admit(s *state, l *load) bool {
	var run []slot
	device, loaded, fetched := 0, 0, 0
	if !s.NoCache {
		// At least one token has to be computed, for the next comes out of it.
		run = e.pool.match(s.Blocks[:min(len(s.Blocks), (s.total-1)/e.block)])
		device = len(run) * e.block
		if e.host != nil {
			chunks := e.host.match(s.Chunks)
			own := chunks
			for chunks < len(s.Chunks) && e.shared.Holds(s.Chunks[chunks]) {
				chunks++
			}
			end := min(chunks*e.chunk, s.PromptTokens, s.total-1)
			loaded = max(0, end-device)
			fetched = max(0, end-max(device, own*e.chunk))
			e.host.touch(s.Chunks[:own])
		}
	}
	fresh := e.blocks(s.total) - len(run)
	if e.pool.idle-e.pool.idleAmong(run) < fresh {
		return false
	}
	e.pool.pin(run)
	s.held, s.named = run, len(run)
	for range fresh {
		s.held = append(s.held, e.take())
	}
	s.computed = device + loaded
	if s.cached < 0 {
		s.cached, s.loaded = s.computed, loaded
		a := Admission{ID: s.ID, Queried: s.PromptTokens, Cached: s.cached, Loaded: loaded}
		if s.NoCache {
			a.Queried = 0
		}
		e.result.Admitted = append(e.result.Admitted, a)
	}
	l.hostTokens += loaded - fetched
	l.fetchTokens += fetched
	return true
}

// compute gives a request the next part of its prefill, at most budget tokens,
// and returns how many.
func (e *Engine) compute(s *state, budget int, l *load) int {
	n := min(s.total-s.computed, budget)
	s.scheduled = n
	l.prefill += n
	l.prefillContext += n*s.computed + n*(n+1)/2
	e.name(s)
	return n
}

// name makes the full blocks of a request known to others, those of the step
// under way included: whoever is scheduled later in it reads what it writes.
func (e *Engine) name(s *state) {
	full := min((s.computed+s.scheduled)/e.block, len(s.Blocks))
	if s.named >= full {
		return
	}
	e.result.Blocks = append(e.result.Blocks, BlockChange{Kind: BlocksStored, ID: s.ID, First: s.named, Last: full})
	for ; s.named < full; s.named++ {
		e.pool.remember(s.held[s.named], s.Blocks[s.named])
	}
}

// ResetCache makes all that is in the prefix cache unknown, at once; the next
// step that has work tells it. False, and nothing is done: requests hold memory.
func (e *Engine) ResetCache() bool {
	if e.pool.idle < e.pool.size() {
		return false
	}
	e.pool.forgetAll()
	e.reset = true
	return true
}

// Complete ends the step under way.
func (e *Engine) Complete() Result {
	if !e.stepping {
		panic("simulator: Complete without a step under way")
	}
	e.stepping = false
	res := e.result
	running := e.running[:0]
	for _, s := range e.running {
		s.computed += s.scheduled
		advanced := s.scheduled > 0
		s.scheduled = 0
		if !advanced || s.computed < s.total {
			running = append(running, s)
			continue
		}
		s.total++
		out := Output{
			ID: s.ID, First: s.total == s.PromptTokens+1, Finished: s.total == s.PromptTokens+s.OutputTokens,
			Cached: s.cached, Loaded: s.loaded,
		}
		res.Outputs = append(res.Outputs, out)
		if out.Finished {
			e.drop(s)
		} else {
			running = append(running, s)
		}
		if keep := out.Finished; keep && !e.through || out.First && e.through {
			e.keep(s, &res)
		}
	}
	clear(e.running[len(running):])
	e.running = running
	return res
}

// keep stores a request's prompt in the host tier.
func (e *Engine) keep(s *state, res *Result) {
	if e.host == nil || e.frozen {
		return
	}
	res.Host = e.host.store(s.Chunks, res.Host)
}

// FreezeHost stops (true) or resumes storing in the host tier. What is there
// stays readable.
func (e *Engine) FreezeHost(frozen bool) { e.frozen = frozen }

// HostKeys lists the chunks in the host tier, the next to go first.
func (e *Engine) HostKeys() []Key {
	if e.host == nil {
		return nil
	}
	return e.host.keys()
}

// Stats are the sizes now.
func (e *Engine) Stats() Stats {
	return Stats{
		Running: len(e.running), Waiting: len(e.waiting),
		BlocksHeld: e.pool.size() - e.pool.idle, Blocks: e.pool.size(),
	}
}

// blocks is how many blocks hold that many tokens.
func (e *Engine) blocks(tokens int) int { return (tokens + e.block - 1) / e.block }
