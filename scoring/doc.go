// Package scoring is the core of firsttoken: the vocabulary of the service and
// the decision itself. It knows which endpoints exist, what each has been sent
// and has not finished, how much of a prompt each has cached, and chooses.
//
// The package has no clock, no socket and no goroutine. It is given a Clock, so
// the same code scores live requests and replayed traces.
package scoring
