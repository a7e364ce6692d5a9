package lmcache

import (
	"encoding/binary"
	"math/big"
	"math/bits"
)

// CPython's hash() on 64-bit builds, for the few kinds of values that chunk
// keys are made of: Python/pyhash.c and Objects/tupleobject.c of 3.8 and later.

// pyModulus is the prime that hashes of numbers are reduced by.
const pyModulus = 1<<61 - 1

// hashInt is hash(n) of a Python int.
func hashInt(n int64) int64 {
	h := n % pyModulus
	if h == -1 {
		return -2
	}
	return h
}

// hashBigInt is hash(n) of a Python int of any size.
func hashBigInt(n *big.Int) int64 {
	return hashInt(new(big.Int).Rem(n, big.NewInt(pyModulus)).Int64())
}

// hashNone is hash(None) from Python 3.12 on.
const hashNone = 0xFCA86420

// tupleHash is the running hash of a tuple: xxHash's rounds over the hashes of
// its items.
type tupleHash uint64

const (
	tuplePrime1 = 11400714785074694791
	tuplePrime2 = 14029467366897019727
	tuplePrime5 = 2870177450012600261
)

func (t tupleHash) add(item uint64) tupleHash {
	return tupleHash(bits.RotateLeft64(uint64(t)+item*tuplePrime2, 31) * tuplePrime1)
}

// end is the hash of a tuple of n items.
func (t tupleHash) end(n int) int64 {
	h := uint64(t) + (uint64(n) ^ (tuplePrime5 ^ 3527539)) //nolint:gosec // a length
	if h == 1<<64-1 {
		return 1546275796
	}
	return int64(h) //nolint:gosec // the bits of a signed integer
}

// hashEmptyTuple is hash(()).
var hashEmptyTuple = tupleHash(tuplePrime5).end(0)

// hashTokens is hash(tokens) of a tuple of token ids.
func hashTokens(tokens []uint32) int64 {
	t := tupleHash(tuplePrime5)
	for _, id := range tokens {
		t = t.add(uint64(id))
	}
	return t.end(len(tokens))
}

// hashFour is hashTokens of four tuples of the same length. Each step of a hash
// waits for the one before it, and not for those of other hashes, so four take
// little more time than one.
func hashFour(tokens []uint32, size int) [4]int64 {
	t0, t1, t2, t3 := tupleHash(tuplePrime5), tupleHash(tuplePrime5), tupleHash(tuplePrime5), tupleHash(tuplePrime5)
	s0, s1, s2, s3 := tokens[:size], tokens[size:][:size], tokens[2*size:][:size], tokens[3*size:][:size]
	for i, id := range s0 {
		t0, t1, t2, t3 = t0.add(uint64(id)), t1.add(uint64(s1[i])), t2.add(uint64(s2[i])), t3.add(uint64(s3[i]))
	}
	return [4]int64{t0.end(size), t1.end(size), t2.end(size), t3.end(size)}
}

// hashLink is hash((prev, tokens, extra)), of hash(prev) and hash(tokens).
func hashLink(prev, tokens int64, x extra) int64 {
	t := tupleHash(tuplePrime5).add(uint64(prev)).add(uint64(tokens)) //nolint:gosec // the bits of a signed integer
	switch x {
	case extraNone:
		return t.add(hashNone).end(3)
	case extraEmpty:
		return t.add(uint64(hashEmptyTuple)).end(3) //nolint:gosec // the bits of a signed integer
	default:
		return t.end(2)
	}
}

// hashString is hash(text) of an ASCII string under PYTHONHASHSEED=seed; c and
// d are SipHash's rounds.
func hashString(seed uint32, text string, rounds func() (c, d int)) int64 {
	if text == "" {
		return 0
	}
	var key [16]byte
	if seed != 0 {
		x := seed
		for i := range key {
			x = x*214013 + 2531011
			key[i] = byte(x >> 16 & 0xff)
		}
	}
	c, d := rounds()
	h := int64(sipHash(c, d, binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:]), text)) //nolint:gosec // the bits of a signed integer
	if h == -1 {
		return -2
	}
	return h
}

// sipHash is SipHash-c-d of text under the key k0, k1.
func sipHash(c, d int, k0, k1 uint64, text string) uint64 {
	v0, v1 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d
	v2, v3 := k0^0x6c7967656e657261, k1^0x7465646279746573
	rounds := func(n int) {
		for range n {
			v0 += v1
			v2 += v3
			v1 = bits.RotateLeft64(v1, 13) ^ v0
			v3 = bits.RotateLeft64(v3, 16) ^ v2
			v0 = bits.RotateLeft64(v0, 32)
			v2 += v1
			v0 += v3
			v1 = bits.RotateLeft64(v1, 17) ^ v2
			v3 = bits.RotateLeft64(v3, 21) ^ v0
			v2 = bits.RotateLeft64(v2, 32)
		}
	}
	word := func(m uint64) {
		v3 ^= m
		rounds(c)
		v0 ^= m
	}
	b := []byte(text)
	last := uint64(len(b)) << 56
	for ; len(b) >= 8; b = b[8:] {
		word(binary.LittleEndian.Uint64(b))
	}
	for i, x := range b {
		last |= uint64(x) << (8 * i)
	}
	word(last)
	v2 ^= 0xff
	rounds(d)
	return v0 ^ v1 ^ v2 ^ v3
}
