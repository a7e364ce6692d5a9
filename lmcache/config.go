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
	// SharedCache says that engines can fetch each other's chunks: the best match
	// of any instance then counts for all endpoints of its model and group.
	SharedCache bool `yaml:"shared_cache"`
	// MaxKeys is the most records kept of what is cached, one for each chunk,
	// instance and location, of some 50 bytes. Past it, the chunks longest
	// not reported are forgotten and counted.
	MaxKeys int `yaml:"max_keys"`
}

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
	if c.Hashing != HashingAuto && c.Hashing != HashingFixed {
		faults = append(faults, fmt.Errorf("%s.hashing: is %q; write %s or %s", path, c.Hashing, HashingAuto, HashingFixed))
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
