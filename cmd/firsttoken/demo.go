package main

import (
	"fmt"
	"os"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/cmd/firsttoken/demo"
)

// newDemoCommand makes "firsttoken demo": the whole service on one machine.
func newDemoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Play the whole service on this machine and compare two policies",
		Long: "Demo starts three simulated engines, the service and a real Envoy on free ports of\n" +
			"127.0.0.1, sends multi-turn conversations and a burst with a shared prefix through\n" +
			"Envoy, first with the policy roundrobin, then with the default, and compares the\n" +
			"times to first token. It takes about a minute, and fails where the default's mean is\n" +
			"above 0.7 of roundrobin's.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			o.Program, o.Out = program, cmd.OutOrStdout()
			if f, ok := o.Out.(*os.File); ok {
				o.Terminal = isatty.IsTerminal(f.Fd())
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Envoy, "envoy", ".tools/envoy", "Envoy `program`")
	cmd.Flags().StringVar(&o.Tokenizer, "tokenizer", "test/tokenizer", "`folder` of the tokenizer that engines and service use")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave everything up until Ctrl-C")
	return cmd
}
