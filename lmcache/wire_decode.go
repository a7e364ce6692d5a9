package lmcache

import (
	"errors"
	"fmt"
	"strconv"
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
		if len(b) > maxJSON {
			return nil, fmt.Errorf("JSON message of %d bytes, at most %d are taken; msgpack may have %d", len(b), maxJSON, MaxMessage)
		}
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
		r.fail("op_type %.40q, want admit or evict", kind)
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
