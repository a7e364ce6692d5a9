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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal is not caught any more and ends the process at once.
	context.AfterFunc(ctx, stop)
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
		newCheckCommand(),
		newDemoCommand(),
		newEncodeCommand(),
		newEngineCommand(),
		newKeysCommand(),
		newServeCommand(),
	)
	return root
}
