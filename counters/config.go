package counters

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Config says how the engines' counters are read.
type Config struct {
	// Enabled reads them. If false, an engine's capacity is what memory says,
	// and a restart is not seen where the engine reports nothing else.
	Enabled bool `yaml:"enabled"`
	// Path is where an engine shows its metrics in Prometheus' text format.
	Path string `yaml:"path"`
	// Interval is the time between two readings of an engine. An engine that is
	// restarted is believed to hold its cache until the next one.
	Interval time.Duration `yaml:"interval"`
	// Timeout bounds one reading, connection included.
	Timeout time.Duration `yaml:"timeout"`
}

// DefaultConfig is what holds where the operator says nothing: an answer of
// vLLM's has 60 KB, and costs the engine's web server some milliseconds.
func DefaultConfig() Config {
	return Config{Enabled: true, Path: "/metrics", Interval: 2 * time.Second, Timeout: 2 * time.Second}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	if !strings.HasPrefix(c.Path, "/") {
		faults = append(faults, fmt.Errorf("%s.path: %q does not begin with a slash; write a path such as /metrics", path, c.Path))
	}
	if c.Interval < 100*time.Millisecond {
		faults = append(faults, fmt.Errorf("%s.interval: is %s; write a duration of at least 100ms, such as 2s", path, c.Interval))
	}
	if c.Timeout < time.Millisecond {
		faults = append(faults, fmt.Errorf("%s.timeout: is %s; write a duration of at least 1ms, such as 2s", path, c.Timeout))
	}
	return errors.Join(faults...)
}
