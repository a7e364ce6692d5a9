package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/bench"
	"github.com/firsttoken/firsttoken/cmd/firsttoken/simulate"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/simulator/trace"
)

// newBenchCommand makes "firsttoken bench": a client that measures.
func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the time to first token of any OpenAI endpoint",
		Long: "Bench sends streamed chat completions to any OpenAI endpoint and measures the time to\n" +
			"the first token, between tokens, and to the end.",
	}
	cmd.AddCommand(newMultiRoundCommand(), newSharedPrefixCommand(), newTraceCommand())
	return cmd
}

// benchFlags are the flags of all loads.
type benchFlags struct {
	target                 bench.Target
	keyVariable, tokenizer string
	output                 string
	logInterval            time.Duration
	maxFailed              int
}

func (f *benchFlags) register(cmd *cobra.Command, seed *uint64) {
	flags := cmd.Flags()
	flags.StringVar(&f.target.BaseURL, "base-url", "", "`URL` of the endpoint, such as http://127.0.0.1:8080, with or without /v1")
	flags.StringVar(&f.target.Model, "model", "", "`name` of the model to ask for")
	flags.StringVar(&f.keyVariable, "api-key-env", "OPENAI_API_KEY", "environment `variable` whose value is sent as bearer token, if it has one")
	f.target.Timeout = 10 * time.Minute
	flags.Var((*simulate.Seconds)(&f.target.Timeout), "timeout", "most time for one request, to its end")
	flags.StringVar(&f.tokenizer, "tokenizer", "", "`folder` of the model's tokenizer.json, or its id on a Hugging Face hub, to count tokens by (default: the endpoint's /tokenize, else words)")
	flags.StringVar(&f.output, "output", "summary.csv", "CSV `file` with a line for each request; empty: none")
	f.logInterval = 30 * time.Second
	flags.Var((*simulate.Seconds)(&f.logInterval), "log-interval", "time between summaries while it runs; 0: only the last")
	flags.IntVar(&f.maxFailed, "max-failed", -1, "most `requests` that may fail for the command to succeed; -1: all but one")
	flags.Uint64Var(seed, "seed", *seed, "what texts and lengths are drawn from; with another one nothing that was cached fits")
	for _, name := range []string{"base-url", "model"} {
		_ = cmd.MarkFlagRequired(name) // it is there
	}
}

// rangeFlag is a number of tokens or a range of them.
type rangeFlag struct{ value *bench.Range }

func (r rangeFlag) String() string {
	if r.value == nil {
		return ""
	}
	return r.value.String()
}
func (r rangeFlag) Type() string { return "tokens" }
func (r rangeFlag) Set(text string) (err error) {
	*r.value, err = bench.ParseRange(text)
	return err
}

var _ pflag.Value = rangeFlag{}

func newMultiRoundCommand() *cobra.Command {
	var f benchFlags
	load := bench.DefaultMultiRound()
	cmd := &cobra.Command{
		Use:   "multi-round --base-url URL --model NAME",
		Short: "Users with a long history each, who ask round by round",
		Long: "Multi-round is the load of multi-round-qa of vLLM's production stack, with its parameters:\n" +
			"users who share a system prompt, bring a history of their own, and ask round by round. The\n" +
			"file that --output names has its columns, and more behind them.",
		Example: "  firsttoken bench multi-round --base-url http://127.0.0.1:8080 --model demo --num-users 10 --num-rounds 5 --qps 0.5 \\\n" +
			"    --shared-system-prompt 1000 --user-history-prompt 2000 --answer-len 100",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, load) },
	}
	f.register(cmd, &load.Seed)
	flags := cmd.Flags()
	flags.IntVar(&load.Users, "num-users", load.Users, "users at once")
	flags.IntVar(&load.Rounds, "num-rounds", load.Rounds, "rounds of each user")
	flags.Float64Var(&load.QPS, "qps", load.QPS, "requests a second of all users together")
	flags.IntVar(&load.SharedPrompt, "shared-system-prompt", load.SharedPrompt, "tokens that all prompts begin with")
	flags.Var(rangeFlag{&load.History}, "user-history-prompt", "tokens of each user's own history, a number or a range such as 2000-6000")
	flags.IntVar(&load.Question, "question-len", load.Question, "tokens of a question")
	flags.IntVar(&load.Answer, "answer-len", load.Answer, "most tokens of an answer")
	flags.BoolVar(&load.IgnoreEOS, "ignore-eos", false, "make every answer as long as that, with vLLM's ignore_eos")
	flags.Var((*simulate.Seconds)(&load.Time), "time", "seconds, or a duration, after which the run ends; until then users who are done are replaced. 0: when all are done")
	flags.Var((*simulate.Seconds)(&load.RampUp), "ramp-up", "seconds, or a duration, over which the users come (default: the time that a user stays)")
	flags.IntVar(&load.MaxUnfinished, "max-unfinished-queries", 0, "hold rounds back while so many requests are unfinished; 0: no limit")
	flags.IntVar(&load.InitUserID, "init-user-id", 0, "number before the first user's")
	flags.BoolVar(&load.UserHeader, "request-with-user-id", false, "send each user's number as x-user-id")
	flags.IntVar(&load.WarmUp, "warm-up", load.WarmUp, "short requests sent before, which do not count")
	return cmd
}

