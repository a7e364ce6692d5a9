package scoring

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Config sets how endpoints are chosen.
type Config struct {
	// Policy chooses the endpoint: ttft sends a request where its first token comes
	// soonest, with regard to those behind it, by what first tokens taught of the
	// engines' speed; trapezoid where queued plus own prefill work is least;
	// kvaware where most of it is cached; loadaware where what is cached outweighs
	// the load; prefixaware where most of it was sent before; session where its
	// session is at home (server.session_key); leastload where fewest are in flight;
	// qps where fewest were sent in the last minute; roundrobin takes turns; random
	// draws.
	Policy string `yaml:"policy"`
	// Models are settings for some models alone, by the name that clients ask for, an
	// alias or not, or by the engine's own.
	Models map[string]ModelConfig `yaml:"models"`
	// AttentionTokens is the prompt length from which on a token's attention
	// costs more than the model's linear layers: 2*params/(4*layers*heads*head_dim),
	// some 30,000 for most models.
	AttentionTokens Tokens `yaml:"attention_tokens"`
	// BatchTokens is how many tokens the engines compute in one step
	// (--max-num-batched-tokens).
	BatchTokens Tokens `yaml:"batch_tokens"`
	// KVRoom keeps requests from engines whose KV memory is full, where the
	// capacity of every engine of the model is known (ttft).
	KVRoom bool `yaml:"kv_room"`
	// FitPerKind learns the speed of each kind of engine (the endpoints' kind) of
	// a model by itself, where kv_room works; else one for all of the model (ttft).
	FitPerKind bool `yaml:"fit_per_kind"`
	// KVAwareThreshold is how many tokens of a prompt a match may leave out to count
	// for kvaware; 0: any match counts.
	KVAwareThreshold Tokens `yaml:"kvaware_threshold"`
	// LoadAwareBeta is how many prompts' worth of cached tokens loadaware gives for an
	// endpoint that has as much again in flight as the mean; 0: the load is of no
	// account.
	LoadAwareBeta float64 `yaml:"loadaware_beta"`
	// PrefixAwareMinMatch is how many leading tokens must have been sent to an
	// endpoint before for prefixaware to go by it, in blocks of 64; 0: any, and a
	// prompt that was sent nowhere goes anywhere.
	PrefixAwareMinMatch Tokens `yaml:"prefixaware_min_match"`
	// Hold lets requests wait here, the shortest first, while engines are busy.
	Hold HoldConfig `yaml:"hold"`
	// DecodingAge is how long a request past its first token is kept on the books
	// when nothing tells of its end (no access log service).
	DecodingAge time.Duration `yaml:"decoding_age"`
}

// ModelConfig sets how endpoints are chosen for one model.
type ModelConfig struct {
	// Policy takes the place of scoring.policy for this model; empty: it does not.
	Policy string `yaml:"policy"`
}

// ModelPolicies are the policies of models that have one of their own.
func (c Config) ModelPolicies() map[string]string {
	own := make(map[string]string)
	for model, m := range c.Models {
		if m.Policy != "" {
			own[model] = m.Policy
		}
	}
	return own
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{
		Policy:           PolicyTTFT,
		AttentionTokens:  30_000,
		BatchTokens:      8192,
		KVRoom:           true,
		KVAwareThreshold: 2000,
		LoadAwareBeta:    1,
		Hold:             DefaultHoldConfig(),
		DecodingAge:      10 * time.Minute,
	}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	if err := CheckPolicy(c.Policy); err != nil {
		faults = append(faults, fmt.Errorf("%s.policy: %w", path, err))
	}
	held := c.Policy == PolicyTTFT
	own := c.ModelPolicies()
	for _, model := range slices.Sorted(maps.Keys(own)) {
		id := own[model]
		held = held || id == PolicyTTFT
		if err := CheckPolicy(id); err != nil {
			faults = append(faults, fmt.Errorf("%s.models.%s.policy: %w", path, model, err))
		}
	}
	if c.AttentionTokens < 1 {
		faults = append(faults, fmt.Errorf("%s.attention_tokens: is %d; write a number of tokens above zero, such as 30000", path, c.AttentionTokens))
	}
	if c.BatchTokens < 1 {
		faults = append(faults, fmt.Errorf("%s.batch_tokens: is %d; write the engines' --max-num-batched-tokens, such as 8192", path, c.BatchTokens))
	}
	if c.KVAwareThreshold < 0 {
		faults = append(faults, fmt.Errorf("%s.kvaware_threshold: is %d; write a number of tokens, or 0 where any match counts", path, c.KVAwareThreshold))
	}
	if !(c.LoadAwareBeta >= 0) || math.IsInf(c.LoadAwareBeta, 1) { // nor NaN
		faults = append(faults, fmt.Errorf("%s.loadaware_beta: is %g; write 0 or more, such as 1", path, c.LoadAwareBeta))
	}
	if c.PrefixAwareMinMatch < 0 {
		faults = append(faults, fmt.Errorf("%s.prefixaware_min_match: is %d; write a number of tokens, or 0 where any match counts", path, c.PrefixAwareMinMatch))
	}
	if c.DecodingAge <= 0 {
		faults = append(faults, fmt.Errorf("%s.decoding_age: is %s; write a duration above zero, such as 10m", path, c.DecodingAge))
	}
	faults = append(faults, c.Hold.Validate(path+".hold"))
	if c.Hold.Enabled && !held {
		faults = append(faults, fmt.Errorf("%s.hold.enabled: policy %s does not know when an engine is free; set %s.policy to %s, or this to false",
			path, c.Policy, path, PolicyTTFT))
	}
	return errors.Join(faults...)
}
