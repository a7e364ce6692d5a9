package replay

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
	"github.com/firsttoken/firsttoken/simulator/baseline"
	"github.com/firsttoken/firsttoken/simulator/trace"
)

// Run replays a workload to its end. The error says what is wrong with the
// setup, or is the context's, where that ended first. Cost: some hundred
// thousand requests take seconds; most of it is choosing endpoints.
func Run(ctx context.Context, s Setup, w Workload) (*Report, error) {
	if s.Policy == scoring.PolicyPrefix {
		s.Truth = Routed
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	r, err := newRun(&s, w)
	if err != nil {
		return nil, err
	}
	for n := 0; r.advance(); n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return r.finish(), nil
}

// run is a replay under way. It has one goroutine.
type run struct {
	setup    *Setup // set once, with its defaults
	workload Workload
	rng      *rand.Rand // of the workload's spoiled lengths only, so that policies meet the same

	now       time.Duration
	endpoints []*endpoint
	router    *router
	view      *view
	shared    *simulator.Shared // nil unless Setup.Shared
	outages   []outage          // to come, in order
	lives     scoring.EndpointID

	taken   int                      // requests of the workload
	flights map[simulator.ID]*flight // requests that are not over
	waiting int                      // of flights, those without a first token
	ended   int

	report     Report
	nextSample time.Duration
	// firstArrival is when the first request that is counted came, lastArrival the
	// last one; busyWarm and busyThen are how long the engines had computed then.
	firstArrival, lastArrival, busyThen, busyWarm time.Duration
	warm                                          bool
}

// flight is a request on its way.
type flight struct {
	n       int // its place in the workload, its ID at engines too
	request trace.Request
	engine  simulator.Request
	prompt  *scoring.Prompt
	counted bool

	at       *endpoint     // nil: held, or about to be routed
	routing                // the router's part
	first    time.Duration // of its first token; never before
	cached   int
	estimate time.Duration
}

// outage is the beginning or the end of a failure.
type outage struct {
	at       time.Duration
	endpoint int
	back     bool
}

func newRun(s *Setup, w Workload) (*run, error) {
	s.BlockTokens = cmp.Or(s.BlockTokens, defaultBlockTokens)
	s.SampleEvery = cmp.Or(s.SampleEvery, defaultSampleEvery)
	s.Replicas = max(1, s.Replicas)
	s.TokenBias = cmp.Or(s.TokenBias, 1)
	r := &run{
		setup: s, workload: w, rng: rand.New(rand.NewPCG(s.Seed, 1)), //nolint:gosec // a simulation is to be repeatable
		flights: make(map[simulator.ID]*flight), report: Report{Policy: s.Policy},
	}
	r.view = &view{
		clock: func() time.Duration { return r.now }, delay: s.EventDelay, blockTokens: s.BlockTokens,
		hostSeconds: s.HostSeconds, fetchSeconds: s.FetchPerToken, of: make(map[scoring.EndpointID]*heard),
	}
	if s.Shared {
		r.shared, r.view.holders = simulator.NewShared(), make(map[simulator.Key]int)
	}
	for i, e := range s.Endpoints {
		if s.Shared {
			e.Profile.FetchLoad = s.FetchPerToken
		}
		r.endpoints = append(r.endpoints, &endpoint{setup: e, index: i})
	}
	for _, f := range s.Failures {
		r.outages = append(r.outages, outage{f.From, f.Endpoint, false}, outage{f.To, f.Endpoint, true})
	}
	slices.SortStableFunc(r.outages, func(a, b outage) int { return cmp.Compare(a.at, b.at) })
	var err error
	if r.router, err = newRouter(r); err != nil {
		return nil, err
	}
	for _, e := range r.endpoints {
		r.start(e)
	}
	r.router.publish(r.endpoints)
	return r, nil
}

// start gives an endpoint a new life, with nothing cached.
func (r *run) start(e *endpoint) {
	r.lives++
	e.id, e.up, e.at, e.next, e.doing = r.lives, true, r.now, never, idle
	e.sim = simulator.New(e.setup.Profile, simulator.Options{
		BlockTokens: r.setup.BlockTokens, ChunkTokens: r.setup.BlockTokens,
		Shared: r.shared, WriteThrough: r.shared != nil,
	})
	r.view.join(e.id)
}

// advance goes on to the next time at which anything happens; false: nothing
// will. What happens at the same time happens in this order: engines end their
// steps and begin the next, endpoints fail and come back, requests come, held
// ones are let go, engines that stood still begin.
func (r *run) advance() bool {
	next := never
	for _, e := range r.endpoints {
		next = min(next, e.next)
	}
	if at, ok := r.workload.Next(); ok {
		next = min(next, at)
	}
	// What is to be let go now was let go as far as it can be: time has to pass.
	next = min(next, max(r.router.nextRelease(), r.now+1))
	if len(r.outages) > 0 && (next < never || len(r.flights) > 0) {
		next = min(next, r.outages[0].at)
	}
	if next == never {
		return false
	}
	r.sample(next)
	r.now = next
	for _, e := range r.endpoints {
		if e.next == next {
			r.complete(e)
		}
	}
	for len(r.outages) > 0 && r.outages[0].at <= next {
		r.outage(r.outages[0])
		r.outages = r.outages[1:]
	}
	for {
		at, ok := r.workload.Next()
		if !ok || at > next {
			break
		}
		r.arrive()
	}
	r.router.release()
	for _, e := range r.endpoints {
		if e.up && e.doing == idle {
			e.begin(next)
		}
	}
	return true
}

// complete ends what an engine did up to now.
func (r *run) complete(e *endpoint) {
	res := e.complete()
	r.report.Preemptions += res.Preempted
	if r.setup.Truth == Events {
		r.view.tell(e.id, &res, func(id simulator.ID) []simulator.Key { return r.flights[id].engine.Blocks })
	}
	for _, o := range res.Outputs {
		f := r.flights[o.ID]
		if o.First {
			f.first, f.cached = r.now, o.Cached
			r.waiting--
			r.router.firstToken(f)
		}
		if o.Finished {
			f.decision.Reservation.Generated(scoring.Tokens(f.request.Output))
			r.router.end(f)
			r.end(f)
		}
	}
}

// end takes a request out that has ended, or that nobody can serve.
func (r *run) end(f *flight) {
	delete(r.flights, f.engine.ID)
	if f.first == never {
		r.waiting--
	}
	if f.counted && f.first != never {
		c := Request{
			At: f.request.At, TTFT: f.first - f.request.At, Estimate: f.estimate,
			Prompt: f.request.Prompt, Output: f.request.Output, Cached: f.cached, Endpoint: f.at.index, n: f.n,
		}
		if c.Output > 1 {
			c.TPOT = (r.now - f.first) / time.Duration(c.Output-1)
		}
		r.report.Requests = append(r.report.Requests, c)
	}
	r.workload.Ended(f.n, r.now)
	r.ended++
	if r.setup.Progress != nil {
		r.setup.Progress(r.ended)
	}
}

// arrive takes the workload's next request and routes it.
func (r *run) arrive() {
	q := r.workload.Take()
	f := &flight{n: r.taken, request: q, counted: r.now >= r.setup.Warm, first: never}
	r.taken++
	r.mark()
	f.engine = r.engineRequest(f.n, q)
	chain, size := q.Blocks[:len(f.engine.Chunks)], r.setup.BlockTokens
	if r.setup.Truth == Routed {
		chain, size = rechain(chain, size), routedBlock
	}
	f.prompt = &scoring.Prompt{
		Streamed: true, Source: scoring.TokensNative, BlockTokens: scoring.Tokens(size),
		Sequences: []scoring.Sequence{{
			Length: r.believed(q.Prompt), Usable: scoring.Tokens(len(chain) * size), Copies: 1, Chain: chain,
		}},
	}
	if r.setup.Sessions {
		f.prompt.Session = q.Session
	}
	if r.setup.Policy == baseline.WithoutOptimistic {
		f.prompt.BlockTokens = 0
	}
	r.flights[f.engine.ID] = f
	r.waiting++
	r.router.route(f)
}

// engineRequest is what an engine is given: the keys of whole blocks, for the
// last of a prompt's may stand for one that it does not fill.
func (r *run) engineRequest(n int, q trace.Request) simulator.Request {
	whole := min(q.Prompt/r.setup.BlockTokens, len(q.Blocks))
	known := whole
	if len(q.Blocks)*r.setup.BlockTokens >= q.Prompt+r.setup.BlockTokens { // the answer's too
		known = len(q.Blocks)
	}
	e := simulator.Request{
		ID: simulator.ID(n), PromptTokens: q.Prompt, OutputTokens: q.Output, //nolint:gosec // a count
		Blocks: make([]simulator.Key, known),
	}
	for i, k := range q.Blocks[:known] {
		e.Blocks[i] = simulator.Key(k)
	}
	e.Chunks = e.Blocks[:whole]
	return e
}

// routedBlock is the size of the blocks that package routed remembers.
const routedBlock = 64

// rechain names blocks of routedBlock tokens by names of blocks of another size,
// of which one is a multiple of the other.
func rechain(chain []uint64, size int) []uint64 {
	if size < routedBlock {
		every := routedBlock / size
		names := make([]uint64, len(chain)/every)
		for i := range names {
			names[i] = chain[(i+1)*every-1] // it stands for all before it too
		}
		return names
	}
	names := make([]uint64, 0, len(chain)*size/routedBlock)
	for _, k := range chain {
		for part := range size / routedBlock {
			// A trace's names are small numbers, which ChainBlock takes for hashes.
			names = append(names, scoring.ChainBlock(0, []uint32{uint32(k), uint32(k >> 32), uint32(part)})) //nolint:gosec // both halves are there
		}
	}
	return names
}

// believed is what the router takes a prompt's length for.
func (r *run) believed(tokens int) scoring.Tokens {
	factor := r.setup.TokenBias
	if r.setup.TokenSigma > 0 {
		factor *= math.Exp(r.setup.TokenSigma * r.rng.NormFloat64())
	}
	return scoring.Tokens(max(1, math.Round(float64(tokens)*factor)))
}

// mark notes how busy the engines were until the arrival now.
func (r *run) mark() {
	var busy time.Duration
	for _, e := range r.endpoints {
		busy += e.busyAt(r.now)
	}
	if r.now < r.setup.Warm {
		return
	}
	if !r.warm {
		r.warm, r.busyWarm, r.firstArrival = true, busy, r.now
	}
	r.lastArrival, r.busyThen = r.now, busy
}

// send gives a request to the engine that was chosen for it.
func (r *run) send(f *flight, e *endpoint) {
	e.settle(r.now)
	if err := e.sim.Add(f.engine); err != nil {
		r.drop(f)
		return
	}
	f.at = e
}

// drop ends a request that cannot be served.
func (r *run) drop(f *flight) {
	r.router.end(f)
	r.report.Unserved++
	r.end(f)
}

// outage lets an endpoint fail or come back.
func (r *run) outage(o outage) {
	e := r.endpoints[o.endpoint]
	if o.back == e.up {
		return // failures that overlap
	}
	if o.back {
		r.start(e)
		r.router.publish(r.endpoints)
		return
	}
	e.settle(r.now)
	e.busy = e.busyAt(r.now)
	e.busyUntil = r.now
	r.shared.Drop(e.sim.HostKeys())
	r.view.leave(e.id)
	e.up, e.sim, e.doing, e.next = false, nil, idle, never
	r.router.publish(r.endpoints)
	var lost []*flight
	for _, f := range r.flights {
		if f.at == e {
			lost = append(lost, f)
		}
	}
	slices.SortFunc(lost, func(a, b *flight) int { return cmp.Compare(a.n, b.n) })
	for _, f := range lost {
		r.router.end(f)
		if f.first != never {
			f.counted = false
			r.report.Unserved++
			r.end(f)
			continue
		}
		f.at = nil
		r.report.Rerouted++
		r.router.route(f)
	}
}

// sample notes the queue at all times for that which are over before next.
func (r *run) sample(next time.Duration) {
	for ; r.nextSample < next; r.nextSample += r.setup.SampleEvery {
		r.report.Queue = append(r.report.Queue, Sample{
			At: r.nextSample, Waiting: r.waiting, Held: r.router.held, Running: len(r.flights) - r.waiting,
		})
	}
}

func (r *run) finish() *Report {
	slices.SortFunc(r.report.Requests, func(a, b Request) int { return cmp.Compare(a.n, b.n) })
	r.report.End, r.report.Span = r.now, r.lastArrival-r.firstArrival
	if r.report.Span > 0 {
		r.report.BusyShare = float64(r.busyThen-r.busyWarm) / float64(r.report.Span) / float64(len(r.endpoints))
	}
	return &r.report
}
