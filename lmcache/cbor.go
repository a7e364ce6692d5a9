package lmcache

import "encoding/binary"

// Canonical CBOR (RFC 8949) of a chunk. Written by hand: a library would see a
// slice of interfaces, box every token id and reflect over them, for five kinds
// of item on the hot path.

// CBOR's major types, in the upper three bits of an item's first byte.
const (
	cborUint  = 0 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
	cborArray = 4 << 5
	cborNull  = 0xf6
)

// appendCBORHead appends an item's type and its value or length, in the
// shortest form.
func appendCBORHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, major|27), n)
	}
}

func appendCBORString(b []byte, text string) []byte {
	return append(appendCBORHead(b, cborText, uint64(len(text))), text...)
}

func appendCBORChunk(b []byte, prev *link, tokens []uint32, x extra) []byte {
	if x == extraAbsent {
		b = appendCBORHead(b, cborArray, 2)
	} else {
		b = appendCBORHead(b, cborArray, 3)
	}
	if prev.size > 0 {
		b = append(appendCBORHead(b, cborBytes, uint64(prev.size)), prev.bytes[:prev.size]...)
	} else {
		b = appendCBORHead(b, cborUint, prev.n)
	}
	b = appendCBORHead(b, cborArray, uint64(len(tokens)))
	for _, id := range tokens {
		b = appendCBORHead(b, cborUint, uint64(id))
	}
	switch x {
	case extraNone:
		b = append(b, cborNull)
	case extraEmpty:
		b = appendCBORHead(b, cborArray, 0)
	case extraAbsent:
	}
	return b
}
