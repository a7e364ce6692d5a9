// Package fidelity joins the sources of cache truth into the one that the
// picker asks, and holds each of them to what it says.
//
// It knows what was routed where. A prompt that an engine has computed must be
// shown by the sources that report of that engine (the echo), and what they
// promised of it must be found again in what the engine itself counts (the
// hits). A source that fails at either is left out for that endpoint until it
// is right again, and a Finding says what is wrong and what to change.
//
// Nothing here has a clock, a socket or a goroutine of its own: the service
// tells of requests and readings, and calls Checker.Probe from time to time.
package fidelity
