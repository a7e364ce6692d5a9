// Package engine is a stand-in for a vLLM engine: the same HTTP answers, the
// same prefix cache and queueing, the same reports to an LMCache controller, but
// no GPU and no model. The words it answers mean nothing; when they come is what
// it imitates, by the step model of package simulator in real time.
//
// It serves people who try firsttoken without GPUs, the demo and the tests.
package engine
