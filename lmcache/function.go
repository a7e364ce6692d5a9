package lmcache

import (
	"crypto/sha256"

	"github.com/zeebo/xxh3"
)

// algorithms are the values of pre_caching_hash_algorithm that any vLLM knows.
var algorithms = []string{"builtin", "sha256", "sha256_cbor", "sha256_cbor_64bit", "xxhash", "xxhash_cbor"}

// function is how LMCache hashes (previous, tokens, extra).
type function struct {
	name string
	// size is the digest's in bytes; 0: the hash is an integer.
	size int
	// steady: vLLM from 0.29 on begins the chain with a fixed string where
	// PYTHONHASHSEED is not set.
	steady       bool
	sum          func(data []byte) link
	appendString func(b []byte, text string) []byte
	appendChunk  func(b []byte, prev *link, tokens []uint32, x extra) []byte
}

var (
	// builtin is Python's hash(); it does not serialise.
	builtin      = &function{name: "builtin"}
	sha256Pickle = &function{"sha256", sha256.Size, true, sumSHA256, appendPickledString, appendPickledChunk}
	sha256CBOR   = &function{"sha256_cbor", sha256.Size, true, sumSHA256, appendCBORString, appendCBORChunk}
	xxhPickle    = &function{"xxhash", 16, false, sumXXH3, appendPickledString, appendPickledChunk}
	xxhCBOR      = &function{"xxhash_cbor", 16, false, sumXXH3, appendCBORString, appendCBORChunk}
)

// function is the one that LMCache finds for the algorithm: it asks vLLM, and
// takes Python's hash() where vLLM is missing or does not know the name.
func (e environment) function(algorithm string) *function {
	if !e.hasVLLM || e.vllm.before(0, 10, 0) {
		return builtin
	}
	switch algorithm {
	case "sha256":
		return sha256Pickle
	case "sha256_cbor", "sha256_cbor_64bit":
		return sha256CBOR
	}
	if e.vllm.before(0, 14, 0) {
		return builtin
	}
	switch algorithm {
	case "xxhash":
		return xxhPickle
	case "xxhash_cbor":
		return xxhCBOR
	}
	return builtin
}

func sumSHA256(data []byte) link { return link{bytes: sha256.Sum256(data), size: sha256.Size} }

func sumXXH3(data []byte) link {
	l := link{size: 16}
	sum := xxh3.Hash128(data).Bytes()
	copy(l.bytes[:], sum[:])
	return l
}
