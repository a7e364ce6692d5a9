package lmcache

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/tinylib/msgp/msgp"
)

// UnknownTypeError says that the message is well formed, but its class is not one that
// the controller takes part in.
type UnknownTypeError struct{ Class string }

// Error implements error.
func (e *UnknownTypeError) Error() string { return "unknown message type " + strconv.Quote(e.Class) }

// Decode reads one message, msgpack or, where the first byte is '{', JSON.
// Fields may come in any order, unknown ones are skipped. The error is an
// *UnknownTypeError or says what is malformed. The message does not refer to b.
func Decode(b []byte) (Message, error) {
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes, at most %d are taken", len(b), MaxMessage)
	}
	if len(b) > 0 && b[0] == '{' {
		var err error
		if b, err = packJSON(b); err != nil {
			return nil, fmt.Errorf("JSON message: %w", err)
		}
	}
	class, err := classOf(b)
	if err != nil {
		return nil, err
	}
	m := newMessage(class)
	if m == nil {
		return nil, &UnknownTypeError{class}
	}
	r := &reader{b: b}
	m.decode(r)
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes after its end", len(r.b))
	}
	if r.err != nil {
		return nil, fmt.Errorf("%s: %w", class, r.err)
	}
	return m, nil
}

// classOf finds the type, which mostly is the first pair.
func classOf(b []byte) (string, error) {
	r := &reader{b: b}
	for n := r.mapHeader(); n > 0 && r.err == nil; n-- {
		if string(r.name()) == "type" {
			class := r.str()
			return class, r.err
		}
		r.skip()
	}
	if r.err != nil {
		return "", r.err
	}
	return "", errors.New(`no field "type"`)
}

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

func (r *reader) str() (s string) {
	if r.err == nil {
		s, r.b, r.err = msgp.ReadStringBytes(r.b)
	}
	return s
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

func (g *Registration) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "ip":
			g.IP = r.str()
			return 4
		case "port":
			g.Port = r.count()
			return 8
		case "peer_init_url":
			if url := r.strOrNil(); url != "" {
				g.PeerURL = url
			}
			return 16
		case "distributed_url":
			g.Distributed = true
			if url := r.strOrNil(); url != "" {
				g.PeerURL = url
			}
			return 16
		}
		return r.worker(name, &g.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "ip", "port")
}

func (m *DeRegisterMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "ip":
			m.IP = r.str()
			return 4
		case "port":
			m.Port = r.count()
			return 8
		}
		return r.worker(name, &m.Worker)
	})
	r.require(seen, "instance_id", "worker_id")
}

func (o *KVOperation) decode(r *reader) {
	o.Seq = NoSeq
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "key":
			o.Key = r.key()
			return 4
		case "location":
			o.Location = r.str()
			return 8
		case "seq_num":
			o.Seq = r.int64()
			return 16
		}
		return r.worker(name, &o.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "key", "location")
}

func (m *BatchedKVOperationMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "location":
			m.Location = r.str()
			return 4
		case "operations":
			n := r.array()
			m.Operations = make([]KVOp, 0, min(n, len(r.b)/minKVOp))
			for ; n > 0 && r.err == nil; n-- {
				var op KVOp
				op.decode(r)
				m.Operations = append(m.Operations, op)
			}
			return 8
		}
		return r.worker(name, &m.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "location", "operations")
}

// minKVOp is the least number of bytes that an operation takes: a map of three
// names and values.
const minKVOp = 29

func (o *KVOp) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "op_type":
			o.Evict = r.isEvict()
			return 1
		case "key":
			o.Key = r.key()
			return 2
		case "seq_num":
			o.Seq = r.int64()
			return 4
		}
		return 0
	})
	r.require(seen, "op_type", "key", "seq_num")
}

func (r *reader) isEvict() bool {
	kind := r.name()
	switch string(kind) {
	case "evict":
		return true
	case "admit":
	default:
		r.fail("op_type %q, want admit or evict", kind)
	}
	return false
}

func (m *BatchedP2PLookupMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		if string(name) == "hashes" {
			m.Hashes = r.keys()
			return 4
		}
		return r.worker(name, &m.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "hashes")
}

func (m *FullSyncStartMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "location":
			m.Location = r.str()
			return 4
		case "sync_id":
			m.SyncID = r.str()
			return 8
		case "total_keys":
			m.TotalKeys = r.count()
			return 16
		case "batch_count":
			m.BatchCount = r.count()
			return 32
		}
		return r.worker(name, &m.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "location", "sync_id", "total_keys", "batch_count")
}

