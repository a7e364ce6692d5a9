package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// newCheckCommand makes "firsttoken check": is this configuration good? It
// looks at the configuration only; no engine is asked, no tokenizer loaded.
func newCheckCommand() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Name every fault of a configuration, or say ok",
		Long: "Check reads a configuration as serve would, names every fault in it with its\n" +
			"place and ends with status 1, or says ok and what the configuration means. What is\n" +
			"allowed, but odd, it names on standard error; serve logs the same.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load(cmd.Flags())
			if err != nil {
				return err
			}
			for _, warning := range cfg.warnings() {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", warning)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), cfg.summary())
			return err
		},
	}
	flags.register(cmd.Flags())
	return cmd
}
