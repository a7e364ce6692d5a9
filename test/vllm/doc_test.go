// Package vllm_test runs the whole service, real Envoy included, before two
// real vLLM engines on a CPU, and compares what the service predicts with what
// the engines count. It needs 3.2 GB of packages and some ten minutes, so it
// runs by `make e2e-vllm` only.
package vllm_test
