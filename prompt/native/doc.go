// Package native turns text into token ids and chat messages into prompt text,
// in this process and without a network: the firsttoken_native Rust library
// (fastokens or Hugging Face tokenizers, and minijinja) behind a C ABI.
//
// It knows nothing of requests, models or engines. What a chat template is given
// and how its text is cut is the business of package prompt.
//
// The library is linked statically. `make build` compiles it and tells the
// linker where it is (build.sh); with the build tag nonative, or without cgo,
// the package compiles without it and everything returns ErrNotBuilt.
package native
