package bench

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/simulator/trace"
)

// Replay is a trace's requests, sent at their times, whatever becomes of those
// before.
type Replay struct {
	// Requests are in order of arrival.
	Requests []trace.Request
	// BlockTokens is the number of tokens that one of a request's blocks stands
	// for; 0: the trace tells nothing of prefixes.
	BlockTokens int
	// Speed divides the trace's times: 2 is twice as fast.
	Speed float64
	// IgnoreEOS makes every answer as long as the trace's.
	IgnoreEOS bool
	// Seed draws the texts. With another one nothing that was cached fits.
	Seed uint64
}

// Validate names every fault by its flag.
func (l Replay) Validate() error {
	if len(l.Requests) == 0 {
		return errors.New("the trace has no requests")
	}
	return positive("speed", l.Speed)
}

// Size is the trace's.
func (l Replay) Size() int { return len(l.Requests) }

// ahead is how many bodies are written before their time: a long prompt takes
// milliseconds, in which nothing would be sent.
const ahead = 64

// Play sends each request when it is due.
func (l Replay) Play(ctx context.Context, run *Run) error {
	bodies := make(chan []byte, ahead)
	// It ends with ctx, or when all is written.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go l.write(ctx, run, bodies)
	began := time.Time{}
	var requests sync.WaitGroup
	for i, request := range l.Requests {
		var body []byte
		select {
		case body = <-bodies:
		case <-ctx.Done():
		}
		if began.IsZero() {
			began = run.start().Add(-time.Duration(float64(request.At) / l.Speed))
		}
		due := began.Add(time.Duration(float64(request.At) / l.Speed))
		if sleep(ctx, due) != nil {
			break
		}
		requests.Go(func() { run.send(ctx, i+1, 1, due, body, &Chat{}) })
	}
	requests.Wait()
	return context.Cause(ctx)
}

func (l Replay) write(ctx context.Context, run *Run, bodies chan<- []byte) {
	for i := range l.Requests {
		request := &l.Requests[i]
		body, err := run.client.body(&Chat{
			Messages: []Message{{"user", l.prompt(run.writer, i)}}, MaxTokens: request.Output, IgnoreEOS: l.IgnoreEOS,
		})
		if err != nil {
			panic(err) // strings and numbers
		}
		select {
		case bodies <- body:
		case <-ctx.Done():
			return
		}
	}
}

// Streams of random numbers: one for the text of each block's name, and one for
// what a request shares with nobody.
const ownStream = 0x9e3779b97f4a7c15

// prompt is the text of request i: equal blocks have equal texts, and what
// fills no block is its own.
func (l Replay) prompt(w *Writer, i int) string {
	request := &l.Requests[i]
	var b strings.Builder
	left := request.Prompt
	for _, block := range request.Blocks {
		if l.BlockTokens == 0 || left < l.BlockTokens {
			break
		}
		w.append(&b, newRand(l.Seed, block), float64(l.BlockTokens))
		left -= l.BlockTokens
	}
	if left > 0 {
		w.append(&b, newRand(l.Seed^ownStream, uint64(i)), float64(left)) //nolint:gosec // Not negative.
	}
	return b.String()
}
