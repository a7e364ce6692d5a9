package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/simulator"
)

func newEngineCommand() *cobra.Command {
	cfg := engine.DefaultConfig()
	var listen, profile, faults string
	cmd := &cobra.Command{
		Use:   "engine --model NAME",
		Short: "Run a simulated vLLM engine, for trying firsttoken without GPUs",
		Long: `Run a simulated vLLM engine, for trying firsttoken without GPUs.

It answers the OpenAI paths as vLLM does, with words that mean nothing, as soon
as an engine of the chosen profile would: prompts queue, are computed in chunks
and batches, and are faster where their beginning is cached. When the port is
open one line says where, on standard output: listening on http://IP:PORT`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Profile, err = simulator.ProfileByName(profile); err != nil {
				return err
			}
			if cfg.Faults, err = engine.ParseFaults(faults); err != nil {
				return err
			}
			if !cmd.Flags().Changed("max-model-len") {
				cfg.MaxModelLen = min(cfg.MaxModelLen, cfg.Profile.KVTokens)
			}
			cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			server, err := engine.New(cfg)
			if err != nil {
				return err
			}
			defer server.Close()
			l, err := listenOn(cmd.Context(), listen)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "listening on http://%s\n", l.Addr())
			return server.Serve(cmd.Context(), l)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:8000", "address to serve on; port 0 takes a free one, fd:N a port opened by the parent process")
	f.StringSliceVar(&cfg.Models, "model", nil, "names served, the first is the engine's own")
	f.StringVar(&profile, "profile", cfg.Profile.Name, "speed and size: "+strings.Join(simulator.ProfileNames(), ", "))
	f.Float64Var(&cfg.TimeScale, "time-scale", cfg.TimeScale, "seconds that pass for one of the profile's; 0.1 runs ten times as fast")
	f.IntVar(&cfg.MaxModelLen, "max-model-len", cfg.MaxModelLen, "most tokens of prompt and answer together")
	f.IntVar(&cfg.BlockTokens, "block-size", cfg.BlockTokens, "tokens in a block of the prefix cache")
	f.IntVar(&cfg.AnswerTokens, "answer-tokens", cfg.AnswerTokens, "length of an answer to which the client sets no limit")
	f.BoolVar(&cfg.PromptTokensDetails, "enable-prompt-tokens-details", cfg.PromptTokensDetails, "tell in the usage how many prompt tokens were cached")
	f.BoolVar(&cfg.RequestIDHeaders, "enable-request-id-headers", cfg.RequestIDHeaders, "answer with X-Request-Id")
	f.StringVar(&cfg.APIKey, "api-key", "", "bearer token that paths below /v1 demand")
	f.StringVar(&faults, "faults", "", "what is wrong from the start: hang, refuse, unhealthy, error_rate=0.1, slow=3, drop_after=5; POST /faults changes it")
	return cmd
}
