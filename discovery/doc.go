// Package discovery says which endpoints there are: it resolves the names the
// operator wrote, asks each engine which models it serves, probes its health
// and publishes the list of scoring.Endpoint whenever it changes.
//
// What the list is, given what was resolved, probed and learned, is decided in
// the roster, which has no socket and no clock. The Watcher runs the calls.
package discovery
