package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Load says what is sent, and when.
type Load interface {
	// Validate names every fault of the load's settings by its flag.
	Validate() error
	// Size is the number of requests that will be counted; 0: not known before.
	Size() int
	// Play sends everything through run.Ask and returns when the last answer has
	// ended, or nothing more is sent because ctx has. The error says why nothing
	// could be measured; requests that fail are no error.
	Play(ctx context.Context, run *Run) error
}

// Run sends requests and keeps what became of them. Safe for concurrent use.
type Run struct {
	client *Client
	writer *Writer
	// done is told of each record; nil: nobody is. Set once.
	done func(Record)

	inFlight atomic.Int64

	mu      sync.Mutex // guards the following
	records []Record   // as many as the load sends
	between *hdrhistogram.Histogram
	began   time.Time
	ended   time.Time
}

// The times between tokens that are told apart: from a microsecond to an hour,
// to a thousandth.
const (
	leastBetween = 1
	mostBetween  = int64(time.Hour / time.Microsecond)
	digits       = 3
)

// NewRun makes a run that writes prompts with writer. done, which may be nil, is
// called for each record, from many goroutines.
func NewRun(client *Client, writer *Writer, done func(Record)) *Run {
	return &Run{client: client, writer: writer, done: done, between: hdrhistogram.New(leastBetween, mostBetween, digits)}
}

// Play plays the load. It is called once.
func (r *Run) Play(ctx context.Context, load Load) error {
	if err := load.Validate(); err != nil {
		return err
	}
	err := load.Play(ctx, r)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = time.Now()
	return err
}

// InFlight is the number of requests that were sent and have not ended.
func (r *Run) InFlight() int { return int(r.inFlight.Load()) }

// Records are a copy of all so far, in the order in which they ended.
func (r *Run) Records() []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Record(nil), r.records...)
}

// start is when the counted part begins: what was sent before only warmed up.
func (r *Run) start() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began = time.Now()
	return r.began
}

// ask sends one request that counts. due is when it was to be sent; zero: now.
// A request that fails because ctx has ended does not count.
func (r *Run) ask(ctx context.Context, user, question int, due time.Time, chat *Chat) Record {
	body, err := r.client.body(chat)
	if err != nil {
		panic(err) // strings and numbers
	}
	return r.send(ctx, user, question, due, body, chat)
}

func (r *Run) send(ctx context.Context, user, question int, due time.Time, body []byte, chat *Chat) Record {
	r.inFlight.Add(1)
	defer r.inFlight.Add(-1)
	record := Record{User: user, Question: question}
	var sum time.Duration
	events := 0
	record.Answer, record.Fault = r.client.send(ctx, body, chat.Header, func(d time.Duration) {
		sum += d
		events++
		r.mu.Lock()
		defer r.mu.Unlock()
		_ = r.between.RecordValue(min(max(d.Microseconds(), leastBetween), mostBetween)) // within its bounds
	})
	if events > 0 {
		record.Between = sum / time.Duration(events)
	}
	if !due.IsZero() {
		record.Late = max(0, record.Sent.Sub(due))
	}
	if record.Fault != nil && ctx.Err() != nil {
		return record
	}
	kept := record
	kept.Text = "" // long, and nobody asks for it any more
	r.mu.Lock()
	r.records = append(r.records, kept)
	r.mu.Unlock()
	if r.done != nil {
		r.done(kept)
	}
	return record
}

// warm sends a request that does not count. A fault is an error: what follows
// would not work either.
func (r *Run) warm(ctx context.Context, chat *Chat) error {
	if _, fault := r.client.Ask(ctx, chat, nil); fault != nil {
		return fmt.Errorf("warming up: %w", fault)
	}
	return nil
}

// newRand is the source of texts and times that belong to one thing of the load.
func newRand(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // The same texts for the same seed are wanted.
}

// sleep waits until a moment; the error says that ctx has ended.
func sleep(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
