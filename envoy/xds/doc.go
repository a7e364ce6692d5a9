// Package xds is the management server that running Envoys ask for listeners,
// routes, clusters and endpoints, all on one stream (ADS), by state of the
// world or delta.
//
// What it tells follows from the list of engines alone. The order in which it
// tells is what keeps requests from being lost: a cluster is there before a
// route leads to it, and goes after no route does.
package xds
