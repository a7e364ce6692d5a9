package routed

import (
	"errors"
	"fmt"
	"math"

	"github.com/firsttoken/firsttoken/scoring"
)

// Config sets what we believe an engine to remember of what was routed to it.
type Config struct {
	// CapacityTokens is how many tokens an engine keeps cached on its GPU, where
	// it does not say itself (vllm:cache_config_info). Guess high: half the true
	// size costs more than twice.
	CapacityTokens scoring.Tokens `yaml:"capacity_tokens"`
	// HostTokens is how many more tokens each engine keeps in the memory of its
	// host (LMCache, KV offloading), where nothing reports what is there. 0:
	// what the engine says, else none.
	HostTokens scoring.Tokens `yaml:"host_tokens"`
	// HostSecondsPerToken is how long an engine takes to load one of those
	// tokens. Worth telling where it is above a third of the time to compute
	// one, such as 0.00002; 0: it counts as nothing.
	HostSecondsPerToken float64 `yaml:"host_seconds_per_token"`
}

// DefaultConfig is what holds where the operator says nothing: a GPU with
// 400,000 tokens of room, and no cache in the host.
func DefaultConfig() Config { return Config{CapacityTokens: 400_000} }

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	if c.CapacityTokens < block || c.CapacityTokens > mostTokens {
		faults = append(faults, fmt.Errorf("%s.capacity_tokens: is %d; write %d to %d, such as num_gpu_blocks times block_size of the engine", path, c.CapacityTokens, block, mostTokens))
	}
	if c.HostTokens < 0 || c.HostTokens > mostTokens {
		faults = append(faults, fmt.Errorf("%s.host_tokens: is %d; write 0 to %d, such as max_local_cpu_size of LMCache divided by the bytes of a token", path, c.HostTokens, mostTokens))
	}
	if s := c.HostSecondsPerToken; s < 0 || s > 1 || math.IsNaN(s) {
		faults = append(faults, fmt.Errorf("%s.host_seconds_per_token: is %v; write seconds between 0 and 1, such as 0.00002", path, s))
	}
	return errors.Join(faults...)
}