func newSharedPrefixCommand() *cobra.Command {
	var f benchFlags
	load := bench.DefaultSharedPrefix()
	cmd := &cobra.Command{
		Use:   "shared-prefix --base-url URL --model NAME",
		Short: "Prompts that share a short cached prefix and go on with many fresh tokens",
		Long: "Shared-prefix is the second experiment of the proposal of TTFT routing: a short prefix is\n" +
			"cached at one engine, and all prompts begin with it and go on with many tokens that nobody has\n" +
			"seen. A router that follows the longest match sends all of them to that engine.",
		Example: "  firsttoken bench shared-prefix --base-url http://127.0.0.1:8080 --model demo --workers 5 --requests 20 --active 5",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd, load) },
	}
	f.register(cmd, &load.Seed)
	flags := cmd.Flags()
	flags.IntVar(&load.Workers, "workers", load.Workers, "clients, each sending its requests one after the other")
	flags.IntVar(&load.Requests, "requests", load.Requests, "requests of each worker")
	flags.IntVar(&load.Active, "active", load.Active, "most requests under way at once")
	flags.IntVar(&load.Prefix, "prefix-len", load.Prefix, "tokens that all prompts begin with")
	flags.IntVar(&load.Fresh, "fresh-len", load.Fresh, "tokens behind them, in each prompt others")
	flags.IntVar(&load.Answer, "answer-len", load.Answer, "most tokens of an answer")
	flags.BoolVar(&load.IgnoreEOS, "ignore-eos", false, "make every answer as long as that, with vLLM's ignore_eos")
	flags.IntVar(&load.WarmUp, "warm-up", load.WarmUp, "how often the prefix alone is sent before; these do not count")
	return cmd
}

func newTraceCommand() *cobra.Command {
	var f benchFlags
	load := bench.Replay{Speed: 1, Seed: 1}
	var format string
	var from, to time.Duration
	var spread bool
	cmd := &cobra.Command{
		Use:   "trace --base-url URL --model NAME FILE...",
		Short: "The requests of a trace, at their times",
		Long: "Trace sends the requests of a trace at their times, whatever becomes of those before. It reads\n" +
			"Mooncake's JSON Lines, Azure's CSV and the decision records of the admin port. Prompts are made up:\n" +
			"where the trace says that two begin alike, they do.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			t, err := readTrace(files, trace.Options{Format: trace.Format(format)})
			if err != nil {
				return err
			}
			for _, note := range t.Notes {
				fmt.Fprintln(cmd.ErrOrStderr(), "trace:", note)
			}
			load.Requests, load.BlockTokens = t.Requests, t.BlockTokens
			if spread {
				load.Requests = trace.Spread(load.Requests, load.Seed)
			}
			load.Requests = trace.Between(load.Requests, from, to)
			return f.run(cmd, load)
		},
	}
	f.register(cmd, &load.Seed)
	flags := cmd.Flags()
	flags.Float64Var(&load.Speed, "speed", load.Speed, "how many times as fast as the trace")
	flags.Var((*simulate.Seconds)(&from), "from", "leave out what came before, in the trace's time")
	flags.Var((*simulate.Seconds)(&to), "to", "leave out what came from here on, in the trace's time; 0: nothing")
	flags.BoolVar(&spread, "spread", true, "spread requests that the trace gives one time, by chance, until the next")
	flags.StringVar(&format, "format", string(trace.Auto), fmt.Sprintf("of the files, one of %s", trace.Formats()))
	flags.BoolVar(&load.IgnoreEOS, "ignore-eos", false, "make every answer as long as the trace's, with vLLM's ignore_eos")
	return cmd
}

