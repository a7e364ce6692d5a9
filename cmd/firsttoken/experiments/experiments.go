package experiments

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/bench"
	"github.com/firsttoken/firsttoken/cmd/firsttoken/stack"
)

// Options say what is run and where the page goes.
type Options struct {
	// Program is the firsttoken binary, Envoy Envoy's, Tokenizer the folder of
	// the tokenizer that engines, service and client use.
	Program, Envoy, Tokenizer string
	// Writer makes prompts, by the same tokenizer.
	Writer *bench.Writer
	// Runs is how often each policy is run, Scale the seconds that pass for one
	// of the experiment's.
	Runs  int
	Scale float64
	// Policies are the names of the rows to run; Experiments the numbers.
	Policies    []string
	Experiments []int
	// Folder is where page, CSV and plots are written; empty: nowhere.
	Folder string
	// Requests is a CSV file with a line for each request; empty: none.
	Requests string
	// Command is how the page says that it was made.
	Command string
	// Out gets a line for each run and the tables. On Terminal, which may be nil,
	// a bar shows how far a run is.
	Out      io.Writer
	Terminal io.Writer
}

// Validate names every fault by its flag.
func (o *Options) Validate() error {
	var faults []error
	if o.Runs < 1 {
		faults = append(faults, fmt.Errorf("--runs: is %d; write at least 1", o.Runs))
	}
	if !(o.Scale > 0 && o.Scale <= 10) {
		faults = append(faults, fmt.Errorf("--scale: is %g; write a number above 0 and at most 10, 1 for real time", o.Scale))
	}
	for _, name := range o.Policies {
		if !slices.Contains(Policies(), name) {
			faults = append(faults, fmt.Errorf("--policies: %q is none of %s", name, strings.Join(Policies(), ", ")))
		}
	}
	for _, number := range o.Experiments {
		if number < 1 || number > len(experiments) {
			faults = append(faults, fmt.Errorf("--experiments: %d is none of 1 and 2", number))
		}
	}
	return errors.Join(faults...)
}

// policy is a row: a policy of the service and its settings.
type policy struct {
	name    string
	scoring map[string]any
	// hold: the service holds requests back.
	hold bool
	// sessionKey is the header that tells the service a request's session.
	sessionKey string
	// asked: it is run only where it is named.
	asked bool
}

var policies = []policy{
	{name: "ttft", scoring: map[string]any{"policy": "ttft"}},
	{name: "ttft-hold", scoring: map[string]any{"policy": "ttft", "hold": map[string]any{"enabled": true}}, hold: true, asked: true},
	{name: "trapezoid", scoring: map[string]any{"policy": "trapezoid"}},
	{name: "kvaware", scoring: map[string]any{"policy": "kvaware", "kvaware_threshold": 0}},
	{name: "kvaware-2000", scoring: map[string]any{"policy": "kvaware", "kvaware_threshold": 2000}},
	{name: "qps", scoring: map[string]any{"policy": "qps"}},
	{name: "roundrobin", scoring: map[string]any{"policy": "roundrobin"}},
	{name: "loadaware", scoring: map[string]any{"policy": "loadaware"}, asked: true},
	{name: "prefixaware", scoring: map[string]any{"policy": "prefixaware"}, asked: true},
	{name: "session", scoring: map[string]any{"policy": "session"}, sessionKey: "x-user-id", asked: true},
	{name: "random", scoring: map[string]any{"policy": "random"}, asked: true},
}

// Policies are the names of all rows.
func Policies() []string {
	names := make([]string, len(policies))
	for i := range policies {
		names[i] = policies[i].name
	}
	return names
}

// UsualPolicies are the names of the rows that the targets and the published
// figures are about.
func UsualPolicies() []string {
	var names []string
	for i := range policies {
		if !policies[i].asked {
			names = append(names, policies[i].name)
		}
	}
	return names
}

// experiment is a load for the engines of the proposal.
type experiment struct {
	title string
	// about says in a sentence what is sent.
	about string
	// load is what is sent where a second takes scale seconds.
	load func(scale float64) bench.Load
	// published are the mean times to first token of the proposal, in seconds, on
	// two RTX 3090, by row.
	published map[string]float64
}

// The engines of both experiments: two GPUs of the kind that the proposal used.
const (
	engines = 2
	profile = "3090-7b"
	model   = "model"
)

// roundGap is the time from one round of a user to the next.
const roundGap = 4500 * time.Millisecond

