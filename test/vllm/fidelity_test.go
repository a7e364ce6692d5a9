package vllm_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// The work: enough conversations that the engines' own caches cannot hold all.
const (
	conversations = 10
	turns         = 7
	groups        = 4 // of prompts with a common prefix
	groupSize     = 6
	thinkTime     = time.Second
	answerTokens  = 24
)

// step is a part of the test with something that happened before.
type step string

const (
	stepTurns          step = "multi-turn chats"
	stepShared         step = "prompts with a shared prefix"
	stepServiceRestart step = "after a restart of the service"
	stepCacheReset     step = "after a reset of one engine's cache"
	stepEngineRestart  step = "after a restart of one engine"
	stepCancel         step = "after a cancelled prefill"
)

// comparison is one request: what the service predicted, what the engine counted.
type comparison struct {
	step               step
	promptTokens       int
	predicted, counted int
	known              bool // a source spoke for the endpoint
	idsEqual           bool
	seen, measured     time.Duration // first token, by the service and by the client
}

// chatting is one conversation.
type chatting struct {
	name     string
	messages []message
}

// run is a test of one source.
type run struct {
	*stack

	chats []*chatting

	mu sync.Mutex // guards the following fields
	// answers are all requests but those that warmed the engines, and compared
	// what is known of each, in the same order.
	answers  []*answer
	compared []comparison
}

// TestFidelity plays the same work with each source of cache truth and writes
// what was predicted and counted to the file $FIDELITY, if that is set.
func TestFidelity(t *testing.T) {
	if os.Getenv("FIRSTTOKEN_E2E") == "" {
		t.Skip("needs real engines; `make e2e-vllm` runs it")
	}
	tokenizer := os.Getenv("TOKENIZER")
	if tokenizer == "" {
		tokenizer = filepath.Join("..", "tokenizer")
	}
	report := newReport(tokenizer)
	for _, source := range []truth{fromLMCache, fromEvents, fromMemory} {
		t.Run(string(source), func(t *testing.T) {
			r := &run{stack: startStack(t, source, tokenizer)}
			for i := range conversations {
				r.chats = append(r.chats, newChatting(fmt.Sprintf("conversation %d", i)))
			}
			r.play(t)
			r.compareIDs(t)
			report.add(source, r.compared)
			check(t, source, r.compared)
			for _, e := range r.engines {
				e.process.stop()
			}
		})
	}
	if file := os.Getenv("FIDELITY"); file != "" {
		report.write(t, file)
	}
}

func newChatting(name string) *chatting {
	system := "You are " + name + ". " + words(newRand(name+" system"), 60)
	return &chatting{name, []message{{"system", system}}}
}

