package scoring

import (
	"math"
	"time"
)

// pace learns how many seconds one unit of work takes, one ratio for a whole
// pool: a sum of measured seconds over a sum of work, both fading. Ratios of
// single endpoints run away (an endpoint judged slow gets no traffic that
// could prove otherwise), so there is none.
type pace struct {
	seconds float64
	work    float64
	count   int
}

const (
	// A prompt of 2,000 tokens in 0.2 s, the speed of a mid-size model on one
	// present GPU; it weighs as much as one such prompt and is soon forgotten.
	priorWork    = 2e6
	priorSeconds = 0.2
	// Each first token keeps 0.99 of what was learned before: a memory of about
	// a hundred.
	paceMemory = 0.99
	// After so many first tokens a single one may not be more than so many
	// times (and half a second) above the prediction: a stalled engine must not
	// teach that work is slow everywhere.
	paceSettled = 20
	paceOutlier = 20.0
	paceSlack   = 0.5
)

// perWork is the present ratio, in seconds for one unit of work.
func (p *pace) perWork() float64 {
	return (p.seconds + priorSeconds) / (p.work + priorWork)
}

// worth is the work that takes so many seconds at the present ratio. It is
// whole, as all work is: what is booked and released in any order then leaves
// exactly nothing, and idle endpoints stay equal.
func (p *pace) worth(seconds float64) Work {
	if seconds == 0 {
		return 0
	}
	return Work(math.Round(seconds / p.perWork()))
}

// estimate is the time that work takes at the present ratio.
func (p *pace) estimate(w Work) time.Duration {
	return time.Duration(float64(w) * p.perWork() * float64(time.Second))
}

// observe learns that work took so long, counted from the moment at which the
// endpoint could begin it.
func (p *pace) observe(w Work, took time.Duration) {
	y := max(0, took.Seconds())
	if p.count >= paceSettled {
		y = min(y, paceOutlier*float64(w)*p.perWork()+paceSlack)
	}
	p.count++
	p.seconds = paceMemory*p.seconds + y
	p.work = paceMemory*p.work + float64(w)
}
