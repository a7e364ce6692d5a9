package simulate

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// progress shows on a terminal how far the runs are. Its methods are for any
// goroutine; on a nil progress they do nothing.
type progress struct {
	w io.Writer // set once

	mu sync.Mutex // guards the following fields
	// phase says what is being done; runs are its runs that are over, of so many,
	// 0 where nobody can tell.
	phase    string
	over, of int
	// ended and expected count the requests of the phase's runs.
	ended, expected int
	shown           time.Time
}

// newProgress writes to w; nil makes none.
func newProgress(w io.Writer) *progress {
	if w == nil {
		return nil
	}
	return &progress{w: w}
}

// begin starts a phase of some runs, of which each has so many requests.
func (p *progress) begin(phase string, runs, requests int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.over, p.of, p.ended, p.expected = phase, 0, runs, 0, runs*requests
	p.show(true)
}

// run is told of the requests that ended in one run; the result is called when
// the run is over.
func (p *progress) run() (told func(ended int), over func()) {
	if p == nil {
		return nil, func() {}
	}
	before := 0 // belongs to the run's goroutine
	return func(ended int) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.ended += ended - before
			before = ended
			p.show(false)
		}, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.over++
			p.show(false)
		}
}

// end takes the line away.
func (p *progress) end() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprint(p.w, "\r\x1b[K")
}

// show writes the line, at most ten times a second. Caller must hold p.mu.
func (p *progress) show(now bool) {
	if t := time.Now(); now || t.Sub(p.shown) > 100*time.Millisecond {
		p.shown = t
	} else {
		return
	}
	const width = 30
	line := fmt.Sprintf("%s: run %d, %d requests", p.phase, p.over+1, p.ended)
	if p.of > 0 {
		share := min(1, float64(p.ended)/float64(max(1, p.expected)))
		full := int(share * width)
		line = fmt.Sprintf("%s [%s%s] %3.0f%% %d of %d runs", p.phase,
			strings.Repeat("#", full), strings.Repeat(" ", width-full), 100*share, p.over, p.of)
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", line)
}
