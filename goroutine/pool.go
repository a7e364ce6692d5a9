// Package goroutine keeps goroutines that have done their work for the next.
package goroutine

import "sync"

// Pool runs functions in goroutines that it uses again. A new goroutine begins
// with a small stack, which is copied several times over while a deep call grows
// it: for short work that is called thousands of times a second, that is much of
// what it costs. Goroutines do not wait for each other, and there is no queue:
// where none is idle a new one is started. Safe for concurrent use.
type Pool struct {
	most int // of idle ones; set once

	mu     sync.Mutex
	idle   []chan func() // guarded by mu; where each waits, the last to be idle last, whose stack is the warmest
	closed bool          // guarded by mu
}

// NewPool keeps at most most idle goroutines.
func NewPool(most int) *Pool { return &Pool{most: most} }

// Go runs f, which must not panic, and returns at once. After Close it still
// does.
func (p *Pool) Go(f func()) {
	p.mu.Lock()
	n := len(p.idle) - 1
	if n < 0 {
		p.mu.Unlock()
		go p.run(f) // ends by Close, or where enough others are idle
		return
	}
	waiting := p.idle[n]
	p.idle = p.idle[:n]
	p.mu.Unlock()
	waiting <- f // has room
}

// Close ends the idle goroutines, and the others when they are done. Closing
// twice is harmless.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, waiting := range p.idle {
		close(waiting)
	}
	p.idle = nil
}

func (p *Pool) run(f func()) {
	waiting := make(chan func(), 1)
	for ok := true; ok; {
		f()
		p.mu.Lock()
		if p.closed || len(p.idle) == p.most {
			p.mu.Unlock()
			return
		}
		p.idle = append(p.idle, waiting)
		p.mu.Unlock()
		f, ok = <-waiting
	}
}
