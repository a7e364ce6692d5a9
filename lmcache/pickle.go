package lmcache

import (
	"encoding/binary"
	"math/bits"
)

// Python's pickle, protocol 5, of a chunk and of a short string: the bytes that
// pickle.dumps writes for them. They stay below the 64 KiB at which it begins
// another frame.

// Opcodes, named as in Lib/pickletools.py.
const (
	pickleProto         = 0x80
	pickleFrame         = 0x95
	pickleStop          = '.'
	pickleMemoize       = 0x94
	pickleNone          = 'N'
	pickleEmptyTuple    = ')'
	pickleMark          = '('
	pickleTuple         = 't'
	pickleTuple1        = 0x85 // TUPLE2 and TUPLE3 follow
	pickleBinInt1       = 'K'
	pickleBinInt2       = 'M'
	pickleBinInt        = 'J'
	pickleLong1         = 0x8a
	pickleShortBinBytes = 'C'
	pickleShortUnicode  = 0x8c
)

// beginPickle appends a header whose frame length endPickle fills in.
func beginPickle(b []byte) []byte {
	return append(b, pickleProto, 5, pickleFrame, 0, 0, 0, 0, 0, 0, 0, 0)
}

// endPickle ends the pickle that begins at b[start].
func endPickle(b []byte, start int) []byte {
	b = append(b, pickleStop)
	const header = 11
	binary.LittleEndian.PutUint64(b[start+header-8:], uint64(len(b)-start-header)) //nolint:gosec // a length
	return b
}

func appendPickledInt(b []byte, n uint64) []byte {
	switch {
	case n < 1<<8:
		return append(b, pickleBinInt1, byte(n))
	case n < 1<<16:
		return append(b, pickleBinInt2, byte(n), byte(n>>8))
	case n < 1<<31:
		return binary.LittleEndian.AppendUint32(append(b, pickleBinInt), uint32(n))
	}
	// Two's complement, little-endian, with room for the sign bit.
	size := bits.Len64(n)/8 + 1
	b = append(b, pickleLong1, byte(size))
	for range size {
		b = append(b, byte(n))
		n >>= 8
	}
	return b
}

// appendPickledString pickles an ASCII string of less than 256 bytes.
func appendPickledString(b []byte, text string) []byte {
	start := len(b)
	b = append(beginPickle(b), pickleShortUnicode, byte(len(text)))
	b = append(b, text...)
	return endPickle(append(b, pickleMemoize), start)
}

func appendPickledChunk(b []byte, prev *link, tokens []uint32, x extra) []byte {
	start := len(b)
	b = beginPickle(b)
	if prev.size > 0 {
		b = append(b, pickleShortBinBytes, byte(prev.size))
		b = append(b, prev.bytes[:prev.size]...)
		b = append(b, pickleMemoize)
	} else {
		b = appendPickledInt(b, prev.n)
	}
	if len(tokens) > 3 {
		b = append(b, pickleMark)
	}
	for _, id := range tokens {
		b = appendPickledInt(b, uint64(id))
	}
	switch {
	case len(tokens) > 3:
		b = append(b, pickleTuple, pickleMemoize)
	default:
		b = append(b, pickleTuple1+byte(len(tokens)-1), pickleMemoize)
	}
	items := 3
	switch x {
	case extraNone:
		b = append(b, pickleNone)
	case extraEmpty:
		b = append(b, pickleEmptyTuple)
	case extraAbsent:
		items = 2
	}
	b = append(b, pickleTuple1+byte(items-1), pickleMemoize)
	return endPickle(b, start)
}
