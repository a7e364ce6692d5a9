package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/bench"
)

// The workload: people chat with an assistant about a long document each, turn
// by turn, and then a group asks about one document at the same time, each with
// a note of their own. Every conversation begins with the same system prompt.
// The sizes are those of small retrieval chats; think times are shortened, so
// that the demo ends soon.
const (
	conversations = 10
	turns         = 5
	systemWords   = 200
	documentWords = 1200
	questionWords = 40
	answerTokens  = 24
	startMax      = 5 * time.Second // the last one comes at most this late
	thinkMin      = 300 * time.Millisecond
	thinkMax      = 1500 * time.Millisecond

	burstRequests = 12
	burstGap      = 50 * time.Millisecond // mean
	burstWords    = 1500
	burstOwnWords = 120
)

// turn is one question of a conversation, asked some time after the answer to
// the one before (the first: after the start).
type turn struct {
	think    time.Duration
	question string
}

// conversation is what one person will ask.
type conversation struct {
	name   string
	system string
	turns  []turn
}

// workload is drawn from a seed: both policies get the same texts and times.
type workload struct {
	chats []conversation
	// first asks about the burst's document, and when it is answered the
	// others follow.
	first conversation
	burst []conversation
}

func newWorkload(seed uint64) workload {
	w := writer{rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // The same texts for the same seed are wanted.
	system := "You answer questions about the text that you are given. " + w.words(systemWords)
	var l workload
	for i := range conversations {
		c := conversation{name: fmt.Sprintf("chat %d", i+1), system: system}
		for t := range turns {
			next := turn{w.between(thinkMin, thinkMax), w.words(questionWords)}
			if t == 0 {
				next = turn{w.between(0, startMax), w.words(documentWords) + "\n\n" + next.question}
			}
			c.turns = append(c.turns, next)
		}
		l.chats = append(l.chats, c)
	}
	document := w.words(burstWords)
	ask := func(name string, wait time.Duration) conversation {
		return conversation{name: name, system: system, turns: []turn{{wait, document + "\n\n" + w.words(burstOwnWords)}}}
	}
	l.first = ask("group 0", 0)
	var at time.Duration
	for i := range burstRequests {
		at += time.Duration(w.ExpFloat64() * float64(burstGap))
		l.burst = append(l.burst, ask(fmt.Sprintf("group %d", i+1), at))
	}
	return l
}

// size is the number of requests.
func (l workload) size() int { return len(l.chats)*turns + 1 + len(l.burst) }

// asker sends one request of a conversation and returns the answer's text.
type asker func(ctx context.Context, name string, turn int, messages []bench.Message) (string, error)

// hold plays a conversation to its end, or to the first error.
func (c conversation) hold(ctx context.Context, ask asker) error {
	history := []bench.Message{{Role: "system", Content: c.system}}
	for i, t := range c.turns {
		if err := sleep(ctx, t.think); err != nil {
			return err
		}
		history = append(history, bench.Message{Role: "user", Content: t.question})
		text, err := ask(ctx, c.name, i+1, history)
		if err != nil {
			return fmt.Errorf("%s turn %d: %w", c.name, i+1, err)
		}
		history = append(history, bench.Message{Role: "assistant", Content: text})
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// writer draws text and times.
type writer struct{ *rand.Rand }

func (w writer) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.Int64N(int64(to-from)))
}

// words are n words in sentences. What they say does not matter to an engine
// without a model; that no two texts share more than a few leading words does.
func (w writer) words(n int) string {
	vocabulary := bench.Vocabulary()
	var b strings.Builder
	for i := range n {
		switch {
		case i == 0:
		case i%12 == 0:
			b.WriteString(". ")
		default:
			b.WriteByte(' ')
		}
		b.WriteString(vocabulary[w.IntN(len(vocabulary))])
	}
	b.WriteByte('.')
	return b.String()
}
