package state

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Fit is what was learnt of the engines of one pool.
type Fit struct {
	// Pool is the model's own name, Kind the label of its engines; empty: of all.
	Pool string `json:"pool"`
	Kind string `json:"kind,omitempty"`
	// SecondsPerToken is the time of one token equivalent of prefill,
	// SecondsPerStep that of one engine step besides.
	SecondsPerToken float64 `json:"seconds_per_token"`
	SecondsPerStep  float64 `json:"seconds_per_step"`
	// Tokens and Steps are how much each of them rests on, fading.
	Tokens float64 `json:"tokens"`
	Steps  float64 `json:"steps"`
	// Groups is the number of groups of first tokens that taught it.
	Groups uint64 `json:"groups"`
}

// document is the file.
type document struct {
	// Firsttoken tells our file from another program's.
	Firsttoken string    `json:"firsttoken"`
	Version    int       `json:"version"`
	Saved      time.Time `json:"saved"`
	Fits       []Fit     `json:"fits"`
}

const (
	mark    = "fits"
	version = 1
	// maxFits is more pools than one service routes between; maxName a model's
	// name with room to spare. Together they bound the file below maxFile.
	maxFits = 256
	maxName = 1024
	maxFile = 4 << 20
)

// A token of prefill takes between some microseconds on the fastest engines and
// tens of milliseconds on a CPU, a step between some milliseconds and seconds.
// What lies a thousand times beyond was never measured.
const (
	leastTokenSeconds, mostTokenSeconds = 1e-9, 1.0
	leastStepSeconds, mostStepSeconds   = 1e-9, 100.0
	// mostWeight is above what fading sums can reach: a hundred groups of 1e7
	// token equivalents.
	mostWeight = 1e12
)

// valid says what is wrong with a fit that no engine can have taught.
func (f *Fit) valid() error {
	within := func(name string, v, least, most float64) error {
		if v >= least && v <= most { // NaN is neither
			return nil
		}
		return fmt.Errorf("%s is %g, not between %g and %g", name, v, least, most)
	}
	if len(f.Pool) > maxName || len(f.Kind) > maxName {
		return fmt.Errorf("its name has more than %d bytes", maxName)
	}
	return errors.Join(
		within("seconds_per_token", f.SecondsPerToken, leastTokenSeconds, mostTokenSeconds),
		within("seconds_per_step", f.SecondsPerStep, leastStepSeconds, mostStepSeconds),
		within("tokens", f.Tokens, 0, mostWeight),
		within("steps", f.Steps, 0, mostWeight),
	)
}

// encode writes the fits that are fit to be kept, at most maxFits, those taught
// most first, in an order that depends on nothing else.
func encode(fits []Fit, now time.Time) ([]byte, error) {
	fits = slices.DeleteFunc(slices.Clone(fits), func(f Fit) bool { return f.Groups == 0 || f.valid() != nil })
	slices.SortStableFunc(fits, func(a, b Fit) int {
		return cmp.Or(cmp.Compare(b.Groups, a.Groups), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Kind, b.Kind))
	})
	text, err := json.MarshalIndent(document{mark, version, now.UTC().Truncate(time.Second), fits[:min(len(fits), maxFits)]}, "", "  ")
	return append(text, '\n'), err
}

// decode reads a file. Single fits that cannot be true are left out, and odd
// says why; err says that the whole is not ours or torn.
func decode(text []byte) (fits []Fit, odd []error, err error) {
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, nil, fmt.Errorf("it is no JSON of ours: %w", err)
	}
	switch {
	case d.Firsttoken != mark:
		return nil, nil, fmt.Errorf(`it has not "firsttoken": %q, so another program wrote it`, mark)
	case d.Version != version:
		return nil, nil, fmt.Errorf("it has version %d, this program knows version %d", d.Version, version)
	}
	if len(d.Fits) > maxFits {
		return nil, nil, fmt.Errorf("it has %d fits, more than the %d that are ever written", len(d.Fits), maxFits)
	}
	seen := make(map[[2]string]bool, len(d.Fits))
	for _, f := range d.Fits {
		name := [2]string{f.Pool, f.Kind}
		if err := f.valid(); err != nil {
			odd = append(odd, fmt.Errorf("fit of pool %q, kind %q: %w", shortened(f.Pool), shortened(f.Kind), err))
			continue
		}
		if seen[name] {
			odd = append(odd, fmt.Errorf("fit of pool %q, kind %q is there twice", f.Pool, f.Kind))
			continue
		}
		seen[name] = true
		fits = append(fits, f)
	}
	return fits, odd, nil
}

// shortened keeps a log line readable whatever a file holds.
func shortened(name string) string { return name[:min(len(name), 64)] }
