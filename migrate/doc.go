// Package migrate turns what production-stack's router is told, its command line
// or its dynamic configuration, into this service's configuration, and says of
// each flag what became of it.
package migrate