func (m *FullSyncBatchMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "location":
			m.Location = r.str()
			return 4
		case "sync_id":
			m.SyncID = r.str()
			return 8
		case "batch_id":
			m.BatchID = r.count()
			return 16
		case "keys":
			m.Keys = r.keys()
			return 32
		}
		return r.worker(name, &m.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "location", "sync_id", "batch_id", "keys")
}

func (m *FullSyncEndMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "location":
			m.Location = r.str()
			return 4
		case "sync_id":
			m.SyncID = r.str()
			return 8
		case "actual_total_keys":
			m.ActualTotalKeys = r.count()
			return 16
		}
		return r.worker(name, &m.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "location", "sync_id", "actual_total_keys")
}

func (m *FullSyncStatusMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		if string(name) == "sync_id" {
			m.SyncID = r.str()
			return 4
		}
		return r.worker(name, &m.Worker)
	})
	r.require(seen, "instance_id", "worker_id", "sync_id")
}

func (m *RegisterRetMsg) decode(r *reader) {
	r.fields(func(name []byte) bit {
		if string(name) != "extra_config" {
			return 0
		}
		m.ExtraConfig = map[string]string{}
		r.fields(func(name []byte) bit {
			m.ExtraConfig[string(name)] = r.str()
			return 1
		})
		return 1
	})
}

func (m *HeartbeatRetMsg) decode(r *reader) {
	r.fields(func(name []byte) bit {
		if string(name) != "commands" {
			return 0
		}
		for range r.array() {
			var c Command
			seen := r.fields(func(name []byte) bit {
				switch string(name) {
				case "command_type":
					c.Type = r.str()
					return 1
				case "reason":
					c.Reason = r.strOrNil()
					return 2
				}
				return 0
			})
			r.require(seen, "command_type")
			if r.err != nil {
				break
			}
			m.Commands = append(m.Commands, c)
		}
		return 1
	})
}

func (m *BatchedP2PLookupRetMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		if string(name) != "layout_info" {
			return 0
		}
		for range r.array() {
			if n := r.array(); n != 4 {
				r.fail("layout_info of %d elements, want 4", n)
			}
			hit := P2PHit{Instance: r.str(), Location: r.str(), Chunks: r.count(), PeerURL: r.str()}
			if r.err != nil {
				break
			}
			m.LayoutInfo = append(m.LayoutInfo, hit)
		}
		return 1
	})
	r.require(seen, "layout_info")
}

func (m *FullSyncStartRetMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "sync_id":
			m.SyncID = r.str()
			return 1
		case "accepted":
			m.Accepted = r.bool()
			return 2
		case "error_msg":
			m.Error = r.strOrNil()
			return 4
		}
		return 0
	})
	r.require(seen, "sync_id", "accepted")
}

func (m *FullSyncStatusRetMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		switch string(name) {
		case "sync_id":
			m.SyncID = r.str()
			return 1
		case "is_complete":
			m.Complete = r.bool()
			return 2
		case "global_progress":
			m.GlobalProgress = r.float()
			return 4
		case "can_exit_freeze":
			m.CanExitFreeze = r.bool()
			return 8
		case "missing_batches":
			m.MissingBatches = nil
			for range r.array() {
				m.MissingBatches = append(m.MissingBatches, r.count())
			}
			return 16
		}
		return 0
	})
	r.require(seen, "sync_id", "is_complete", "global_progress", "can_exit_freeze")
}

func (m *ErrorMsg) decode(r *reader) {
	seen := r.fields(func(name []byte) bit {
		if string(name) == "error" {
			m.Error = r.str()
			return 1
		}
		return 0
	})
	r.require(seen, "error")
}

// packJSON turns a JSON object into the msgpack that Decode reads. No LMCache
// release sends JSON, its controller takes it; so this need not be fast.
func packJSON(b []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return appendJSON(nil, v)
}

func appendJSON(b []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case map[string]any:
		b = msgp.AppendMapHeader(b, uint32(len(v))) //nolint:gosec // G115: below MaxMessage
		for name, value := range v {
			if b, err = appendJSON(msgp.AppendString(b, name), value); err != nil {
				return nil, err
			}
		}
		return b, nil
	case []any:
		b = msgp.AppendArrayHeader(b, uint32(len(v))) //nolint:gosec // G115: below MaxMessage
		for _, value := range v {
			if b, err = appendJSON(b, value); err != nil {
				return nil, err
			}
		}
		return b, nil
	case json.Number:
		if i, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return appendInt(b, i), nil
		}
		if u, err := strconv.ParseUint(string(v), 10, 64); err == nil {
			return msgp.AppendUint64(b, u), nil
		}
		f, err := v.Float64()
		return msgp.AppendFloat64(b, f), err
	}
	return msgp.AppendIntf(b, v) // nil, bool, string
}
