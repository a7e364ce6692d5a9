package lmcache

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"
)

// Digest is a chunk key of LMCache's multiprocess mode, which neither folds
// nor cuts what the hash gives.
type Digest [32]byte

// String is the form that LMCache's HTTP interfaces write.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// noneDigest begins every chain: LMCache hashes the number 0 as prefix, eight
// bytes, and one token id 0.
var noneDigest = Digest(blake3.Sum256(make([]byte, 8+4)))

// TokenHasher makes the chunk keys of LMCache's multiprocess mode (lmcache
// server) by its default algorithm, blake3. They depend on nothing but the token
// ids and the chunk size. It is immutable and safe for concurrent use.
type TokenHasher struct {
	chunkSize int
}

// NewTokenHasher makes a TokenHasher for lmcache server's --chunk-size, 1 to
// 8192 tokens.
func NewTokenHasher(chunkSize int) (*TokenHasher, error) {
	if chunkSize < 1 || chunkSize > maxChunkSize {
		return nil, fmt.Errorf("chunk_size: is %d; write a number from 1 to %d, such as 256", chunkSize, maxChunkSize)
	}
	return &TokenHasher{chunkSize}, nil
}

// ChunkSize is the number of tokens of a chunk.
func (h *TokenHasher) ChunkSize() int { return h.chunkSize }

// NoneHash is what stands before the first chunk, in hex.
func (h *TokenHasher) NoneHash() string { return noneDigest.String() }

// Keys appends the keys of the complete chunks of tokens in order; what does
// not fill a chunk has none.
func (h *TokenHasher) Keys(dst []Digest, tokens []uint32) []Digest {
	dst = slices.Grow(dst, len(tokens)/h.chunkSize)
	// prev || tokens as big-endian uint32, TokenHasher in LMCache's
	// v1/multiprocess/token_hasher.py.
	buf := make([]byte, len(noneDigest)+4*h.chunkSize)
	prev := noneDigest
	for ; len(tokens) >= h.chunkSize; tokens = tokens[h.chunkSize:] {
		copy(buf, prev[:])
		for i, id := range tokens[:h.chunkSize] {
			binary.BigEndian.PutUint32(buf[len(prev)+4*i:], id)
		}
		prev = blake3.Sum256(buf)
		dst = append(dst, prev)
	}
	return dst
}