var experiments = []experiment{
	{
		title: "Experiment 1: conversations",
		about: "15 users with 10 rounds each, 1000 tokens that all share, 2000 to 6000 of each user's own history, questions of 48 tokens, answers of 96 that become part " +
			"of the next prompt, one round of each user every 4.5 s; the users come within the first 4.5 s",
		load: func(scale float64) bench.Load {
			load := bench.DefaultMultiRound()
			load.QPS = float64(load.Users) / (roundGap.Seconds() * scale)
			load.RampUp = time.Duration(float64(roundGap) * scale)
			load.IgnoreEOS = true
			load.UserHeader = true
			return load
		},
		published: map[string]float64{"trapezoid": 0.3968, "kvaware": 0.4788, "qps": 0.5119},
	},
	{
		title: "Experiment 2: a short shared prefix",
		about: "5 clients that send 20 requests each, one after the other: the same 256 tokens, cached at one engine before, 5000 that nobody has seen, answers of 2",
		load: func(float64) bench.Load {
			load := bench.DefaultSharedPrefix()
			load.Workers, load.Requests, load.Active = 5, 20, 5
			load.IgnoreEOS = true
			return load
		},
		published: map[string]float64{"trapezoid": 2.4981, "kvaware": 5.3141, "qps": 3.0669},
	},
}

// Time limits: what takes longer hangs.
const (
	startLimit = time.Minute
	runLimit   = 15 * time.Minute
)

// ErrMissedTarget says that everything was run, but not every target holds.
var ErrMissedTarget = errors.New("not every target holds")

// Run plays everything. When it returns, every process it started is gone. The
// error is ErrMissedTarget, or says what failed or that ctx ended.
func Run(ctx context.Context, o Options) error {
	if err := errors.Join(o.Validate(), stack.CheckEnvoy(o.Envoy)); err != nil {
		return err
	}
	results, err := o.runAll(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %w", ctx.Err())
		}
		return err
	}
	page := newPage(o, results)
	fmt.Fprintf(o.Out, "\n%s", page.tables())
	if o.Requests != "" {
		if err := os.WriteFile(o.Requests, page.requests(), 0o644); err != nil { //nolint:gosec // Times and lengths, no texts.
			return fmt.Errorf("--requests: %w", err)
		}
	}
	if o.Folder != "" {
		if err := page.write(o.Folder); err != nil {
			return err
		}
		fmt.Fprintf(o.Out, "Page, CSV and plots are in %s.\n", o.Folder)
	}
	if missed := page.missed(); len(missed) > 0 {
		return fmt.Errorf("%w: %s", ErrMissedTarget, strings.Join(missed, "; "))
	}
	return nil
}

// runAll lets all policies take turns, so that what changes on this machine
// meanwhile hits all alike.
func (o *Options) runAll(ctx context.Context) ([]result, error) {
	var results []result
	for run := 1; run <= o.Runs; run++ {
		for _, number := range o.Experiments {
			for _, p := range policies {
				if !slices.Contains(o.Policies, p.name) {
					continue
				}
				r, err := o.one(ctx, number, p, run)
				if err != nil {
					return nil, fmt.Errorf("experiment %d, %s, run %d: %w", number, p.name, run, err)
				}
				fmt.Fprintf(o.Out, "%s  experiment %d, %-12s run %d of %d: mean TTFT %.4f s, %.0f%% cached, estimate off by %.0f%%, %.0f s\n",
					time.Now().Format(time.TimeOnly), number, p.name, run, o.Runs, r.ttft.Mean, 100*r.hitShare, 100*r.estimateError, r.seconds)
				results = append(results, r)
			}
		}
	}
	return results, nil
}

// one plays an experiment with one policy, in fresh processes.
func (o *Options) one(ctx context.Context, number int, p policy, run int) (result, error) {
	e := &experiments[number-1]
	starting, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not ready after %s", startLimit))
	defer cancel()
	s, err := stack.Start(starting, stack.Config{
		Program: o.Program, Envoy: o.Envoy, Tokenizer: o.Tokenizer,
		Engines: engines, Profile: profile, TimeScale: o.Scale, Model: model,
		Scoring: p.scoring, Hold: p.hold, SessionKey: p.sessionKey, Truth: stack.KVEvents,
	})
	if err != nil {
		return result{}, err
	}
	defer s.Stop()
	ctx, cancelRun := context.WithTimeoutCause(ctx, runLimit, fmt.Errorf("the requests were not done after %s", runLimit))
	defer cancelRun()
	ctx, unwatch := s.Watch(ctx)
	defer unwatch()

	load := e.load(o.Scale)
	var progress *bench.Progress
	if o.Terminal != nil {
		progress = bench.NewProgress(o.Terminal, fmt.Sprintf("experiment %d, %s, run %d of %d", number, p.name, run, o.Runs), load.Size())
	}
	defer progress.End()
	client := bench.NewClient(bench.Target{BaseURL: s.Gateway, Model: model})
	defer client.Close()
	played := bench.NewRun(client, o.Writer, progress.Done)
	if err := played.Play(ctx, load); err != nil {
		return result{}, err
	}
	summary := played.Summary()
	if summary.Failed > 0 {
		return result{}, fmt.Errorf("%d of %d requests failed:\n%s", summary.Failed, summary.Requests, summary)
	}
	decisions, err := s.Decisions(ctx)
	if err != nil {
		return result{}, err
	}
	return newResult(number, p.name, run, o.Scale, &summary, played.Records(), decisions)
}
