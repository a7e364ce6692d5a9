package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/simulator"
)

// Config describes one simulated engine. It has flags instead of a YAML form:
// engines are started one by one.
type Config struct {
	// Models are the names served; the first is the engine's own.
	Models []string
	// Profile is the speed and size of the engine.
	Profile simulator.Profile
	// TimeScale is how many seconds pass for one second of the profile: 0.1
	// runs ten times as fast.
	TimeScale float64
	// MaxModelLen is the most tokens of prompt and answer together.
	MaxModelLen int
	// BlockTokens is the size of a block of the prefix cache.
	BlockTokens int
	// AnswerTokens is how long an answer gets where the client sets no limit.
	AnswerTokens int
	// PromptTokensDetails: answers tell how many prompt tokens were cached, as
	// with vLLM's --enable-prompt-tokens-details.
	PromptTokensDetails bool
	// RequestIDHeaders: answers carry X-Request-Id, as with vLLM's
	// --enable-request-id-headers.
	RequestIDHeaders bool
	// APIKey is the bearer token that paths below /v1 demand; empty: none.
	APIKey string
	// Tokenizer is the folder with the model's tokenizer files; empty: every four
	// bytes of text count as one token, and token ids in prompts as themselves.
	Tokenizer string
	// ChatTemplate is a file with the chat template that replaces the
	// tokenizer's, as with vLLM's --chat-template; empty: none does.
	ChatTemplate string
	// TimeZone is the one in which chat templates print the date, as with the
	// environment variable TZ; empty: this process's own.
	TimeZone string
	// Adapters are LoRA adapters, served beside the model.
	Adapters []Adapter
	// LMCache makes the engine report what it holds.
	LMCache LMCacheConfig
	// Events makes the engine publish what changes in its prefix cache.
	Events EventsConfig
	// Faults are what is wrong with the engine from the beginning.
	Faults Faults
	// Log gets what an operator would want to know; nil: nothing is logged.
	Log *slog.Logger
}

// DefaultConfig is a healthy engine without a model name.
func DefaultConfig() Config {
	profile, err := simulator.ProfileByName("demo")
	if err != nil {
		panic(err) // the name is in the table
	}
	return Config{
		Profile:             profile,
		TimeScale:           1,
		MaxModelLen:         32_768,
		BlockTokens:         16,
		AnswerTokens:        128,
		PromptTokensDetails: true,
		Events:              DefaultEventsConfig(),
	}
}

// Validate joins all faults; each line begins with path and the name of the
// flag.
func (c Config) Validate(path string) error {
	var faults []error
	fault := func(flag, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s%s: %s", path, flag, fmt.Sprintf(format, args...)))
	}
	if len(c.Models) == 0 {
		fault("model", "is missing; write the name that clients ask for")
	}
	for _, m := range c.Models {
		if m == "" {
			fault("model", "one name is empty")
		}
	}
	if c.TimeScale <= 0 || c.TimeScale > 1000 {
		fault("time-scale", "is %g; write a number above 0 and at most 1000, 1 for real time", c.TimeScale)
	}
	if c.BlockTokens < 1 {
		fault("block-size", "is %d; write a number of tokens such as 16", c.BlockTokens)
	}
	if most := c.blocks() * c.BlockTokens; c.MaxModelLen < 2 || c.MaxModelLen > most {
		fault("max-model-len", "is %d; write 2 to %d, what fits into the KV memory of profile %s in blocks of %d", c.MaxModelLen, most, c.Profile.Name, c.BlockTokens)
	}
	if c.AnswerTokens < 1 {
		fault("answer-tokens", "is %d; write 1 or more", c.AnswerTokens)
	}
	if c.LMCache.Pull != "" || c.LMCache.Reply != "" {
		if err := c.LMCache.complete("", c.Profile).validate(path); err != nil {
			faults = append(faults, err)
		}
	}
	for i, a := range c.Adapters {
		if a.Name == "" || slices.Contains(c.Models, a.Name) || slices.ContainsFunc(c.Adapters[:i], func(o Adapter) bool { return o.Name == a.Name }) {
			fault("lora-modules", "%q is no name of its own; write each adapter as name=path", a.Name)
		}
	}
	if _, err := time.LoadLocation(c.TimeZone); err != nil {
		fault("time-zone", "%v; write an IANA name such as UTC", err)
	}
	if c.ChatTemplate != "" && c.Tokenizer == "" {
		fault("chat-template", "is given without tokenizer; name the folder that holds tokenizer.json")
	}
	if err := c.Events.validate(path); err != nil {
		faults = append(faults, err)
	}
	if err := c.Faults.validate(); err != nil {
		faults = append(faults, fmt.Errorf("%s%w", path, err))
	}
	return errors.Join(faults...)
}

// blocks is how many fit into the KV memory.
func (c *Config) blocks() int { return c.Profile.KVTokens / max(1, c.BlockTokens) }
