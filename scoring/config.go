package scoring

import (
	"errors"
	"fmt"
	"time"
)

// Config sets how endpoints are chosen.
type Config struct {
	// Policy chooses the endpoint: trapezoid sends a request where queued plus
	// own prefill work is least; roundrobin takes turns.
	Policy string `yaml:"policy"`
	// DecodingAge is how long a request past its first token is counted as
	// decoding when nothing tells of its end (no access log service).
	DecodingAge time.Duration `yaml:"decoding_age"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{Policy: PolicyTrapezoid, DecodingAge: 10 * time.Minute}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	if _, err := policyByID(c.Policy); err != nil {
		faults = append(faults, fmt.Errorf("%s.policy: %w", path, err))
	}
	if c.DecodingAge <= 0 {
		faults = append(faults, fmt.Errorf("%s.decoding_age: is %s; write a duration above zero, such as 10m", path, c.DecodingAge))
	}
	return errors.Join(faults...)
}
