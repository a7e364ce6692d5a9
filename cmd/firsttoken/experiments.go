package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/cmd/firsttoken/experiments"
)

// newExperimentsCommand makes "firsttoken experiments".
func newExperimentsCommand() *cobra.Command {
	var o experiments.Options
	cmd := &cobra.Command{
		Use:   "experiments",
		Short: "Repeat the experiments of TTFT routing on this machine, with real Envoy",
		Long: "Experiments plays the two experiments of the proposal of TTFT routing with two simulated\n" +
			"engines, the service and a real Envoy on free ports of 127.0.0.1, for one policy after the\n" +
			"other, and writes tables and plots. It fails where a target does not hold. In real time it\n" +
			"takes about a quarter of an hour for each run of all policies.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if o.Writer, err = tokenizerWriter(cmd.Context(), o.Tokenizer); err != nil {
				return fmt.Errorf("--tokenizer: %w", err)
			}
			o.Program, o.Out = program, cmd.OutOrStdout()
			if f, ok := cmd.ErrOrStderr().(*os.File); ok && isatty.IsTerminal(f.Fd()) {
				o.Terminal = f
			}
			o.Command = fmt.Sprintf("make experiments RUNS=%d", o.Runs)
			if o.Scale != 1 {
				o.Command += fmt.Sprintf(" SCALE=%g", o.Scale)
			}
			if flags := cmd.Flags(); flags.Changed("policies") || flags.Changed("experiments") { // make has no names for these
				list := func(flag string) string { return strings.Trim(flags.Lookup(flag).Value.String(), "[]") }
				o.Command = fmt.Sprintf("firsttoken experiments --runs %d --scale %g --policies %s --experiments %s", o.Runs, o.Scale, list("policies"), list("experiments"))
			}
			return experiments.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Envoy, "envoy", ".tools/envoy", "Envoy `program`")
	f.StringVar(&o.Tokenizer, "tokenizer", "test/tokenizer", "`folder` of the tokenizer that engines, service and client use")
	f.IntVar(&o.Runs, "runs", 3, "how often each policy is run")
	f.Float64Var(&o.Scale, "scale", 1, "seconds that pass for one of the experiments'; 0.25 is quick and less exact")
	f.StringSliceVar(&o.Policies, "policies", experiments.UsualPolicies(), "rows: "+strings.Join(experiments.Policies(), ", "))
	f.IntSliceVar(&o.Experiments, "experiments", []int{1, 2}, "which of the two")
	f.StringVar(&o.Folder, "out", "", "`folder` for page, CSV and plots; empty: nowhere")
	f.StringVar(&o.Requests, "requests", "", "CSV `file` with a line for each request: what was expected, what came; empty: none")
	return cmd
}
