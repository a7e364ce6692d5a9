package coordinator

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// Config says how LMCache's servers, one on each node in multiprocess mode,
// tell what they hold. endpoints[].lmcache.server names an endpoint's server.
type Config struct {
	// Listen is where lmcache server's --coordinator-url points at, host:port;
	// the real coordinator's port is 9300. Servers need
	// --coordinator-event-reporting too. Empty: nothing is served. Whoever
	// reaches it can tell us anything of any cache: keep strangers away from it.
	Listen string `yaml:"listen"`
	// Fleet says how the servers make their keys.
	Fleet `yaml:",inline"`
	// MaxKeys is the most keys kept with listen, one for each chunk and rank,
	// about 500 bytes each. Past it the longest unused are forgotten and counted.
	MaxKeys int `yaml:"max_keys"`
	// BodyLimit is the largest report in bytes; a longer one is answered 413. A
	// chunk of 256 tokens takes about 2 KB.
	BodyLimit int64 `yaml:"body_limit_bytes"`
	// InstanceTimeout is how long after its last heartbeat a server is taken to
	// be gone, and all that it held in memory with it. Servers send one every 5s.
	InstanceTimeout time.Duration `yaml:"instance_timeout"`
}

// Fleet is what decides which keys the servers make of a prompt, and how fast
// they load it.
type Fleet struct {
	// ChunkSize is the --chunk-size of lmcache server in tokens, 1 to 8192. The
	// --hash-algorithm must be blake3, which is the default there.
	ChunkSize int `yaml:"chunk_size"`
	// Models says what LMCache calls a model and over how many ranks its engines
	// split it, by the engines' own name for it. A model left out has one rank
	// and the same name.
	Models map[string]Model `yaml:"models"`
	// SecondsPerToken is how long an engine takes to load one token; 0: not known.
	SecondsPerToken TierSeconds `yaml:"seconds_per_token"`
}

// Model is a model in LMCache's keys.
type Model struct {
	// Name is vLLM's --model (not its --served-model-name); empty: the engine's
	// own name.
	Name string `yaml:"name"`
	// WorldSize is how many ranks hold a part of each chunk: tensor times
	// pipeline parallel, 1 to 255; without the tensor ranks for models with MLA,
	// whose ranks all hold the same. 0: 1.
	WorldSize int `yaml:"world_size"`
}

// TierSeconds is the time to load one token from each tier, in seconds.
type TierSeconds struct {
	// L1 is the server's memory.
	L1 float64 `yaml:"l1"`
	// L2 is the storage behind it.
	L2 float64 `yaml:"l2"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{
		Fleet:           Fleet{ChunkSize: 256},
		MaxKeys:         1_000_000,
		BodyLimit:       64 << 20,
		InstanceTimeout: 30 * time.Second,
	}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	faults := []error{c.validate(path)}
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			faults = append(faults, fmt.Errorf("%s.listen: %q is no address (%w); write host:port", path, c.Listen, err))
		}
	}
	if c.MaxKeys < 1 {
		faults = append(faults, fmt.Errorf("%s.max_keys: is %d; write a number above zero, such as %d", path, c.MaxKeys, DefaultConfig().MaxKeys))
	}
	if c.BodyLimit < 1 {
		faults = append(faults, fmt.Errorf("%s.body_limit_bytes: is %d; write a number above zero, such as %d", path, c.BodyLimit, DefaultConfig().BodyLimit))
	}
	if c.InstanceTimeout <= 0 {
		faults = append(faults, fmt.Errorf("%s.instance_timeout: is %s; write a duration above zero, such as 30s", path, c.InstanceTimeout))
	}
	return errors.Join(faults...)
}

func (f Fleet) validate(path string) error {
	var faults []error
	if _, err := lmcache.NewTokenHasher(f.ChunkSize); err != nil {
		faults = append(faults, fmt.Errorf("%s.%w", path, err))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Models)) {
		m := f.Models[name]
		if m.WorldSize < 0 || m.WorldSize > maxWorldSize {
			faults = append(faults, fmt.Errorf("%s.models.%s.world_size: is %d; write the number of ranks, 1 to %d", path, name, m.WorldSize, maxWorldSize))
		}
		if strings.Contains(m.Name, "@") {
			faults = append(faults, fmt.Errorf("%s.models.%s.name: %q has an @, which LMCache takes in no model's name", path, name, m.Name))
		}
	}
	for _, t := range []Tier{TierL1, TierL2} {
		if s := f.Seconds(t); !(s >= 0 && s <= 1) { // NaN is no number either
			faults = append(faults, fmt.Errorf("%s.seconds_per_token.%s: is %g; write seconds for one token, from 0 to 1, such as 6.5e-6", path, t, s))
		}
	}
	return errors.Join(faults...)
}

// maxWorldSize: a key has one byte for it.
const maxWorldSize = 255

// Space is what keys of one model and salt have in common.
type Space struct {
	Model string // LMCache's name of it
	Salt  string
	// WorldSize is the number of ranks, at least 1.
	WorldSize int
}

// Space is where an endpoint's engine looks for the prompt. The engine's own
// name decides, whatever the client calls the model: LMCache has one cache for
// a model and its adapters.
func (f Fleet) Space(p *scoring.Prompt, e *scoring.Endpoint) Space {
	name := p.Model
	if len(e.Models) > 0 {
		name = e.Models[0]
	}
	m := f.Models[name]
	if m.Name != "" {
		name = m.Name
	}
	return Space{name, p.Salt, max(1, m.WorldSize)}
}

// Seconds is how long a token of the tier takes to load.
func (f Fleet) Seconds(t Tier) float64 {
	if t == TierL1 {
		return f.SecondsPerToken.L1
	}
	return f.SecondsPerToken.L2
}
