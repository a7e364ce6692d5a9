package kvevents

import "fmt"

// Config bounds what is remembered of the engines' events. Where each engine
// publishes is told with its endpoint.
type Config struct {
	// MaxBlocks is the most blocks remembered over all endpoints, about 125
	// bytes each. Past it, each endpoint's oldest go as its new ones come.
	MaxBlocks int `yaml:"max_blocks"`
}

// DefaultConfig is what holds where the operator says nothing: room for 64
// engines with a million tokens each in blocks of 16.
func DefaultConfig() Config { return Config{MaxBlocks: 4_000_000} }

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	if c.MaxBlocks < 1 {
		return fmt.Errorf("%s.max_blocks: is %d; write at least 1, such as %d", path, c.MaxBlocks, DefaultConfig().MaxBlocks)
	}
	return nil
}
