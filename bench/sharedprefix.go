package bench

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// SharedPrefix is a load of prompts that begin alike, with a short prefix that
// one engine holds already, and go on with many tokens that nobody has seen:
// where a router follows the prefix, all go to one engine.
type SharedPrefix struct {
	// Workers send one request after the other, Requests each, of which Active
	// may be under way at once.
	Workers, Requests, Active int
	// Prefix, Fresh and Answer are lengths in tokens.
	Prefix, Fresh, Answer int
	// IgnoreEOS makes every answer as long as Answer.
	IgnoreEOS bool
	// WarmUp is how often the prefix alone is sent before, one after the other;
	// these do not count.
	WarmUp int
	// Seed draws the texts.
	Seed uint64
}

// DefaultSharedPrefix is experiment 2 of the proposal of TTFT routing.
func DefaultSharedPrefix() SharedPrefix {
	return SharedPrefix{Workers: 10, Requests: 10, Active: 5, Prefix: 256, Fresh: 5000, Answer: 2, WarmUp: 1, Seed: 1}
}

// Validate names every fault by its flag.
func (l SharedPrefix) Validate() error {
	return errors.Join(
		atLeast("workers", l.Workers, 1), atLeast("requests", l.Requests, 1), atLeast("active", l.Active, 1),
		atLeast("prefix-len", l.Prefix, 0), atLeast("fresh-len", l.Fresh, 1), atLeast("answer-len", l.Answer, 1), atLeast("warm-up", l.WarmUp, 0),
	)
}

// Size is all requests of all workers.
func (l SharedPrefix) Size() int { return l.Workers * l.Requests }

// Play lets the workers run side by side.
func (l SharedPrefix) Play(ctx context.Context, run *Run) error {
	prefix := run.writer.Text(newRand(l.Seed, 0), l.Prefix)
	for range l.WarmUp {
		if err := run.warm(ctx, l.chat(prefix)); err != nil {
			return err
		}
	}
	run.start()
	active := semaphore.NewWeighted(int64(l.Active))
	var workers sync.WaitGroup
	for worker := 1; worker <= l.Workers; worker++ {
		workers.Go(func() {
			rng := newRand(l.Seed, uint64(worker)) //nolint:gosec // Not negative.
			for question := 1; question <= l.Requests; question++ {
				chat := l.chat(prefix + run.writer.Text(rng, l.Fresh))
				if active.Acquire(ctx, 1) != nil {
					return
				}
				run.ask(ctx, worker, question, time.Time{}, chat)
				active.Release(1)
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

func (l SharedPrefix) chat(text string) *Chat {
	return &Chat{Messages: []Message{{"user", text}}, MaxTokens: l.Answer, IgnoreEOS: l.IgnoreEOS}
}
