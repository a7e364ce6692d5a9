package engine

import (
	"context"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/simulator"
)

// loop runs the step model in real time: one goroutine, which begins a step,
// waits as long as it takes and hands out its tokens.
type loop struct {
	scale   float64  // set once
	metrics *metrics // set once
	// report is told, under mu, what changed in the host tier; set once, nil
	// where nobody wants to know. It must not block.
	report func([]simulator.HostChange)
	// publish is told, under mu, what changed in the prefix cache, and finds the
	// generations that are named there; set once, nil where nobody wants to
	// know. It must not block.
	publish func(time.Time, []simulator.BlockChange, func(simulator.ID) *generation)
	// wake has a value when work may have come to an idle engine, or when the
	// speed has changed.
	wake chan struct{}

	mu     sync.Mutex // guards the following
	sim    *simulator.Engine
	slow   float64 // factor on top of scale; 0 means 1
	lastID simulator.ID
	live   map[simulator.ID]*generation // in the engine, not finished
	// cancelled are those whose client went during the step under way, which
	// publishes what it computed for them all the same.
	cancelled map[simulator.ID]*generation
	begun     time.Time // the step under way, or the last
	// stepping: a step is under way.
	stepping bool
}

// job is the part of one HTTP request that the engine computes.
type job struct {
	// generations are all answers wanted; set once before submit.
	generations []*generation
	// progress has a value when a generation has moved since the last look.
	progress chan struct{}
}

// generation is one answer on its way.
type generation struct {
	// Set once, before submit.
	job     *job
	request simulator.Request
	prompt  []uint32
	output  []uint32 // the answer's token ids, known beforehand
	salt    string   // the request's cache_salt
	adapter *adapter // nil: none
	stop    bool     // it ends by itself, not because of its limit

	// The following are guarded by loop.mu.
	id     simulator.ID
	tokens int // that have come out
	cached int // prompt tokens not computed; valid from the first token on
	loaded int // of these, from the host tier
	done   bool

	queued, admitted, firstToken, lastToken time.Time
}

// token is the i-th id of prompt and answer.
func (g *generation) token(i int) uint32 {
	if i < len(g.prompt) {
		return g.prompt[i]
	}
	return g.output[i-len(g.prompt)]
}

func (g *generation) finishReason() string {
	if g.stop {
		return "stop"
	}
	return "length"
}

func newLoop(sim *simulator.Engine, scale float64, m *metrics) *loop {
	return &loop{
		scale: scale, metrics: m, wake: make(chan struct{}, 1),
		sim: sim, live: make(map[simulator.ID]*generation), cancelled: make(map[simulator.ID]*generation),
	}
}

// submit puts all generations of a job into the queue, or none. The error is
// simulator.ErrTooLarge.
func (l *loop) submit(j *job) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.metrics.sizes(l.sim.Stats()) }()
	now := time.Now()
	for _, g := range j.generations {
		l.lastID++
		g.id, g.queued = l.lastID, now
		g.request.ID = g.id
		if err := l.sim.Add(g.request); err != nil {
			l.dropLocked(j)
			return err
		}
		l.live[g.id] = g
	}
	signal(l.wake)
	return nil
}

// cancel takes what is left of a job out of the engine. It may be called for
// every job at its end.
func (l *loop) cancel(j *job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropLocked(j)
	l.metrics.sizes(l.sim.Stats())
}

// dropLocked: the caller holds mu.
func (l *loop) dropLocked(j *job) {
	for _, g := range j.generations {
		if l.live[g.id] == g {
			l.sim.Cancel(g.id)
			delete(l.live, g.id)
			if l.stepping {
				l.cancelled[g.id] = g
			}
		}
	}
}

// standing is how far one generation has come.
type standing struct {
	tokens, cached int
	done           bool
}

// standings copies into into how far each generation of a job has come.
func (l *loop) standings(j *job, into []standing) []standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	into = into[:0]
	for _, g := range j.generations {
		into = append(into, standing{g.tokens, g.cached, g.done})
	}
	return into
}

// freeze stops the host tier from changing, and lists what it holds.
func (l *loop) freeze() []simulator.Key {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sim.FreezeHost(true)
	return l.sim.HostKeys()
}

// thaw undoes freeze.
func (l *loop) thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sim.FreezeHost(false)
}

func (l *loop) setSlow(factor float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow = factor
	signal(l.wake)
}

// run steps until ctx ends.
func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		d, ok := l.begin()
		if !ok {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !l.sleep(ctx, timer, d) {
			return
		}
		l.end()
	}
}

// sleep lets the step under way take its time, d of the profile's; false: ctx
// has ended.
func (l *loop) sleep(ctx context.Context, timer *time.Timer, d time.Duration) bool {
	for {
		timer.Reset(l.left(d))
		select {
		case <-timer.C:
			return true
		case <-l.wake: // the step may take another time now
		case <-ctx.Done():
			return false
		}
	}
}

// begin starts a step and tells the profile's time for it; false: idle.
func (l *loop) begin() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.sim.Schedule()
	l.begun, l.stepping = time.Now(), ok
	l.metrics.sizes(l.sim.Stats())
	return d, ok
}

// left is how long from now until d of the profile's time have passed since the
// step began.
func (l *loop) left(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	scale := l.scale
	if l.slow > 0 {
		scale *= l.slow
	}
	return time.Duration(float64(d)*scale) - time.Since(l.begun)
}

// end completes the step under way and hands out its tokens.
func (l *loop) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	res := l.sim.Complete()
	l.stepping = false
	now := time.Now()
	// Before the tokens, as vLLM does: a client that has its first token asks
	// for what is already told.
	if l.publish != nil && len(res.Blocks) > 0 {
		l.publish(now, res.Blocks, l.generation)
	}
	for _, a := range res.Admitted {
		l.metrics.admitted(a, l.generation(a.ID))
		if g := l.live[a.ID]; g != nil {
			g.admitted = l.begun
		}
	}
	for _, o := range res.Outputs {
		g := l.live[o.ID]
		g.tokens++
		if o.First {
			g.cached, g.loaded, g.firstToken = o.Cached, o.Loaded, now
			l.metrics.firstToken(g)
		} else {
			l.metrics.token(now.Sub(g.lastToken))
		}
		g.lastToken = now
		if o.Finished {
			g.done = true
			delete(l.live, g.id)
			l.metrics.end(g)
		}
		signal(g.job.progress)
	}
	l.metrics.step(&res)
	l.metrics.sizes(l.sim.Stats())
	if l.report != nil && len(res.Host) > 0 {
		l.report(res.Host)
	}
	clear(l.cancelled)
}

// generation is one that the step under way computed, whether its client is
// still there or not. The caller holds mu.
func (l *loop) generation(id simulator.ID) *generation {
	if g := l.live[id]; g != nil {
		return g
	}
	return l.cancelled[id]
}

// resetCache forgets what is cached; false: requests hold memory.
func (l *loop) resetCache() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sim.ResetCache()
}

// signal leaves one value in a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
