// Package hub fetches files of a model from a Hugging Face hub, by the protocol
// and into the folders that all of Hugging Face's programs share: what vLLM has
// fetched on the same machine is found, and what is fetched here is found by
// vLLM.
package hub
