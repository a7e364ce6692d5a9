package routed

import (
	"fmt"

	"github.com/firsttoken/firsttoken/scoring"
)

// Config sets what we believe an engine to remember of what was routed to it.
type Config struct {
	// CapacityTokens is how many tokens one engine keeps cached, GPU and host
	// memory together. Guess high: half the true size costs more than twice.
	CapacityTokens scoring.Tokens `yaml:"capacity_tokens"`
}

// DefaultConfig is what holds where the operator says nothing: a GPU with
// 400,000 tokens of room.
func DefaultConfig() Config { return Config{CapacityTokens: 400_000} }

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	if c.CapacityTokens < block {
		return fmt.Errorf("%s.capacity_tokens: is %d; write at least %d, such as num_gpu_blocks times block_size of the engine", path, c.CapacityTokens, block)
	}
	return nil
}
