// Package trace reads what was once asked of a fleet of engines: when each
// request came, how long it and its answer were, and which prefixes it shared
// with others. It knows three formats: Mooncake's JSON Lines, Azure's CSV, and
// the decision records that firsttoken's admin port hands out.
//
// It opens no file: the caller gives a reader and the name that errors call it.
package trace
