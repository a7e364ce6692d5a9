package scoring

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Fits are what was learned of all pools and kinds, in a form that can be kept in
// a file.
type Fits struct {
	Models []ModelFit `json:"models"`
	Kinds  []KindFit  `json:"kinds"`
}

// ModelFit is what was learned of the engines of one model.
type ModelFit struct {
	Model string `json:"model"`
	Fit
}

// KindFit is what was learned of one kind of engine of a model. HeldSeconds is how
// long requests hold KV memory after their first token, 0: no end was seen;
// OutputTokens how many tokens answers have.
type KindFit struct {
	Model string `json:"model"`
	Kind  string `json:"kind"`
	Fit
	HeldSeconds  float64 `json:"held_seconds"`
	OutputTokens float64 `json:"output_tokens"`
}

// Fits are what was learned so far, sorted by name.
func (p *Picker) Fits() Fits {
	l := p.ledger
	l.lock()
	defer l.unlock()
	var f Fits
	for id, pool := range l.pools {
		f.Models = append(f.Models, ModelFit{id, pool.fit})
	}
	for id, k := range l.kinds {
		f.Kinds = append(f.Kinds, KindFit{id.pool, id.label, k.fit, k.held, k.output})
	}
	slices.SortFunc(f.Models, func(a, b ModelFit) int { return cmp.Compare(a.Model, b.Model) })
	slices.SortFunc(f.Kinds, func(a, b KindFit) int {
		return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Kind, b.Kind))
	})
	return f
}

// Restore takes in what was learned before, in place of what was since, for the
// pools and kinds that it names. The error says which entries make no sense; they
// are passed over, and that there are more than 128 models or kinds, of which the
// first are taken.
func (p *Picker) Restore(f Fits) error {
	l := p.ledger
	l.lock()
	defer l.unlock()
	var faults []error
	if len(f.Models) > maxPools || len(f.Kinds) > maxPools {
		faults = append(faults, fmt.Errorf("%d models and %d kinds; of each the first %d are taken", len(f.Models), len(f.Kinds), maxPools))
	}
	for i, m := range f.Models[:min(len(f.Models), maxPools)] {
		if err := m.check(); err != nil {
			faults = append(faults, fmt.Errorf("models[%d], %q: %w", i, m.Model, err))
			continue
		}
		pool := l.poolLocked(m.Model)
		pool.fit, pool.restored = m.Fit, true
	}
	for i, k := range f.Kinds[:min(len(f.Kinds), maxPools)] {
		if err := errors.Join(k.check(), checkNumber("held_seconds", k.HeldSeconds), checkNumber("output_tokens", k.OutputTokens)); err != nil {
			faults = append(faults, fmt.Errorf("kinds[%d], %q of %q: %w", i, k.Kind, k.Model, err))
			continue
		}
		kind := l.kindLocked(kindID{k.Model, k.Kind})
		kind.fit, kind.held, kind.output = k.Fit, k.HeldSeconds, k.OutputTokens
	}
	return errors.Join(faults...)
}

// check tells what could never have been learned. A token takes some
// microseconds on the fastest engines and tens of milliseconds on a CPU, a step
// some milliseconds to seconds; what lies far beyond was never measured.
func (f *Fit) check() error {
	err := errors.Join(checkNumber("token_seconds", f.TokenSeconds), checkNumber("tokens", f.Tokens),
		checkNumber("step_seconds", f.StepSeconds), checkNumber("steps", f.Steps))
	s, o := f.SecondsPerToken(), f.SecondsPerStep()
	if err == nil && (s < leastTokenSeconds || s > mostTokenSeconds || o < leastStepSeconds || o > mostStepSeconds) {
		err = fmt.Errorf("%g s for a token and %g s for a step are of no engine; remove the entry", s, o)
	}
	return err
}

const (
	leastTokenSeconds, mostTokenSeconds = 1e-10, 1.0
	leastStepSeconds, mostStepSeconds   = 1e-7, 100.0
)

func checkNumber(name string, v float64) error {
	if v >= 0 && v <= math.MaxFloat32 { // nor NaN
		return nil
	}
	return fmt.Errorf("%s is %g; it was written by no firsttoken, remove the entry", name, v)
}

// Fit is what first tokens have taught of the speed of a pool of engines: the
// seconds of one token equivalent, s, and of one step, o. Each is a ratio of two
// fading sums, which together with priors give a value from the first request
// on. One fit serves a whole pool: ratios of single endpoints run away, since an
// endpoint that is judged slow gets no traffic that could prove otherwise.
//
// It is a value that may be kept in a file and given back by Picker.Restore.
type Fit struct {
	// TokenSeconds over Tokens is what long groups of prefills taught;
	// StepSeconds over Steps what short ones did.
	TokenSeconds float64 `json:"token_seconds"`
	Tokens       float64 `json:"tokens"`
	StepSeconds  float64 `json:"step_seconds"`
	Steps        float64 `json:"steps"`
	// Groups is the number of groups of first tokens learned from.
	Groups uint64 `json:"groups"`
}

const (
	// The priors: 1e-4 s/token and 10 ms/step are a mid-size model on one present
	// GPU; they weigh as much as 2,000 tokens and two steps.
	priorTokenSeconds = 1e-4
	priorTokens       = 2000
	priorStepSeconds  = 0.01
	priorSteps        = 2
	// shortGroup separates the groups that tell of steps from those that tell of
	// tokens, in token equivalents.
	shortGroup = 300
	// The memories: a hundred long groups and fifty short ones.
	tokenMemory = 0.99
	stepMemory  = 0.98
	// After so many groups a single one counts at most so many times what was
	// predicted, and half a second: a stalled engine must not teach that all are
	// slow.
	fitSettled = 20
	fitOutlier = 20.0
	fitSlack   = 0.5
)

// SecondsPerToken is the time of one token equivalent, s.
func (f *Fit) SecondsPerToken() float64 {
	return (f.TokenSeconds + priorTokenSeconds*priorTokens) / (f.Tokens + priorTokens)
}

// SecondsPerStep is the time that each step costs besides, o.
func (f *Fit) SecondsPerStep() float64 {
	return (f.StepSeconds + priorStepSeconds*priorSteps) / (f.Steps + priorSteps)
}

// learn takes in that a group of prefills of so many token equivalents and steps
// took so many seconds.
func (f *Fit) learn(took, equivalents, steps float64) {
	s, o := f.SecondsPerToken(), f.SecondsPerStep()
	if f.Groups >= fitSettled {
		took = min(took, fitOutlier*(s*equivalents+o*steps)+fitSlack)
	}
	f.Groups++
	if equivalents < shortGroup {
		f.StepSeconds = stepMemory*f.StepSeconds + max(0, took-s*equivalents)
		f.Steps = stepMemory*f.Steps + steps
		return
	}
	f.TokenSeconds = tokenMemory*f.TokenSeconds + max(0, took-o*steps)
	f.Tokens = tokenMemory*f.Tokens + equivalents
}

// groupSpan is how far apart the first tokens of one engine step may be seen.
const groupSpan = time.Millisecond

// group is the first tokens that one endpoint gave within groupSpan of each
// other: the prefills of one step, of which only the whole took a time that can
// be told. The zero group is closed.
type group struct {
	opened, last time.Time // zero: closed
	// began is when the engine could begin with the first of them.
	began              time.Time
	equivalents, steps float64
	load               float64 // seconds
}

// wholeSteps is in how many steps a group was computed, at least one.
func wholeSteps(sum float64) float64 { return max(1, math.Ceil(sum)) }
