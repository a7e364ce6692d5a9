package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/bench"
	"github.com/firsttoken/firsttoken/cmd/firsttoken/stack"
	"github.com/firsttoken/firsttoken/scoring"
)

// engines is the number of simulated engines.
const engines = 3

// model is the name that clients ask for.
const model = "demo"

// Options say what is run and where the report goes.
type Options struct {
	// Program is the firsttoken binary, Envoy Envoy's, Tokenizer the folder of
	// the tokenizer that engines and service use.
	Program, Envoy, Tokenizer string
	// Keep leaves the last policy's processes up until the context ends.
	Keep bool
	// Out gets the report. On a Terminal a line of progress is rewritten below
	// it.
	Out      io.Writer
	Terminal bool
}

// The policies, in order; each one's mean is compared with the first one's. Ours
// is what the service does where nobody says anything.
var (
	basePolicy = scoring.PolicyRoundRobin
	ourPolicy  = scoring.DefaultConfig().Policy
)

// target is what the mean time to first token of ourPolicy may be, as a part of
// basePolicy's, for the demo to count as a success.
const target = 0.7

// Time limits: what takes longer hangs. Loading the tokenizer takes longest of
// the start.
const (
	startLimit  = time.Minute
	policyLimit = 3 * time.Minute
)

// seed of the workload: any one would do, but a run must be repeatable.
const seed = 1

// ErrMissedTarget says that everything worked, but ourPolicy was not enough
// faster than basePolicy.
var ErrMissedTarget = errors.New("the mean time to first token is above its target")

// Run plays the demo. When it returns, every process it started is gone. The
// error is ErrMissedTarget, or says what failed or that ctx ended.
func Run(ctx context.Context, o Options) error {
	if err := stack.CheckEnvoy(o.Envoy); err != nil {
		return err
	}
	err := o.run(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}
	return err
}

func (o Options) run(ctx context.Context) error {
	p := &printer{out: o.Out, terminal: o.Terminal}
	load := newWorkload(seed)
	p.line("%d simulated engines, the service and Envoy on this machine; %d conversations of %d turns, then a group of %d that asks about one document, once per policy.\n"+
		"Per request: prompt tokens; tokens cached at each engine, and for how long each is busy already; the choice and why;\n"+
		"the time to first token that was estimated, that the service measured, and that the client measured.",
		engines, len(load.chats), turns, 1+len(load.burst))
	base, err := o.policy(ctx, basePolicy, load, p, nil)
	if err != nil {
		return err
	}
	var ours summary
	_, err = o.policy(ctx, ourPolicy, load, p, func(s *stack.Stack, got summary) error {
		ours = got
		p.line("\n%s", table([]summary{base, ours}))
		return o.hold(ctx, s, p)
	})
	if err != nil {
		return err
	}
	if share := ours.relative(base); share > target {
		return fmt.Errorf("%w: %s has %.2f of %s's, at most %.2f was expected", ErrMissedTarget, ourPolicy, share, basePolicy, target)
	}
	return nil
}

// policy plays the workload with fresh processes. after is called while they
// are still up.
func (o Options) policy(ctx context.Context, policy string, load workload, p *printer, after func(*stack.Stack, summary) error) (summary, error) {
	starting, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not ready after %s", startLimit))
	defer cancel()
	s, err := stack.Start(starting, stack.Config{
		Program: o.Program, Envoy: o.Envoy, Tokenizer: o.Tokenizer,
		Engines: engines, Profile: "demo", Model: model,
		Scoring: map[string]any{"policy": policy}, Truth: stack.LMCache,
	})
	if err != nil {
		return summary{}, fmt.Errorf("%s: %w", policy, err)
	}
	defer s.Stop()

	p.begin(policy, s.Engines, load.size())
	results, err := play(ctx, s, load, p)
	p.end()
	if err != nil {
		return summary{}, fmt.Errorf("%s: %w", policy, err)
	}
	got := summarize(policy, results)
	if after != nil {
		err = after(s, got)
	}
	return got, err
}

// play sends the workload through Envoy and reports each request as it ends.
// The first request that fails, or a child that dies, ends it.
func play(ctx context.Context, s *stack.Stack, load workload, p *printer) ([]result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, policyLimit, fmt.Errorf("the requests were not done after %s", policyLimit))
	defer cancel()
	ctx, unwatch := s.Watch(ctx)
	defer unwatch()

	c := bench.NewClient(bench.Target{BaseURL: s.Gateway, Model: model})
	defer c.Close()
	var mu sync.Mutex // guards results
	var results []result
	ask := func(ctx context.Context, name string, turn int, messages []bench.Message) (string, error) {
		a, fault := c.Ask(ctx, &bench.Chat{Messages: messages, MaxTokens: answerTokens}, nil)
		if fault != nil {
			return "", fault
		}
		r := result{name: name, turn: turn, answer: a}
		var err error
		// Without an id Envoy has not waited for the service's answer and has
		// chosen by itself.
		if a.ID != "" {
			if r.decision, err = s.Decision(ctx, a.ID); err != nil {
				return "", err
			}
		}
		p.request(r)
		mu.Lock()
		defer mu.Unlock()
		results = append(results, r)
		return a.Text, nil
	}
	err := load.play(ctx, ask)
	if cause := context.Cause(ctx); cause != nil {
		err = cause // a cut connection is only its consequence
	}
	return results, err
}

// play holds all conversations at once, then lets the group ask.
func (l workload) play(ctx context.Context, ask asker) error {
	if err := holdAll(ctx, l.chats, ask); err != nil {
		return err
	}
	if err := l.first.hold(ctx, ask); err != nil {
		return err
	}
	return holdAll(ctx, l.burst, ask)
}

func holdAll(ctx context.Context, all []conversation, ask asker) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range all {
		group.Go(func() error { return c.hold(ctx, ask) })
	}
	return group.Wait()
}

// hold says how to send a request by hand and, with Keep, waits for the end.
func (o Options) hold(ctx context.Context, s *stack.Stack, p *printer) error {
	curl := fmt.Sprintf(`curl -i %s/v1/chat/completions -H 'content-type: application/json' -d '{"model": "%s", "max_tokens": 16, "messages": [{"role": "user", "content": "Hello!"}]}'`, s.Gateway, model)
	if !o.Keep {
		p.line("Run it with --keep (make demo KEEP=1) and everything stays up; a request by hand is then\n  %s", curl)
		return nil
	}
	p.line("Everything stays up until Ctrl-C. Try\n  %s\n  curl %s/decisions\n  curl %s/status", curl, s.Admin, s.Admin)
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.Died():
		return err
	}
}
