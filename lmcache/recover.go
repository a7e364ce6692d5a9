package lmcache

import "math/bits"

// Python's tuple hash mixes without losing anything, so it can be undone: from
// the key of a first chunk and its tokens follows the hash of the NONE_HASH
// before it. An engine whose NONE_HASH is random can thus be read after all.

// Inverses of the tuple hash's primes modulo 2^64.
var (
	tupleInverse1 = inverse(tuplePrime1)
	tupleInverse2 = inverse(tuplePrime2)
)

// inverse is the number that multiplied with n, which is odd, gives 1 modulo
// 2^64, by Newton's iteration: each step doubles the bits that are right.
func inverse(n uint64) uint64 {
	x := n // right in three bits
	for range 5 {
		x *= 2 - n*x
	}
	return x
}

// beforeLink is the prev of which hashLink(prev, tokens, x) is key.
func beforeLink(key, tokens int64, x extra) int64 {
	items := []uint64{0, uint64(tokens)} //nolint:gosec // the bits of a signed integer
	switch x {
	case extraNone:
		items = append(items, hashNone)
	case extraEmpty:
		items = append(items, uint64(hashEmptyTuple)) //nolint:gosec // the bits of a signed integer
	case extraAbsent:
	}
	t := uint64(key) - (uint64(len(items)) ^ (tuplePrime5 ^ 3527539)) //nolint:gosec // the bits of a signed integer
	for i := len(items) - 1; i > 0; i-- {
		t = unmix(t) - items[i]*tuplePrime2
	}
	return int64((unmix(t) - tuplePrime5) * tupleInverse2) //nolint:gosec // the bits of a signed integer
}

// unmix is the sum of which the rotation and product made t.
func unmix(t uint64) uint64 { return bits.RotateLeft64(t*tupleInverse1, -31) }
