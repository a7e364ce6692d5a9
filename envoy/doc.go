// Package envoy is what Envoy must be told: the names of the headers and
// metadata through which the service answers it, and a complete static config
// built from Envoy's own types.
package envoy
