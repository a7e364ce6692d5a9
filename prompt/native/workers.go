package native

import (
	"context"
	"fmt"
	"runtime"
	"sync"
)

// workers run the calls on one tokenizer of the library, each on an operating
// system thread of its own. The engines keep tens of megabytes per thread and
// fill them at the thread's first call, which takes 35 ms: on Go's own threads,
// which come and go, some requests would pay for that, and the memory would have
// no bound and no end. Ours are warm from the start and end with the tokenizer.
type workers struct {
	calls   chan func(tokenizerHandle) // unbuffered: who could send has a worker
	closing chan struct{}              // closed by close
	once    sync.Once                  // guards closing
	running sync.WaitGroup             // the workers; close ends them
	library tokenizerHandle            // set before the workers start, freed when all have ended
}

// warmUp makes a new thread fill its tables: words of several scripts, numbers,
// code, and what looks like control tokens.
const warmUp = "The quick brown fox's 12345 jumps_over(the) lazy dog!\r\n\n  \t" +
	"Größe naïve Привет мир שלום مرحبا नमस्ते 你好世界 こんにちは 안녕하세요 🦊👩‍💻 e\u0301\u00a0<|im_start|></s>\n"

// startWorkers loads a tokenizer and starts n workers for it, warmed up. It
// returns the size of its vocabulary.
func startWorkers(n int, load func() (tokenizerHandle, int, error)) (*workers, int, error) {
	w := &workers{calls: make(chan func(tokenizerHandle)), closing: make(chan struct{})}
	var vocab int
	var err error
	// On a thread that ends, too: loading leaves memory behind on its thread.
	onOwnThread(&w.running, func() { w.library, vocab, err = load() })
	w.running.Wait()
	if err != nil {
		return nil, 0, err
	}
	warm := make(chan error, n)
	for range n {
		onOwnThread(&w.running, func() {
			_, err := w.library.encode(warmUp, true)
			warm <- err
			w.work()
		})
	}
	for range n {
		if warmErr := <-warm; warmErr != nil {
			err = fmt.Errorf("a first text: %w", warmErr)
		}
	}
	if err != nil {
		w.close()
		return nil, 0, err
	}
	return w, vocab, nil
}

// onOwnThread runs f in a goroutine whose thread runs nothing else and ends with
// it, because the goroutine never unlocks it.
func onOwnThread(running *sync.WaitGroup, f func()) {
	running.Go(func() {
		runtime.LockOSThread()
		f()
	})
}

func (w *workers) work() {
	for {
		select {
		case call := <-w.calls:
			call(w.library)
		case <-w.closing:
			return
		}
	}
}

// do runs call on a worker and returns when it is done. It gives up with an
// error, and call does not run, when ctx ends or the workers are closed before a
// worker is free.
func (w *workers) do(ctx context.Context, call func(tokenizerHandle)) error {
	select {
	case <-w.closing: // also when a worker has not noticed yet
		return ErrClosed
	default:
	}
	done := make(chan struct{})
	select {
	case w.calls <- func(h tokenizerHandle) { defer close(done); call(h) }:
		<-done
		return nil
	case <-w.closing:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("waiting for a free tokenizer thread: %w", ctx.Err())
	}
}

// close ends the workers after their present calls and frees the tokenizer.
func (w *workers) close() {
	w.once.Do(func() {
		close(w.closing)
		w.running.Wait()
		w.library.free()
	})
}
