package engine

import (
	"errors"
	"fmt"
	"log/slog"

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
	// LMCache makes the engine report what it holds.
	LMCache LMCacheConfig
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
	if c.MaxModelLen < 2 || c.MaxModelLen > c.Profile.KVTokens {
		fault("max-model-len", "is %d; write 2 to %d, the KV memory of profile %s", c.MaxModelLen, c.Profile.KVTokens, c.Profile.Name)
	}
	if c.AnswerTokens < 1 {
		fault("answer-tokens", "is %d; write 1 or more", c.AnswerTokens)
	}
	if c.LMCache.Pull != "" || c.LMCache.Reply != "" {
		if err := c.LMCache.complete("", c.Profile).validate(path); err != nil {
			faults = append(faults, err)
		}
	}
	if err := c.Faults.validate(); err != nil {
		faults = append(faults, fmt.Errorf("%s%w", path, err))
	}
	return errors.Join(faults...)
}
