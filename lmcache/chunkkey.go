package lmcache

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"sync"
)

// Hasher makes chunk keys of token ids by the settings of one KeyGroup. It is
// immutable and safe for concurrent use.
type Hasher struct {
	scheme
}

// NewHasher makes a Hasher. Empty fields of g are as in DefaultKeyGroup. The
// error names the settings from which no key can be predicted, and why.
func NewHasher(g KeyGroup) (*Hasher, error) {
	s, faults := g.Or(DefaultKeyGroup()).scheme()
	if len(faults) > 0 {
		return nil, joinFaults(faults)
	}
	return &Hasher{s}, nil
}

// ChunkSize is the number of tokens of a full chunk.
func (h *Hasher) ChunkSize() int { return h.chunkSize }

// SavesTail reports whether what does not fill a chunk has a key too.
func (h *Hasher) SavesTail() bool { return h.saveTail }

// Keys appends the keys of the full chunks of tokens in order and, if
// SavesTail, that of what is left over.
func (h *Hasher) Keys(dst []Key, tokens []uint32) []Key {
	c := h.begin()
	defer c.end()
	tokens = h.chunked(tokens)
	dst = slices.Grow(dst, (len(tokens)+h.chunkSize-1)/h.chunkSize)
	if h.function == builtin {
		for four := 4 * h.chunkSize; len(tokens) >= four; tokens = tokens[four:] {
			for _, hash := range hashFour(tokens, h.chunkSize) {
				dst = append(dst, c.nextHashed(hash).key())
			}
		}
	}
	for chunk := range slices.Chunk(tokens, h.chunkSize) {
		dst = append(dst, c.next(chunk).key())
	}
	return dst
}

// Texts is Keys as people read them: integers in decimal, digests that LMCache
// does not fold into an integer in hex.
func (h *Hasher) Texts(tokens []uint32) []string {
	c := h.begin()
	defer c.end()
	texts := []string{}
	for chunk := range slices.Chunk(h.chunked(tokens), h.chunkSize) {
		texts = append(texts, h.text(c.next(chunk)))
	}
	return texts
}

// NoneHash is what stands before the first chunk, in the form of Texts.
func (h *Hasher) NoneHash() string { return h.noneText }

// link is one link of a chain of chunks: a digest of size bytes, or an integer
// where size is 0; a negative one in two's complement.
type link struct {
	n     uint64
	bytes [32]byte
	size  int
	// hashed: n is Python's hash of the link, which itself is not known.
	hashed bool
}

func (l *link) key() Key {
	if l.size > 0 {
		return Key(binary.BigEndian.Uint64(l.bytes[:8]))
	}
	return Key(l.n)
}

func (s *scheme) text(l *link) string {
	switch {
	case l.size > 0:
		return hex.EncodeToString(l.bytes[:l.size])
	case s.function == builtin:
		return strconv.FormatInt(int64(l.n), 10) //nolint:gosec // the bits of a signed integer
	default:
		return strconv.FormatUint(l.n, 10)
	}
}

// chunked is the tokens that have a key.
func (s *scheme) chunked(tokens []uint32) []uint32 {
	if s.saveTail {
		return tokens
	}
	return tokens[:len(tokens)-len(tokens)%s.chunkSize]
}

// chain makes link after link.
type chain struct {
	*scheme
	last link
	// encoding is what the last chunk was serialised into.
	encoding []byte
}

var chains = sync.Pool{New: func() any { return new(chain) }}

// begin starts a chain; who got it calls end.
func (s *scheme) begin() *chain {
	c := chains.Get().(*chain)
	c.scheme, c.last = s, s.none
	return c
}

func (c *chain) end() {
	c.scheme = nil
	chains.Put(c)
}

// next is the link of the chunk that follows. It is valid until the next call.
func (c *chain) next(tokens []uint32) *link {
	if c.function == builtin {
		return c.nextHashed(hashTokens(tokens))
	}
	c.encoding = c.function.appendChunk(c.encoding[:0], &c.last, tokens, c.extra)
	c.last = c.function.sum(c.encoding)
	if c.folded {
		c.last = link{n: uint64(c.last.key())}
	}
	return &c.last
}

// nextHashed is next of builtin, of a chunk whose tokens have that hash.
func (c *chain) nextHashed(tokens int64) *link {
	prev := int64(c.last.n) //nolint:gosec // the bits of a signed integer
	if !c.last.hashed {
		prev = hashInt(prev)
	}
	c.last = link{n: uint64(hashLink(prev, tokens, c.extra))} //nolint:gosec // the bits of a signed integer
	return &c.last
}
