package native

import (
	"encoding/binary"
	"math"
	"slices"
)

// Value is a tree of template variables, written once from front to back and
// read by the library without a JSON text in between. Maps keep the order in
// which their keys were written; a key that is written twice has its last value
// at its first place, as in Python. The zero Value is empty and ready to write.
//
// A list is List, its elements, EndList. A map is Map, then Key and one value each,
// then EndMap. The variables of a template are one Map; nesting goes 255 deep. A tree that breaks these
// rules is not found here but by Render, as an error. Not safe for concurrent
// writing; after the last write, any number of Renders may share it.
//
// The format, read by value.rs: a tag byte, then what it announces. Numbers are
// little endian.
//
//	n              None
//	t f            True, False
//	i int64        an integer
//	d uint64       a float, its IEEE 754 bits
//	b uint32 text  an integer of any size, in decimal digits (a leading - allowed)
//	s uint32 text  a string, so many bytes of UTF-8
//	k uint32 text  the key of the next value, only in a map
//	[ … ]          a list
//	{ … }          a map
type Value struct{ buf []byte }

// NewValue is an empty Value with room for size bytes.
func NewValue(size int) *Value { return &Value{buf: make([]byte, 0, size)} }

// Nil writes None.
func (v *Value) Nil() { v.buf = append(v.buf, 'n') }

// Bool writes True or False.
func (v *Value) Bool(b bool) {
	if b {
		v.buf = append(v.buf, 't')
	} else {
		v.buf = append(v.buf, 'f')
	}
}

// Int writes an integer.
func (v *Value) Int(i int64) {
	v.buf = binary.LittleEndian.AppendUint64(append(v.buf, 'i'), uint64(i)) //nolint:gosec // the bits are what is meant
}

// BigInt writes an integer of any size, given as decimal digits with or without
// a leading minus.
func (v *Value) BigInt(digits string) { v.text('b', digits) }

// Float writes a float. It is printed as Python prints it.
func (v *Value) Float(f float64) {
	v.buf = binary.LittleEndian.AppendUint64(append(v.buf, 'd'), math.Float64bits(f))
}

// String writes a string, which must be UTF-8.
func (v *Value) String(s string) { v.text('s', s) }

// StringBy writes a string of at most size bytes of UTF-8, which write appends to
// the buffer it is given and returns: the text is made in its place.
func (v *Value) StringBy(size int, write func(dst []byte) []byte) {
	v.buf = append(slices.Grow(v.buf, 5+size), 's', 0, 0, 0, 0)
	begin := len(v.buf)
	v.buf = write(v.buf)
	binary.LittleEndian.PutUint32(v.buf[begin-4:], uint32(len(v.buf)-begin)) //nolint:gosec // bodies are far below 4 GiB
}

// Key writes the key of the next value of a map.
func (v *Value) Key(s string) { v.text('k', s) }

// List begins a list; EndList ends it.
func (v *Value) List() { v.buf = append(v.buf, '[') }

// EndList ends the list begun last.
func (v *Value) EndList() { v.buf = append(v.buf, ']') }

// Map begins a map; EndMap ends it.
func (v *Value) Map() { v.buf = append(v.buf, '{') }

// EndMap ends the map begun last.
func (v *Value) EndMap() { v.buf = append(v.buf, '}') }

// Append writes another tree at this place.
func (v *Value) Append(other *Value) { v.buf = append(v.buf, other.buf...) }

// Len is the size of what was written so far, in bytes.
func (v *Value) Len() int { return len(v.buf) }

// Reset empties the Value and keeps its memory.
func (v *Value) Reset() { v.buf = v.buf[:0] }

func (v *Value) text(tag byte, s string) {
	v.buf = binary.LittleEndian.AppendUint32(append(v.buf, tag), uint32(len(s))) //nolint:gosec // bodies are far below 4 GiB
	v.buf = append(v.buf, s...)
}
