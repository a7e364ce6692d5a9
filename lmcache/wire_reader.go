package lmcache

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/tinylib/msgp/msgp"
)

// A reader reads msgpack off b. After the first error it reads zero values.
type reader struct {
	b   []byte
	err error
}

// bit marks a field as seen; 0 is a field that nobody wants.
type bit uint

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *reader) mapHeader() (n uint32) {
	if r.err == nil {
		n, r.b, r.err = msgp.ReadMapHeaderBytes(r.b)
	}
	return n
}

// name reads a string without copying it.
func (r *reader) name() (name []byte) {
	if r.err == nil {
		name, r.b, r.err = msgp.ReadStringZC(r.b)
	}
	return name
}

// fields reads one map. visit reads the value of a field it knows and returns
// the field's bit, or returns 0 having read nothing.
func (r *reader) fields(visit func(name []byte) bit) (seen bit) {
	for n := r.mapHeader(); n > 0 && r.err == nil; n-- {
		name := r.name()
		if r.err != nil {
			break
		}
		got := visit(name)
		if got == 0 {
			r.skip()
		}
		seen |= got
	}
	return seen
}

// require fails unless the bit 1<<i was seen for each name i.
func (r *reader) require(seen bit, names ...string) {
	for i, name := range names {
		if seen&(1<<i) == 0 {
			r.fail("no field %q", name)
		}
	}
}

// skip passes over one value. It does not recurse, so no nesting is too deep.
func (r *reader) skip() {
	for pending := uint64(1); pending > 0 && r.err == nil; pending-- {
		var n uint32
		switch msgp.NextType(r.b) {
		case msgp.MapType:
			n, r.b, r.err = msgp.ReadMapHeaderBytes(r.b)
			pending += 2 * uint64(n)
		case msgp.ArrayType:
			n, r.b, r.err = msgp.ReadArrayHeaderBytes(r.b)
			pending += uint64(n)
		default:
			r.b, r.err = msgp.Skip(r.b)
		}
	}
}

// maxString bounds names, addresses and reasons in bytes. Most are remembered,
// logged and shown; real ones are below 300.
const maxString = 4096

func (r *reader) str() string {
	s := r.name()
	if len(s) > maxString {
		r.fail("string of %d bytes, at most %d are taken", len(s), maxString)
		return ""
	}
	return string(s)
}

// isNil reads a nil if one is next.
func (r *reader) isNil() bool {
	if r.err != nil || !msgp.IsNil(r.b) {
		return false
	}
	r.b = r.b[1:]
	return true
}

// strOrNil reads nil as the empty string.
func (r *reader) strOrNil() string {
	if r.isNil() {
		return ""
	}
	return r.str()
}

func (r *reader) int64() (v int64) {
	if r.err == nil {
		v, r.b, r.err = msgp.ReadInt64Bytes(r.b)
	}
	return v
}

// count reads an int that is not negative and fits 32 bits: ranks, ports,
// numbers of keys and batches.
func (r *reader) count() int {
	v := r.int64()
	if v < 0 || v > math.MaxInt32 {
		r.fail("%d is out of range", v)
		return 0
	}
	return int(v)
}

func (r *reader) bool() (v bool) {
	if r.err == nil {
		v, r.b, r.err = msgp.ReadBoolBytes(r.b)
	}
	return v
}

func (r *reader) float() (v float64) {
	if r.err == nil {
		v, r.b, r.err = msgp.ReadFloat64Bytes(r.b)
	}
	return v
}

// array reads a list's length, which is never more than there are bytes left:
// what is allocated for it stays in proportion to what was received.
func (r *reader) array() int {
	if r.err != nil {
		return 0
	}
	var n uint32
	n, r.b, r.err = msgp.ReadArrayHeaderBytes(r.b)
	if uint64(n) > uint64(len(r.b)) {
		r.fail("list of %d elements in %d bytes", n, len(r.b))
		return 0
	}
	return int(n)
}

// key reads a chunk key: an integer or, from releases that never learned to
// send their digests as integers, the digest.
func (r *reader) key() (k WireKey) {
	if r.err != nil {
		return k
	}
	switch msgp.NextType(r.b) {
	case msgp.UintType:
		var u uint64
		u, r.b, r.err = msgp.ReadUint64Bytes(r.b)
		return UnsignedKey(Key(u))
	case msgp.BinType:
		var digest []byte
		if digest, r.b, r.err = msgp.ReadBytesZC(r.b); r.err != nil {
			return k
		}
		if len(digest) < 8 {
			r.fail("key of %d bytes, want 8 or more", len(digest))
			return k
		}
		return UnsignedKey(Key(binary.BigEndian.Uint64(digest)))
	default:
		return SignedKey(Key(r.int64())) //nolint:gosec // G115: the pattern is what counts
	}
}

func (r *reader) keys() []WireKey {
	n := r.array()
	if n == 0 {
		return nil
	}
	keys := make([]WireKey, n)
	for i := range keys {
		keys[i] = r.key()
	}
	return keys
}

// worker reads instance_id (bit 1) and worker_id (bit 2), which all messages
// of a worker carry.
func (r *reader) worker(name []byte, id *WorkerID) bit {
	switch string(name) {
	case "instance_id":
		id.Instance = r.str()
		return 1
	case "worker_id":
		id.Worker = r.count()
		return 2
	}
	return 0
}
