package goroutine_test

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/firsttoken/firsttoken/goroutine"
)

// Nothing waits for anything else: as many run as are asked for.
func TestPoolHasNoQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := goroutine.NewPool(2)
		defer p.Close()
		const n = 10
		var running sync.WaitGroup
		release := make(chan struct{})
		running.Add(n)
		for range n {
			p.Go(func() {
				running.Done()
				<-release
			})
		}
		running.Wait()
		close(release)
	})
}

// Idle goroutines are used again, no more are kept than were asked for, and
// Close ends them: the bubble fails where one is left.
func TestPoolKeepsFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 3
		p := goroutine.NewPool(most)
		before := runtime.NumGoroutine()
		for range 4 {
			var done sync.WaitGroup
			for range 20 {
				done.Add(1)
				p.Go(done.Done)
			}
			done.Wait()
			synctest.Wait()
			if kept := runtime.NumGoroutine() - before; kept < 1 || kept > most {
				t.Errorf("%d idle goroutines, want 1 to %d", kept, most)
			}
		}
		p.Close()
		ran := make(chan struct{})
		p.Go(func() { close(ran) })
		<-ran
	})
}
