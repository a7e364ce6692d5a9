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
	scale float64 // set once
	// observe is told of every step, under mu.
	observe observer
	// wake has a value when work may have come to an idle engine, or when the
	// speed has changed.
	wake chan struct{}

	mu     sync.Mutex // guards the following
	sim    *simulator.Engine
	slow   float64 // factor on top of scale; 0 means 1
	lastID simulator.ID
	live   map[simulator.ID]*generation // in the engine, not finished
}

// observer is told what happens in the engine. Its methods must not block.
type observer interface {
	step(r *simulator.Result, s simulator.Stats)
	firstToken(g *generation)
	token(g *generation, since time.Duration)
	end(g *generation)
}

// job is the part of one HTTP request that the engine computes.
type job struct {
	// generations are all answers wanted; set once before submit.
	generations []*generation
	// progress has a value when a generation has moved since the last look.
	progress chan struct{}
}

// generation is one answer on its way. What the loop changes is guarded by its
// mu; the rest is set once before submit.
type generation struct {
	job     *job
	request simulator.Request
	output  []uint32 // the answer's token ids, known beforehand
	stop    bool     // it ends by itself, not because of its limit

	queued time.Time // set by submit
	// The following are guarded by loop.mu.
	id         simulator.ID
	tokens     int // that have come out
	cached     int // prompt tokens not computed; valid from the first token on
	loaded     int // of these, from the host tier
	done       bool
	firstToken time.Time
	lastToken  time.Time
}

func newLoop(sim *simulator.Engine, scale float64, o observer) *loop {
	return &loop{
		scale: scale, observe: o, wake: make(chan struct{}, 1),
		sim: sim, live: make(map[simulator.ID]*generation),
	}
}

// submit puts all generations of a job into the queue, or none. The error is
// simulator.ErrTooLarge.
func (l *loop) submit(j *job) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for _, g := range j.generations {
		l.lastID++
		g.id, g.job, g.queued = l.lastID, j, now
		g.request.ID = g.id
		if err := l.sim.Add(g.request); err != nil {
			l.cancelLocked(j)
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
	l.cancelLocked(j)
}

// cancelLocked: the caller holds mu.
func (l *loop) cancelLocked(j *job) {
	for _, g := range j.generations {
		if l.live[g.id] == g {
			l.sim.Cancel(g.id)
			delete(l.live, g.id)
		}
	}
	l.observe.step(nil, l.sim.Stats())
}

// standing is how far one generation has come.
type standing struct {
	tokens, cached int
	done           bool
}

// standings copies how far each generation of a job has come, in its order.
func (l *loop) standings(j *job, into []standing) []standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	into = into[:0]
	for _, g := range j.generations {
		into = append(into, standing{g.tokens, g.cached, g.done})
	}
	return into
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
		begin := time.Now()
		d, ok := l.begin()
		for ok {
			timer.Reset(time.Until(begin.Add(l.real(d))))
			select {
			case <-timer.C:
				l.end()
				ok = false
				continue
			case <-l.wake: // the step may take another time now
			case <-ctx.Done():
				return
			}
		}
		if d > 0 {
			continue
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return
		}
	}
}

// begin starts a step and tells the profile's time for it.
func (l *loop) begin() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sim.Schedule()
}

// real is how long d of the profile's time takes here and now.
func (l *loop) real(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	scale := l.scale
	if l.slow > 0 {
		scale *= l.slow
	}
	return time.Duration(float64(d) * scale)
}

func (l *loop) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	res := l.sim.Complete()
	now := time.Now()
	for _, o := range res.Outputs {
		g := l.live[o.ID]
		if g == nil {
			continue // cancelled during the step
		}
		g.tokens++
		if o.First {
			g.cached, g.loaded, g.firstToken = o.Cached, o.Loaded, now
			l.observe.firstToken(g)
		} else {
			l.observe.token(g, now.Sub(g.lastToken))
		}
		g.lastToken = now
		if o.Finished {
			g.done = true
			delete(l.live, g.id)
			l.observe.end(g)
		}
		signal(g.job.progress)
	}
	l.observe.step(&res, l.sim.Stats())
}

// signal leaves one value in a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
