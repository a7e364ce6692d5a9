package simulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator/replay"
	"github.com/firsttoken/firsttoken/simulator/trace"
)

// study is a workload and a fleet, ready to be run with any policy.
type study struct {
	o        *Options
	progress *progress
	setup    replay.Setup // its times are the trace's
	// arrivals are the trace's requests of each seed; nil where made is replayed.
	arrivals map[uint64][]trace.Request
	made     made
	name     string // of trace or workload, for titles
}

// newStudy reads the trace and puts the fleet together.
func newStudy(o *Options) (*study, error) {
	s := &study{o: o, progress: newProgress(o.ProgressOn)}
	var block int
	var err error
	if o.Workload == "" {
		block, err = s.readTrace()
	} else {
		s.made, _ = workloadByName(o.Workload)
		s.name, block = s.made.name, s.made.block
		if !o.WarmGiven {
			o.Warm = Seconds(s.made.warm)
		}
	}
	if err != nil {
		return nil, err
	}
	s.setup, err = o.setup(block)
	return s, err
}

// withoutPrefixes is the size of the engines' blocks where a trace has none:
// vLLM's default.
const withoutPrefixes = 16

// readTrace reads all files and returns the size of their blocks.
func (s *study) readTrace() (block int, err error) {
	o := s.o
	options := trace.Options{
		Format: trace.Format(o.Format), MooncakeBlock: max(0, int(o.Block)),
		Output: max(0, int(o.AnswerSize)), TokenTime: time.Duration(o.AnswerToken),
	}
	var sources []trace.Source
	for _, name := range o.Traces {
		if name == "-" {
			sources = append(sources, trace.Source{Name: "standard input", Content: o.Stdin})
			continue
		}
		f, err := os.Open(name) // #nosec G304 -- the user's own
		if err != nil {
			return 0, fmt.Errorf("trace: %w", err)
		}
		defer f.Close()
		sources = append(sources, trace.Source{Name: name, Content: f})
	}
	t, err := trace.Read(options, sources...)
	if err != nil {
		return 0, err
	}
	for _, note := range t.Notes {
		fmt.Fprintln(o.Notes, "note:", note)
	}
	if o.Sessions {
		if named := trace.NameSessions(t.Requests); named > 0 {
			fmt.Fprintf(o.Notes, "note: whose %d of %d requests are is guessed by the first block that few prompts have\n", named, len(t.Requests))
		}
	}
	if err := s.cut(t.Requests); err != nil {
		return 0, err
	}
	names := make([]string, len(o.Traces))
	for i, name := range o.Traces {
		names[i] = filepath.Base(name)
	}
	s.name = strings.Join(names, ", ")
	if block = t.BlockTokens; block == 0 {
		block = withoutPrefixes
	}
	if o.Block > 0 {
		block = int(o.Block)
	}
	return block, nil
}

// fewRequests is how many requests are too few for a mean to be trusted: in
// Mooncake's conversations a tenth of the prompts has half of the work.
const fewRequests = 500

// cut spreads the trace's arrivals, once for each seed, and keeps the part that
// is wanted.
func (s *study) cut(requests []trace.Request) error {
	o := s.o
	s.arrivals = make(map[uint64][]trace.Request)
	for _, seed := range o.seeds() {
		var spread []trace.Request
		switch o.Spread {
		case "auto":
			spread = trace.Spread(requests, seed)
		case "off":
			spread = requests
		default:
			period, err := parseSeconds(o.Spread)
			if err != nil {
				return fmt.Errorf("--spread: %w; or auto, or off", err)
			}
			spread = trace.SpreadOver(requests, period, seed)
		}
		s.arrivals[seed] = trace.Between(spread, time.Duration(o.From), time.Duration(o.To))
	}
	if o.Seeds > 1 && o.Spread == "auto" && trace.Period(requests) == 0 {
		fmt.Fprintln(o.Notes, "note: arrivals have times of their own, so that seeds differ in what chance decides only; --spread 1s moves each arrival by up to a second")
	}
	part := s.arrivals[o.Seed]
	if len(part) == 0 {
		end := "its end"
		if o.To != 0 {
			end = "--to " + o.To.String()
		}
		return fmt.Errorf("the trace has no request between --from %s and %s: it lasts %s", o.From.String(), end, requests[len(requests)-1].At)
	}
	last := part[len(part)-1].At
	if !o.WarmGiven && last < 2*time.Duration(o.Warm) {
		o.Warm = Seconds((last / 4).Truncate(time.Second))
		fmt.Fprintf(o.Notes, "note: what is replayed lasts %s, so that only its first %s are not counted (--warm)\n", last.Round(time.Second), o.Warm.String())
	}
	if counted := len(trace.Between(part, time.Duration(o.Warm), 0)); counted < fewRequests {
		fmt.Fprintf(o.Notes, "note: only %d requests are counted, a few of which decide these figures\n", counted)
	}
	if time.Duration(o.Warm) >= last {
		return fmt.Errorf("--warm %s leaves nothing to count: what is replayed lasts %s", o.Warm.String(), last.Round(time.Second))
	}
	return nil
}

