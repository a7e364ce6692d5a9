// Package canary shares requests out to arms: parts of the traffic that are
// routed each in its own way, by the service's choice, by another policy or by
// Envoy itself, so that one can be tried beside the other. It decides by the
// request and the configuration alone: without clock, sockets or state.
package canary
