package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// validateAliases joins all faults of the names that engines do not know.
func (c config) validateAliases() error {
	var faults []error
	for _, alias := range slices.Sorted(maps.Keys(c.Aliases)) {
		model := c.Aliases[alias]
		if alias == "" || model == "" {
			faults = append(faults, fmt.Errorf("aliases: %q stands for %q; write a name on both sides", alias, model))
			continue
		}
		if _, ok := c.Aliases[model]; ok {
			faults = append(faults, fmt.Errorf("aliases.%s: %q is an alias itself; write the name that engines serve", alias, model))
		}
		for i, e := range c.Endpoints {
			if slices.Contains(e.Models, alias) {
				faults = append(faults, fmt.Errorf("aliases.%s: endpoints[%d].models has this name too, so the engine knows it; write it in one place", alias, i))
			}
		}
	}
	return errors.Join(faults...)
}

// servedNowhere are the aliases whose model no endpoint serves, where all say
// which they do.
func (c config) servedNowhere() []string {
	var lost []string
	for _, alias := range slices.Sorted(maps.Keys(c.Aliases)) {
		may := false
		for _, e := range c.Endpoints {
			may = may || len(e.Models) == 0 || slices.Contains(e.Models, c.Aliases[alias])
		}
		if !may {
			lost = append(lost, alias)
		}
	}
	return lost
}
