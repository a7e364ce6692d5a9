package lmcache

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Config says how the engines' LMCache is set up and how much to remember of
// what it reports.
type Config struct {
	// Hashing says whether the chunk-key settings below are only where to begin
	// (auto: where an engine's keys do not match them, others are tried until
	// some match) or are taken for true (fixed).
	Hashing string `yaml:"hashing"`
	// Keys are the chunk-key settings of every engine for which nothing else is
	// said. With hashing fixed they must be those that the engines really run
	// with.
	Keys KeyGroup `yaml:"keys"`
	// Groups are further chunk-key settings by name. What a group leaves empty
	// is as in keys, none_hash excepted.
	Groups map[string]KeyGroup `yaml:"groups"`
	// Models says which group's settings the engines of a model have, by model
	// name. An endpoint's own group goes before.
	Models map[string]string `yaml:"models"`
	// SharedCache says that engines can fetch each other's chunks: what any
	// instance holds then counts for all endpoints of its model and group. Worth
	// it where the engines' host memory for LMCache is at least five times
	// their GPU memory for KV; below that, copies displace what is needed.
	SharedCache bool `yaml:"shared_cache"`
	// Transfer is how long an engine takes to load what is cached, by where it
	// is. Loading then counts like computing: an engine that would load for long
	// can lose against one that computes anew.
	Transfer TransferSeconds `yaml:"transfer_seconds_per_token"`
	// MaxKeys is the most records kept of what is cached, one for each chunk,
	// instance and location, of some 50 bytes. Past it, the chunks longest
	// not reported are forgotten and counted.
	MaxKeys int `yaml:"max_keys"`
}

// TransferSeconds are seconds for one token; 0: free, or not known. A model of 8
// billion parameters has 128 KiB of KV a token: 6.5e-6 from host memory over
// PCIe 4, 2e-5 over a network of 50 Gbit/s.
type TransferSeconds struct {
	// CPU is from the engine's own host memory (LocalCPUBackend).
	CPU float64 `yaml:"cpu"`
	// Disk is from the engine's own disk (LocalDiskBackend).
	Disk float64 `yaml:"disk"`
	// Remote is from any other place that LMCache reports.
	Remote float64 `yaml:"remote"`
	// P2P is from another engine, where shared_cache is true.
	P2P float64 `yaml:"p2p"`
}

// of is the time for a token at one of LMCache's locations.
func (t TransferSeconds) of(location string) float64 {
	switch location {
	case LocationCPU:
		return t.CPU
	case locationDisk:
		return t.Disk
	case LocationPeer:
		return t.P2P
	default:
		return t.Remote
	}
}

// elsewhere reports whether what is held there has to come from outside the
// engine's own machine.
func elsewhere(location string) bool { return location != LocationCPU && location != locationDisk }

// LocationPeer is where an endpoint finds what only other engines hold.
const LocationPeer = "P2PBackend"

// locationDisk is the other location that LMCache reports.
const locationDisk = "LocalDiskBackend"

// Values of Config.Hashing.
const (
	HashingAuto  = "auto"
	HashingFixed = "fixed"
)

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{Hashing: HashingAuto, Keys: DefaultKeyGroup(), MaxKeys: 2_000_000}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	faults := []error{c.Keys.Validate(path + ".keys")}
	if c.Keys.ChunkSize == 0 {
		// Groups take what they leave out from here; here there is nothing to take.
		faults = append(faults, fmt.Errorf("%s.keys.chunk_size: is 0; write LMCache's chunk_size, such as %d, or leave it out", path, DefaultKeyGroup().ChunkSize))
	}
	if c.Hashing != HashingAuto && c.Hashing != HashingFixed {
		faults = append(faults, fmt.Errorf("%s.hashing: is %q; write %s or %s", path, c.Hashing, HashingAuto, HashingFixed))
	}
	for _, t := range []struct {
		key     string
		seconds float64
	}{{"cpu", c.Transfer.CPU}, {"disk", c.Transfer.Disk}, {"remote", c.Transfer.Remote}, {"p2p", c.Transfer.P2P}} {
		if !(t.seconds >= 0 && t.seconds <= 1) { // NaN is no number either
			faults = append(faults, fmt.Errorf("%s.transfer_seconds_per_token.%s: is %g; write seconds for one token, from 0 to 1, such as 6.5e-6", path, t.key, t.seconds))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Groups)) {
		faults = append(faults, c.Groups[name].Or(c.Keys).Validate(path+".groups."+name))
		if name == "" {
			faults = append(faults, fmt.Errorf("%s.groups: a group has an empty name; give it one", path))
		}
	}
	for _, model := range slices.Sorted(maps.Keys(c.Models)) {
		if err := c.groupFault(c.Models[model]); err != nil {
			faults = append(faults, fmt.Errorf("%s.models.%s: %w", path, model, err))
		}
	}
	if c.MaxKeys < 1 {
		faults = append(faults, fmt.Errorf("%s.max_keys: is %d; write a number above zero, such as %d", path, c.MaxKeys, DefaultConfig().MaxKeys))
	}
	return errors.Join(faults...)
}

// groupFault is an error that lists the groups where there is none of that name.
func (c Config) groupFault(name string) error {
	if _, ok := c.Groups[name]; ok {
		return nil
	}
	return fmt.Errorf("names the group %q, which is not among the groups %q", name, slices.Sorted(maps.Keys(c.Groups)))
}
