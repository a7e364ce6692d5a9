package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/migrate"
)

// newMigrateCommand makes "firsttoken migrate".
func newMigrateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate [--dynamic-config FILE] {'COMMAND LINE' | -- ARGUMENTS…}",
		Short: "Turn the settings of production-stack's router into a configuration",
		Long: "Migrate prints the configuration (YAML) that says what a command line of\n" +
			"production-stack's router says, and on standard error, flag by flag, what became of\n" +
			"it, what is left to do by hand, and what has no equal. The command line is one\n" +
			"argument in quotes, or what follows --. --dynamic-config names its file of dynamic\n" +
			"configuration, YAML or JSON.",
		Example: "  firsttoken migrate 'vllm-router --service-discovery static --static-backends http://10.0.0.1:8000 \\\n" +
			"    --static-models qwen --routing-logic roundrobin' > firsttoken.yml\n" +
			"  firsttoken check --config firsttoken.yml",
		// The router's flags are none of ours.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			var dynamic []byte
			for len(args) > 0 {
				switch args[0] {
				case "-h", "--help":
					return cmd.Help()
				case "--dynamic-config":
					if len(args) == 1 {
						return errors.New("--dynamic-config: names no file")
					}
					text, err := os.ReadFile(args[1])
					if err != nil {
						return fmt.Errorf("--dynamic-config: %w", err)
					}
					dynamic, args = text, args[2:]
					continue
				case "--":
					args = args[1:]
				}
				break
			}
			if len(args) == 0 && dynamic == nil {
				return errors.New("there is nothing to migrate; give the router's command line in quotes, or --dynamic-config FILE")
			}
			if len(args) == 1 && strings.ContainsAny(args[0], " \t\n") {
				var err error
				if args, err = migrate.Words(args[0]); err != nil {
					return err
				}
			}
			result, err := migrate.Arguments(args, dynamic)
			if err != nil {
				return err
			}
			cfg := defaultConfig()
			faults, err := decodeYAML(result.Config, &cfg)
			if err := errors.Join(append(faults, err, cfg.validate())...); err != nil {
				return fmt.Errorf("what came of it is no good configuration:\n%w", err)
			}
			for _, n := range result.Notes {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s: %s\n", n.Flag, n.Fate, n.Text)
			}
			_, err = cmd.OutOrStdout().Write(result.Config)
			return err
		},
	}
}
