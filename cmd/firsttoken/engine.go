package main

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/simulator"
)

func newEngineCommand() *cobra.Command {
	cfg := engine.DefaultConfig()
	var listen, profile, faults string
	var saveTail bool
	var adapters []string
	cmd := &cobra.Command{
		Use:   "engine --model NAME",
		Short: "Run a simulated vLLM engine, for trying firsttoken without GPUs",
		Long: `Run a simulated vLLM engine, for trying firsttoken without GPUs.

It answers the OpenAI paths as vLLM does, with words that mean nothing, as soon
as an engine of the chosen profile would: prompts queue, are computed in chunks
and batches, and are faster where their beginning is cached. When the port is
open one line says where, on standard output: listening on http://IP:PORT
POST /restart begins anew at the same addresses, with nothing cached.`,
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
				cfg.MaxModelLen = min(cfg.MaxModelLen, cfg.Profile.KVTokens/max(1, cfg.BlockTokens)*cfg.BlockTokens)
			}
			for _, text := range adapters {
				name, path, _ := strings.Cut(text, "=")
				cfg.Adapters = append(cfg.Adapters, engine.Adapter{Name: name, Path: path})
			}
			if cmd.Flags().Changed("lmcache-save-unfull-chunk") {
				cfg.LMCache.Keys.SaveUnfullChunk = &saveTail
			}
			if cfg.Tokenizer, err = tokenizerFolder(cmd.Context(), cfg.Tokenizer, "", cmd.ErrOrStderr()); err != nil {
				return fmt.Errorf("--tokenizer: %w", err)
			}
			cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			server, err := engine.New(cfg)
			if err != nil {
				return err
			}
			defer server.Close()
			l, err := listenOn(cmd.Context(), listen)
			if err != nil {
				return fmt.Errorf("--listen: %w", err)
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
	f.StringVar(&cfg.Tokenizer, "tokenizer", "", "folder with tokenizer.json and the chat template, or a model's id on a Hugging Face hub; without it four bytes of text are a token")
	f.StringVar(&cfg.ChatTemplate, "chat-template", "", "file with the chat template that replaces the tokenizer's")
	f.StringVar(&cfg.TimeZone, "time-zone", "", "time zone in which chat templates print the date, such as UTC (default: this process's)")
	f.StringSliceVar(&adapters, "lora-modules", nil, "LoRA adapters served, each name=path")
	eventFlags(f, &cfg.Events)
	lmcacheFlags(f, &cfg.LMCache, &saveTail)
	return cmd
}

// eventFlags are what vLLM's --kv-events-config would say.
func eventFlags(f *pflag.FlagSet, c *engine.EventsConfig) {
	f.StringVar(&c.Endpoint, "kv-events-endpoint", "", "address of the KV events, such as tcp://*:5557: with a * the engine binds, else it connects; without it there are none")
	f.StringVar(&c.Replay, "kv-events-replay-endpoint", "", "address that repeats KV events, such as tcp://*:5558; without it nothing does")
	f.StringVar(&c.Topic, "kv-events-topic", "", "topic of the KV events")
	f.IntVar(&c.BufferSteps, "kv-events-buffer-steps", c.BufferSteps, "messages kept to be repeated")
	f.StringVar(&c.VLLMVersion, "kv-events-vllm-version", c.VLLMVersion, "vLLM release whose form KV events have: arrays before 0.24, maps since")
	f.BoolVar(&c.BytesHashes, "kv-events-bytes-hashes", false, "name blocks by digests, as with VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0")
	f.BoolVar(&c.StoreOnly, "kv-events-store-only", false, "tell what is stored and never what goes")
}

// lmcacheFlags are what an engine's LMCache would be configured with.
func lmcacheFlags(f *pflag.FlagSet, c *engine.LMCacheConfig, saveTail *bool) {
	d := lmcache.DefaultKeyGroup()
	f.StringVar(&c.Pull, "lmcache-controller-pull", "", "host:port of the LMCache controller's pull socket; without it the engine has no LMCache")
	f.StringVar(&c.Reply, "lmcache-controller-reply", "", "host:port of the LMCache controller's reply socket")
	f.StringVar(&c.Instance, "lmcache-instance-id", "", "LMCache instance id (default: the model's name and a random suffix)")
	f.IntVar(&c.WorkerPort, "lmcache-worker-port", 0, "port registered as the LMCache worker's own")
	f.DurationVar(&c.Heartbeat, "lmcache-heartbeat", 10*time.Second, "time between heartbeats, if the controller wants any; 0 for none")
	f.IntVar(&c.Tokens, "lmcache-tokens", 0, "tokens that LMCache keeps in host memory (default: the profile's)")
	f.IntVar(&c.Keys.ChunkSize, "lmcache-chunk-size", d.ChunkSize, "LMCache's chunk_size in tokens")
	f.StringVar(&c.Keys.Algorithm, "lmcache-algorithm", d.Algorithm, "LMCache's pre_caching_hash_algorithm")
	f.StringVar(&c.Keys.LMCacheVersion, "lmcache-version", d.LMCacheVersion, "LMCache release whose keys are made")
	f.StringVar(&c.Keys.VLLMVersion, "lmcache-vllm-version", d.VLLMVersion, "vLLM release that LMCache finds; none if it cannot import vLLM")
	f.StringVar(&c.Keys.PythonVersion, "lmcache-python-version", d.PythonVersion, "CPython release whose hash() is used")
	f.StringVar(&c.Keys.PythonHashSeed, "lmcache-pythonhashseed", d.PythonHashSeed, "PYTHONHASHSEED of the engine; unset if it has none")
	f.BoolVar(saveTail, "lmcache-save-unfull-chunk", false, "LMCache's save_unfull_chunk (default: that of the release)")
}
