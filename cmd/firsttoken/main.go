// Command firsttoken sends every LLM request to the engine that will give its
// first token soonest. It is the only program of this repository.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // ends with the process
		<-signals
		// Before anybody hears of the first signal, the second one is no longer
		// caught: it ends the process at once.
		signal.Stop(signals)
		cancel()
	}()
	if err := newRootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "firsttoken:", err)
		os.Exit(1)
	}
}

// newRootCommand lists the sub-commands; each lives in the file of its name.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "firsttoken",
		Short:         "Send every LLM request to the engine that will give its first token soonest",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.AddCommand(
		newBenchCommand(),
		newCheckCommand(),
		newChoosingCommand(),
		newDemoCommand(),
		newEncodeCommand(),
		newEngineCommand(),
		newEnvoyCommand(),
		newExperimentsCommand(),
		newExplainCommand(),
		newKeysCommand(),
		newReportCommand(),
		newMigrateCommand(),
		newServeCommand(),
		newSimulateCommand(),
		newStatusCommand(),
	)
	return root
}
