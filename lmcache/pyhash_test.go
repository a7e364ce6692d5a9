package lmcache

import (
	"math/big"
	"testing"
)

// TestSipHash checks the example of the SipHash paper, appendix A, for the
// rounds that Python had up to 3.10.
func TestSipHash(t *testing.T) {
	const text = "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e"
	if got, want := sipHash(2, 4, 0x0706050403020100, 0x0f0e0d0c0b0a0908, text), uint64(0xa129ca6149be45e5); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestPyHash has values that CPython prints.
func TestPyHash(t *testing.T) {
	for n, want := range map[string]int64{
		"0": 0, "-1": -2, "-2": -2, "2305843009213693951": 0, "-2305843009213693952": -2,
		"2305843009213693952": 1, "18446744073709551615": 7, "1000000000000000000000": 1000000000000000000000 % (1<<61 - 1),
	} {
		i, _ := new(big.Int).SetString(n, 10)
		if got := hashBigInt(i); got != want {
			t.Errorf("hash(%s) = %d, want %d", n, got, want)
		}
	}
	if hashEmptyTuple != 5740354900026072187 {
		t.Errorf("hash(()) = %d", hashEmptyTuple)
	}
	// The one result that C takes for an error is replaced.
	var short uint64 = 1<<64 - 1 - (tuplePrime5 ^ 3527539)
	if got := tupleHash(short).end(0); got != 1546275796 {
		t.Errorf("a tuple's hash is %d where it would be -1", got)
	}
	python311 := environment{python: version{3, 11}}
	if got := hashString(0, "", python311.sipRounds); got != 0 {
		t.Errorf("hash('') = %d", got)
	}
	if got, want := hashString(123, "123", python311.sipRounds), int64(-6197052367682486848); got != want {
		t.Errorf("hash('123') = %d, want %d", got, want)
	}
}
