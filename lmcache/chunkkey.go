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
	dst = slices.Grow(dst, (len(tokens)+h.chunkSize-1)/h.chunkSize)
	h.each(tokens, func(l link) { dst = append(dst, l.key()) })
	return dst
}

// Texts is Keys as people read them: integers in decimal, digests that LMCache
// does not fold into an integer in hex.
func (h *Hasher) Texts(tokens []uint32) []string {
	texts := []string{}
	h.each(tokens, func(l link) { texts = append(texts, h.text(l)) })
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
}

func (l *link) key() Key {
	if l.size > 0 {
		return Key(binary.BigEndian.Uint64(l.bytes[:8]))
	}
	return Key(l.n)
}

func (s *scheme) text(l link) string {
	switch {
	case l.size > 0:
		return hex.EncodeToString(l.bytes[:l.size])
	case s.function == builtin:
		return strconv.FormatInt(int64(l.n), 10) //nolint:gosec // the bits of a signed integer
	default:
		return strconv.FormatUint(l.n, 10)
	}
}

// encodings keeps the bytes of the chunk that is being hashed.
var encodings = sync.Pool{New: func() any { return new([]byte) }}

// each calls do with every link of the chain that tokens make.
func (s *scheme) each(tokens []uint32, do func(link)) {
	buf := encodings.Get().(*[]byte)
	defer encodings.Put(buf)
	l := s.none
	for chunk := range slices.Chunk(tokens, s.chunkSize) {
		if len(chunk) < s.chunkSize && !s.saveTail {
			return
		}
		if s.function == builtin {
			l.n = uint64(hashChunk(int64(l.n), chunk, s.extra)) //nolint:gosec // the bits of a signed integer
		} else {
			*buf = s.function.appendChunk((*buf)[:0], &l, chunk, s.extra)
			l = s.function.sum(*buf)
			if s.folded {
				l = link{n: uint64(l.key())}
			}
		}
		do(l)
	}
}
