package remote

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Config says which registries of LMCache run elsewhere, to be asked about every
// prompt with token ids. Each costs a decision its answer's time.
type Config struct {
	// Coordinator is the URL of an lmcache coordinator, such as
	// http://lmcache:9300. lmcache.coordinator says how its fleet makes keys. It
	// excludes lmcache.coordinator.listen.
	Coordinator string `yaml:"coordinator"`
	// Controller is the URL of an lmcache_controller, such as
	// http://lmcache:9000. It answers less than our own (lmcache.enabled): for
	// each chunk only one engine that has it, always in chunks of 256 tokens
	// hashed by Python's hash().
	Controller string `yaml:"controller"`
	// Deadline bounds each question. server.decision_deadline bounds it too.
	Deadline time.Duration `yaml:"deadline"`
	// Concurrency is how many questions are asked of a registry at once; more
	// wait.
	Concurrency int `yaml:"concurrency"`
	// MembersInterval is how often a registry is asked who reports to it.
	MembersInterval time.Duration `yaml:"members_interval"`
	// Failures is how many questions that fail in a row end the asking, for
	// pause.
	Failures int `yaml:"failures"`
	// Pause is how long a registry that failed is left alone; then one question
	// tries it.
	Pause time.Duration `yaml:"pause"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{
		Deadline:        100 * time.Millisecond,
		Concurrency:     16,
		MembersInterval: 5 * time.Second,
		Failures:        5,
		Pause:           10 * time.Second,
	}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	for _, u := range []struct{ key, url string }{{"coordinator", c.Coordinator}, {"controller", c.Controller}} {
		parsed, err := url.Parse(u.url)
		if u.url != "" && (err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" || strings.Trim(parsed.Path, "/") != "" || parsed.RawQuery != "") {
			faults = append(faults, fmt.Errorf("%s.%s: %q is no address of a registry; write http://host:port", path, u.key, u.url))
		}
	}
	for _, d := range []struct {
		key   string
		value time.Duration
		like  string
	}{
		{"deadline", c.Deadline, "100ms"}, {"members_interval", c.MembersInterval, "5s"}, {"pause", c.Pause, "10s"},
	} {
		if d.value < time.Millisecond {
			faults = append(faults, fmt.Errorf("%s.%s: is %s; write a duration of at least 1ms, such as %s", path, d.key, d.value, d.like))
		}
	}
	if c.Concurrency < 1 {
		faults = append(faults, fmt.Errorf("%s.concurrency: is %d; write a number above zero, such as 16", path, c.Concurrency))
	}
	if c.Failures < 1 {
		faults = append(faults, fmt.Errorf("%s.failures: is %d; write a number above zero, such as 5", path, c.Failures))
	}
	return errors.Join(faults...)
}