// play sends everything.
func (r *run) play(t *testing.T) {
	t.Helper()
	// Sequential within a conversation, some of them side by side.
	const sideBySide = 3
	var all errgroup.Group
	all.SetLimit(sideBySide)
	for _, c := range r.chats {
		all.Go(func() error {
			for range turns {
				if err := r.turn(t.Context(), stepTurns, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for g := range groups {
		all.Go(func() error { return r.group(t.Context(), g) })
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}

	r.cancel(t)
	r.restartService(t)
	r.everyChat(t, stepServiceRestart)
	r.engines[0].resetCache(t)
	r.everyChat(t, stepCacheReset)
	r.restartEngine(t)
	r.everyChat(t, stepEngineRestart)
	r.everyChat(t, stepEngineRestart)
}

// turn is one more question and its answer, some time after the one before.
func (r *run) turn(ctx context.Context, s step, c *chatting) error {
	rng := newRand(fmt.Sprint(c.name, len(c.messages)))
	c.messages = append(c.messages, message{"user", words(rng, 60+rng.IntN(120))})
	a, err := r.client.chat(ctx, c.messages, answerTokens)
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	c.messages = append(c.messages, message{"assistant", a.text})
	if err := r.note(ctx, s, a); err != nil {
		return err
	}
	return pause(ctx)
}

// everyChat adds a turn to every conversation, one after the other.
func (r *run) everyChat(t *testing.T, s step) {
	t.Helper()
	for _, c := range r.chats {
		if err := r.turn(t.Context(), s, c); err != nil {
			t.Fatal(err)
		}
	}
}

// group sends completions that begin alike.
func (r *run) group(ctx context.Context, g int) error {
	name := fmt.Sprintf("group %d", g)
	prefix := words(newRand(name), 500)
	for i := range groupSize {
		a, err := r.client.complete(ctx, prefix+words(newRand(fmt.Sprint(name, i)), 40), answerTokens)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := r.note(ctx, stepShared, a); err != nil {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cancel leaves during a long prefill, then asks the same again.
func (r *run) cancel(t *testing.T) {
	t.Helper()
	for i := range 3 {
		prompt := words(newRand(fmt.Sprint("cancelled", i)), 2000)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+40*i)*time.Millisecond)
		_, err := r.client.complete(ctx, prompt, answerTokens)
		cancel()
		if err == nil {
			t.Log("a request was answered before it could be cancelled")
		}
		if err := pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		a, err := r.client.complete(t.Context(), prompt, answerTokens)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.note(t.Context(), stepCancel, a); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 30*time.Second, "no booking is left", r.service, func() bool { return r.state(t).OpenBookings == 0 })
}

// restartService loses all that the service knew, then waits until it has
// learnt again what can be learnt.
func (r *run) restartService(t *testing.T) {
	t.Helper()
	before := r.state(t).reported()
	r.service.stop()
	began := time.Now()
	r.startService(t)
	r.awaitReady(t)
	t.Logf("ready %s after the start, with %d of %d chunks or blocks known", time.Since(began), r.state(t).reported(), before)
	eventually(t, time.Minute, fmt.Sprintf("the engines repeated that they hold %d chunks or blocks", before), r.service, func() bool {
		return r.state(t).reported() >= before
	})
	t.Logf("all are known %s after the start", time.Since(began))
}

// restartEngine kills the first engine and starts it again.
func (r *run) restartEngine(t *testing.T) {
	t.Helper()
	e := r.engines[0]
	e.process.kill()
	e.run(t, r.venv)
	e.ready(t)
	r.awaitReady(t)
}

// note keeps an answer with the service's record of the decision for it.
func (r *run) note(ctx context.Context, s step, a *answer) error {
	d, err := r.decision(ctx, a.id)
	if err != nil {
		return err
	}
	c := comparison{
		step: s, promptTokens: a.promptTokens, counted: a.cached, measured: a.ttft,
		seen: time.Duration(d.GetTtftSeconds() * float64(time.Second)),
	}
	for _, candidate := range d.GetCandidates() {
		if candidate.GetAddress() == d.GetServedAddress() {
			c.predicted, c.known = int(candidate.GetCachedTokens()), candidate.CachedTokens != nil
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers, r.compared = append(r.answers, a), append(r.compared, c)
	return nil
}

// compareIDs fills in whose token ids are those that the engine saw.
func (r *run) compareIDs(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, ids := range r.encode(t, r.answers) {
		r.compared[i].idsEqual = slices.Equal(ids, r.answers[i].tokenIDs)
		if !r.compared[i].idsEqual {
			t.Errorf("request %d (%s): our %d token ids are not the engine's %d: %.300s", i, r.compared[i].step, len(ids), len(r.answers[i].tokenIDs), r.answers[i].body)
		}
	}
}

// tolerance is how far a prediction may be off and still be right: what the
// source cannot tell apart.
func (source truth) tolerance() int {
	if source == fromEvents {
		return blockSize
	}
	return chunkSize
}

// wanted is the share of predictions that must be right.
const wanted = 0.95

// check fails the test where too few predictions are right.
func check(t *testing.T, source truth, all []comparison) {
	t.Helper()
	right, wrong := 0, 0
	for i, c := range all {
		if c.right(source) {
			right++
			continue
		}
		wrong++
		t.Logf("request %d, %s, prompt of %d tokens: predicted %d, the engine counted %d", i, c.step, c.promptTokens, c.predicted, c.counted)
	}
	if share := float64(right) / float64(right+wrong); share < wanted {
		t.Errorf("%s: %.1f %% of %d predictions are right to within %d tokens, want %.0f %%", source, 100*share, right+wrong, source.tolerance(), 100*wanted)
	}
}

// right reports whether the prediction is the engine's count as far as the
// source can tell.
func (c comparison) right(source truth) bool {
	return max(c.predicted-c.counted, c.counted-c.predicted) <= source.tolerance()
}

// pause is the time between an answer and the next question.
func pause(ctx context.Context) error {
	timer := time.NewTimer(thinkTime)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
