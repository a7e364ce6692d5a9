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
	pickleBinInt1       = 'K'
	pickleBinInt2       = 'M'
	pickleBinInt        = 'J'
	pickleLong1         = 0x8a
	pickleShortBinBytes = 'C'
	pickleShortUnicode  = 0x8c
)

// pickleTuple has the opcode that makes a tuple of 1, 2, 3 and of more items.
var pickleTuple = [...]byte{1: 0x85, 2: 0x86, 3: 0x87, 4: 't'}

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
		return binary.LittleEndian.AppendUint16(append(b, pickleBinInt2), uint16(n))
	case n < 1<<31:
		return binary.LittleEndian.AppendUint32(append(b, pickleBinInt), uint32(n))
	}
	// Two's complement, little-endian, with room for the sign bit.
	size := bits.Len64(n)/8 + 1
	b = append(b, pickleLong1, byte(size)) //nolint:gosec // at most 9
	for range size {
		b = append(b, byte(n))
		n >>= 8
	}
	return b
}

// appendPickledString pickles an ASCII string of less than 256 bytes.
func appendPickledString(b []byte, text string) []byte {
	start := len(b)
	b = append(beginPickle(b), pickleShortUnicode, byte(len(text))) //nolint:gosec // below 256
	b = append(b, text...)
	return endPickle(append(b, pickleMemoize), start)
}

func appendPickledChunk(b []byte, prev *link, tokens []uint32, x extra) []byte {
	start := len(b)
	b = beginPickle(b)
	if prev.size > 0 {
		b = append(b, pickleShortBinBytes, byte(prev.size)) //nolint:gosec // at most 32
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
	b = append(b, pickleTuple[min(len(tokens), 4)], pickleMemoize)
	switch x {
	case extraNone:
		b = append(b, pickleNone, pickleTuple[3])
	case extraEmpty:
		b = append(b, pickleEmptyTuple, pickleTuple[3])
	case extraAbsent:
		b = append(b, pickleTuple[2])
	}
	return endPickle(append(b, pickleMemoize), start)
}