// readTrace reads files as one trace.
func readTrace(names []string, o trace.Options) (*trace.Trace, error) {
	var sources []trace.Source
	for _, name := range names {
		f, err := os.Open(name) //nolint:gosec // The user names it.
		if err != nil {
			return nil, err
		}
		defer f.Close()
		sources = append(sources, trace.Source{Name: name, Content: f})
	}
	return trace.Read(o, sources...)
}

// errTooManyFailed says that the run was made, but more requests failed than may.
var errTooManyFailed = errors.New("too many requests failed")

// run plays a load, prints its summary and writes its records.
func (f *benchFlags) run(cmd *cobra.Command, load bench.Load) error {
	if err := load.Validate(); err != nil {
		return err
	}
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	f.target.Key = os.Getenv(f.keyVariable)
	client := bench.NewClient(f.target)
	defer client.Close()
	writer, err := f.writer(ctx, client, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	var file *os.File
	if f.output != "" { // An hour's run must not end in a folder that is not there.
		if file, err = os.Create(f.output); err != nil {
			return fmt.Errorf("--output: %w", err)
		}
		defer file.Close()
	}
	fmt.Fprintf(out, "Prompt lengths: %s.\n", writer.Counting)

	var progress *bench.Progress
	if w, ok := cmd.ErrOrStderr().(*os.File); ok && isatty.IsTerminal(w.Fd()) {
		progress = bench.NewProgress(w, cmd.Name(), load.Size())
	}
	run := bench.NewRun(client, writer, progress.Done)
	stop := f.summaries(run, out, progress)
	played := run.Play(ctx, load)
	stop()
	progress.End()

	summary := run.Summary()
	fmt.Fprint(out, summary)
	if file != nil {
		if err := errors.Join(bench.WriteCSV(file, run.Records()), file.Close()); err != nil {
			return fmt.Errorf("--output: %w", err)
		}
		fmt.Fprintf(out, "Each request is in %s.\n", f.output)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %w", ctx.Err())
	case played != nil:
		return played
	case summary.Failed == summary.Requests:
		return fmt.Errorf("%w: none of %d was answered", errTooManyFailed, summary.Requests)
	case f.maxFailed >= 0 && summary.Failed > f.maxFailed:
		return fmt.Errorf("%w: %d of %d, at most %d may (--max-failed)", errTooManyFailed, summary.Failed, summary.Requests, f.maxFailed)
	}
	return nil
}

// summaries prints one every interval until stop is called.
func (f *benchFlags) summaries(run *bench.Run, out io.Writer, progress *bench.Progress) (stop func()) {
	if f.logInterval <= 0 || progress != nil {
		return func() {}
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		ticker := time.NewTicker(f.logInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				s := run.Summary()
				fmt.Fprintf(out, "%s: %d done, %d failed, %d under way, mean TTFT %.4f s\n",
					time.Now().Format(time.TimeOnly), s.Requests, s.Failed, run.InFlight(), s.TTFT.Mean)
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended); <-done }
}

// writer counts tokens by the best means there is.
func (f *benchFlags) writer(ctx context.Context, client *bench.Client, log io.Writer) (*bench.Writer, error) {
	if f.tokenizer != "" {
		folder, err := tokenizerFolder(ctx, f.tokenizer, "", log)
		if err != nil {
			return nil, fmt.Errorf("--tokenizer: %w", err)
		}
		return tokenizerWriter(ctx, folder)
	}
	w, err := bench.NewWriter(ctx, "counted by the endpoint's /tokenize", client.Tokenize)
	if err == nil {
		return w, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("interrupted: %w", ctx.Err())
	}
	w = bench.OneTokenAWord()
	w.Counting += fmt.Sprintf(" (%v; --tokenizer counts better)", err)
	return w, nil
}

// tokenizerWriter counts by the tokenizer of a folder.
func tokenizerWriter(ctx context.Context, folder string) (*bench.Writer, error) {
	t, err := native.LoadTokenizer(folder, native.Options{MaxConcurrent: 1})
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return bench.NewWriter(ctx, "counted by the tokenizer in "+folder, func(ctx context.Context, text string) (int, error) {
		ids, err := t.Encode(ctx, text, false)
		return len(ids), err
	})
}