// seeds are those of all runs of a policy.
func (o *Options) seeds() []uint64 {
	all := make([]uint64, o.Seeds)
	for i := range all {
		all[i] = o.Seed + uint64(i) // #nosec G115 -- below Seeds
	}
	return all
}

// requests is about how many requests a run has, for the progress.
func (s *study) requests() int {
	if s.arrivals == nil {
		return s.made.requests
	}
	return len(s.arrivals[s.o.Seed])
}

// run replays the workload once. A speed of 2 has everything come in half the
// time. It may be called from several goroutines.
func (s *study) run(ctx context.Context, policy string, seed uint64, speed float64) (*replay.Report, error) {
	setup := s.setup
	setup.Policy, setup.Seed = policy, seed
	if policy == holding {
		setup.Policy, setup.Scoring.Hold.Enabled = scoring.PolicyTTFT, true
	}
	setup.Warm = slower(setup.Warm, speed)
	setup.Failures = slices.Clone(setup.Failures)
	for i := range setup.Failures {
		f := &setup.Failures[i]
		f.From, f.To = slower(f.From, speed), slower(f.To, speed)
	}
	var over func()
	setup.Progress, over = s.progress.run()
	defer over()
	report, err := replay.Run(ctx, setup, s.workload(seed, speed))
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", policy, err)
	}
	report.Policy = policy
	return report, nil
}

// workload is the trace, or what is made up, at a speed.
func (s *study) workload(seed uint64, speed float64) replay.Workload {
	if s.arrivals == nil {
		return s.made.begin(seed, speed)
	}
	requests := slices.Clone(s.arrivals[seed])
	for i := range requests {
		requests[i].At = slower(requests[i].At, speed)
	}
	return replay.Open(requests)
}

// slower is a trace's time on the clock of a replay at that speed.
func slower(d time.Duration, speed float64) time.Duration {
	return time.Duration(float64(d) / speed)
}

// each calls do for 0 to n-1, as many at a time as there are cores, and returns
// the first error, after which no other is begun.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range n {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return do(ctx, i)
		})
	}
	return g.Wait()
}

// all runs every policy with every seed at one speed: a list for each policy.
func (s *study) all(ctx context.Context, policies []string, speed float64) ([][]*replay.Report, error) {
	seeds := s.o.seeds()
	reports := make([][]*replay.Report, len(policies))
	for i := range reports {
		reports[i] = make([]*replay.Report, len(seeds))
	}
	n := len(policies) * len(seeds)
	s.progress.begin("replaying", n, s.requests())
	defer s.progress.end()
	return reports, each(ctx, n, func(ctx context.Context, i int) (err error) {
		reports[i/len(seeds)][i%len(seeds)], err = s.run(ctx, policies[i/len(seeds)], seeds[i%len(seeds)], speed)
		return err
	})
}

// write calls do with the file of that name.
func write(name string, do func(io.Writer) error) error {
	f, err := os.Create(name) // #nosec G304 -- the user's own
	if err != nil {
		return err
	}
	if err := errors.Join(do(f), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
