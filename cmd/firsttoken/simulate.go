package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/cmd/firsttoken/simulate"
	"github.com/firsttoken/firsttoken/simulator"
)

// newSimulateCommand makes "firsttoken simulate": policies compared on a trace.
func newSimulateCommand() *cobra.Command {
	o := simulate.DefaultOptions()
	names, about := simulate.Workloads()
	var made strings.Builder
	for i := range names {
		fmt.Fprintf(&made, "\n  %-14s %s", names[i], about[i])
	}
	cmd := &cobra.Command{
		Use:   "simulate [TRACE…]",
		Short: "Replay a trace over simulated engines and compare policies",
		Long: `Replay a trace over simulated engines and compare policies.

The scoring is the service's own, on a virtual clock: what took an hour is
replayed in seconds. A trace is one of
  mooncake    JSON Lines {"timestamp": ms, "input_length": tokens,
              "output_length": tokens, "hash_ids": [one a block of 512]}
  azure       CSV with TIMESTAMP,ContextTokens,GeneratedTokens
  decisions   what the admin port answers to /decisions?blocks=true, any number
              of times, one after the other, or the lines of decisions.file,
              written with decisions.blocks: true
and told by its content. Several files are pieces of one trace; - is standard
input. Batches of arrivals that share a timestamp are spread up to the next one.
In place of a trace, --workload takes one of` + made.String() + `

Times on the command line are seconds or durations (300, 5m). --from, --to,
--warm and --fail are times of the trace, whatever the speed.`,
		Example: `  firsttoken simulate trace.jsonl --endpoints 8 --speed 2.5 --policy all
  firsttoken simulate trace.jsonl --endpoints 4,4@0.4/160k --sat --load .85 --seeds 3
  firsttoken simulate decisions.json --find-capacity --slo-ttft 1s
  firsttoken simulate --workload multi-round --endpoints 2 --profile 3090-7b --plot ttft.svg`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Traces = append(o.Traces, args...)
			given := cmd.Flags().Changed
			o.WarmGiven, o.LoadGiven, o.BatchGiven = given("warm"), given("load"), given("batch-tokens")
			o.Stdin, o.Out, o.Notes = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if f, ok := o.Notes.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
				o.ProgressOn = f
			}
			return simulate.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.Traces, "trace", nil, "`file` of the trace, as the arguments name them")
	f.StringVar(&o.Workload, "workload", "", "made-up `name` in place of a trace: "+strings.Join(names, ", "))
	f.StringVar(&o.Format, "format", o.Format, "how the trace is written: auto, mooncake, azure, decisions")
	f.Var(&o.Block, "block", "tokens in a block of hash_ids, and of the engines' prefix cache (default: 512 for mooncake, the records' own, else 16)")
	f.Var(&o.AnswerSize, "output-tokens", "length taken for answers of which decision records do not tell it (default 200)")
	f.Var(&o.AnswerToken, "token-time", "time of one token when decisions were recorded: the length of an answer is then how long it took; 0: not known")
	f.StringVar(&o.Spread, "spread", o.Spread, "over what `time` arrivals are spread: auto, off, or a time for traces that auto takes for exact")
	f.Var(&o.From, "from", "leave out what came before")
	f.Var(&o.To, "to", "leave out what came from then on; 0: nothing")
	f.Var(&o.Warm, "warm", "time at the beginning in which requests are not counted (0 for workloads)")

	f.StringSliceVar(&o.Policies, "policy", o.Policies, "`policies` to compare: all, ablation (ttft without each of its terms), or some of "+strings.Join(simulate.Policies(), ", "))
	f.StringVar(&o.Reference, "reference", o.Reference, "`policy` to put first")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "what decides arrivals within batches and every draw")
	f.IntVar(&o.Seeds, "seeds", o.Seeds, "run each policy with so many seeds, from --seed on, and show means")

	f.StringVar(&o.Endpoints, "endpoints", o.Endpoints, "engines: COUNT[xPROFILE][@SPEED][/KV_TOKENS], several with commas between; each such `group` is a kind")
	f.StringVar(&o.Profile, "profile", o.Profile, "engines' `name`: "+strings.Join(simulator.ProfileNames(), ", "))
	f.Var(&o.KVTokens, "kv-tokens", "KV memory of an engine (default: the profile's)")
	f.Var(&o.HostTokens, "host-tokens", "host memory that keeps what leaves the KV memory, 0: none (default: the profile's)")
	f.Float64Var(&o.HostSeconds, "host-seconds", o.HostSeconds, "`seconds` to load a token from host memory; below 0: the profile's")
	f.StringArrayVar(&o.Fail, "fail", nil, "`engine,from,to`: an engine is gone for a time; the first is 0")

	f.Float64Var(&o.Speed, "speed", o.Speed, "how many times as fast as recorded requests come")
	f.StringVar(&o.Sat, "sat", "", "replay at the `speed` at which the seed policy's mean time to first token is 10 s; without a value it is found")
	f.Lookup("sat").NoOptDefVal = simulate.FindSaturation
	f.Float64Var(&o.Load, "load", o.Load, "`share` of the speed of --sat to replay at")
	f.BoolVar(&o.FindCapacity, "find-capacity", false, "find how many requests a second each policy carries within --slo-ttft")
	f.Var(&o.SLO, "slo-ttft", "limit of the mean time to first token")

	f.StringVar(&o.CacheSource, "cache-source", o.CacheSource, "where the router knows from what engines hold: events, or routed (what it sent where)")
	f.BoolVar(&o.Sessions, "sessions", false, "requests tell whose they are (server.session_key): the user or group of a workload, the session of a record, else a guess by the prompt's first block that few have")
	f.Var(&o.KVDelay, "kv-delay", "how late events of what engines hold arrive")
	f.BoolVar(&o.HostLoadKnown, "host-seconds-known", false, "count loading from host memory as work")
	f.BoolVar(&o.Shared, "shared-cache", false, "engines read each other's host memory")
	f.Float64Var(&o.FetchSeconds, "fetch-seconds", o.FetchSeconds, "`seconds` to fetch a token from another engine, with --shared-cache")
	f.IntVar(&o.Replicas, "replicas", o.Replicas, "routers that take turns")
	f.BoolVar(&o.Ledger, "ledger", false, "routers share what is booked")
	f.Float64Var(&o.TokenBias, "token-bias", o.TokenBias, "`factor` by which the router misjudges prompts' lengths")
	f.Float64Var(&o.TokenSigma, "token-sigma", 0, "standard `deviation` of the logarithm of a further error of each length")

	f.BoolVar(&o.Scoring.KVRoom, "kv-room", o.Scoring.KVRoom, "scoring.kv_room of the router")
	f.BoolVar(&o.Scoring.FitPerKind, "fit-per-kind", o.Scoring.FitPerKind, "scoring.fit_per_kind")
	f.IntVar((*int)(&o.Scoring.AttentionTokens), "attention-tokens", int(o.Scoring.AttentionTokens), "scoring.attention_tokens")
	f.IntVar((*int)(&o.Scoring.BatchTokens), "batch-tokens", int(o.Scoring.BatchTokens), "scoring.batch_tokens (default: what the engines have)")
	f.IntVar((*int)(&o.Scoring.KVAwareThreshold), "kvaware-threshold", int(o.Scoring.KVAwareThreshold), "scoring.kvaware_threshold")
	f.Float64Var(&o.Scoring.LoadAwareBeta, "loadaware-beta", o.Scoring.LoadAwareBeta, "scoring.loadaware_beta")
	f.IntVar((*int)(&o.Scoring.PrefixAwareMinMatch), "prefixaware-min-match", int(o.Scoring.PrefixAwareMinMatch), "scoring.prefixaware_min_match")
	f.Var((*simulate.Seconds)(&o.Scoring.Hold.Max), "hold-max", "scoring.hold.max, for ttft-hold")
	f.Float64Var(&o.Scoring.Hold.Steps, "hold-steps", o.Scoring.Hold.Steps, "scoring.hold.steps, for ttft-hold")

	f.StringVar(&o.Output, "output", o.Output, "how figures are written: `table`, json, csv")
	f.StringVar(&o.Plot, "plot", "", "draw the distribution of times and the queue over time into this `file.svg` or .png")
	return cmd
}
