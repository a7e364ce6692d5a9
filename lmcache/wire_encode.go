package lmcache

import (
	"maps"
	"slices"

	"github.com/tinylib/msgp/msgp"
)

// A writer appends msgpack as msgspec does: fields in the order of the class,
// integers in their shortest form and unsigned where they are not negative.
type writer struct{ b []byte }

// message begins a message with n fields, its type not counted.
func message(b []byte, class string, n uint32) *writer {
	w := &writer{msgp.AppendMapHeader(b, n+1)}
	return w.str("type", class)
}

func (w *writer) name(name string) { w.b = msgp.AppendString(w.b, name) }

func (w *writer) str(name, v string) *writer {
	w.name(name)
	w.b = msgp.AppendString(w.b, v)
	return w
}

// strOrNil writes the empty string as nil.
func (w *writer) strOrNil(name, v string) *writer {
	if v != "" {
		return w.str(name, v)
	}
	w.name(name)
	w.b = msgp.AppendNil(w.b)
	return w
}

func (w *writer) int(name string, v int64) *writer {
	w.name(name)
	w.b = appendInt(w.b, v)
	return w
}

func (w *writer) bool(name string, v bool) *writer {
	w.name(name)
	w.b = msgp.AppendBool(w.b, v)
	return w
}

func (w *writer) key(name string, k WireKey) *writer {
	w.name(name)
	w.b = appendKey(w.b, k)
	return w
}

func (w *writer) keys(name string, keys []WireKey) *writer {
	w.array(name, len(keys))
	for _, k := range keys {
		w.b = appendKey(w.b, k)
	}
	return w
}

func (w *writer) array(name string, n int) {
	w.name(name)
	w.b = msgp.AppendArrayHeader(w.b, uint32(n)) //nolint:gosec // G115: lists in memory are far shorter than 2^32
}

func (w *writer) worker(id WorkerID) *writer {
	return w.str("instance_id", id.Instance).int("worker_id", int64(id.Worker))
}

func appendKey(b []byte, k WireKey) []byte {
	if k.Negative {
		return msgp.AppendInt64(b, int64(k.Key)) //nolint:gosec // G115: the bit pattern is meant
	}
	return msgp.AppendUint64(b, uint64(k.Key))
}

func appendInt(b []byte, v int64) []byte {
	if v < 0 {
		return msgp.AppendInt64(b, v)
	}
	return msgp.AppendUint64(b, uint64(v))
}

func (g *Registration) append(b []byte, class string) []byte {
	w := message(b, class, 5).worker(g.Worker).str("ip", g.IP).int("port", int64(g.Port))
	if g.Distributed {
		return w.str("distributed_url", g.PeerURL).b
	}
	return w.strOrNil("peer_init_url", g.PeerURL).b
}

// Append implements Message.
func (m *RegisterMsg) Append(b []byte) []byte { return m.append(b, m.Type()) }

// Append implements Message.
func (m *HeartbeatMsg) Append(b []byte) []byte { return m.append(b, m.Type()) }

// Append implements Message.
func (m *DeRegisterMsg) Append(b []byte) []byte {
	return message(b, m.Type(), 4).worker(m.Worker).str("ip", m.IP).int("port", int64(m.Port)).b
}

func (o *KVOperation) append(b []byte, class string) []byte {
	n := uint32(4)
	if o.Seq != NoSeq {
		n++
	}
	w := message(b, class, n).worker(o.Worker).key("key", o.Key).str("location", o.Location)
	if o.Seq != NoSeq {
		w.int("seq_num", o.Seq)
	}
	return w.b
}

// Append implements Message.
func (m *KVAdmitMsg) Append(b []byte) []byte { return m.append(b, m.Type()) }

// Append implements Message.
func (m *KVEvictMsg) Append(b []byte) []byte { return m.append(b, m.Type()) }

// Append implements Message.
func (m *BatchedKVOperationMsg) Append(b []byte) []byte {
	w := message(b, m.Type(), 4).worker(m.Worker).str("location", m.Location)
	w.array("operations", len(m.Operations))
	for _, op := range m.Operations {
		kind := "admit"
		if op.Evict {
			kind = "evict"
		}
		w.b = msgp.AppendMapHeader(w.b, 3)
		w.str("op_type", kind).key("key", op.Key).int("seq_num", op.Seq)
	}
	return w.b
}

// Append implements Message.
func (m *BatchedP2PLookupMsg) Append(b []byte) []byte {
	return message(b, m.Type(), 3).keys("hashes", m.Hashes).worker(m.Worker).b
}

// Append implements Message.
func (m *FullSyncStartMsg) Append(b []byte) []byte {
	return message(b, m.Type(), 6).worker(m.Worker).str("location", m.Location).str("sync_id", m.SyncID).
		int("total_keys", int64(m.TotalKeys)).int("batch_count", int64(m.BatchCount)).b
}

// Append implements Message.
func (m *FullSyncBatchMsg) Append(b []byte) []byte {
	return message(b, m.Type(), 6).worker(m.Worker).str("location", m.Location).str("sync_id", m.SyncID).
		int("batch_id", int64(m.BatchID)).keys("keys", m.Keys).b
}

// Append implements Message.
func (m *FullSyncEndMsg) Append(b []byte) []byte {
	return message(b, m.Type(), 5).worker(m.Worker).str("location", m.Location).str("sync_id", m.SyncID).
		int("actual_total_keys", int64(m.ActualTotalKeys)).b
}

// Append implements Message.
func (m *FullSyncStatusMsg) Append(b []byte) []byte {
	return message(b, m.Type(), 3).worker(m.Worker).str("sync_id", m.SyncID).b
}

// Append implements Message.
func (m *RegisterRetMsg) Append(b []byte) []byte {
	w := message(b, m.Type(), 1)
	w.name("extra_config")
	w.b = msgp.AppendMapHeader(w.b, uint32(len(m.ExtraConfig))) //nolint:gosec // G115: at most a few pairs
	for _, name := range slices.Sorted(maps.Keys(m.ExtraConfig)) {
		w.str(name, m.ExtraConfig[name])
	}
	return w.b
}

// Append implements Message.
func (m *HeartbeatRetMsg) Append(b []byte) []byte {
	w := message(b, m.Type(), 1)
	w.array("commands", len(m.Commands))
	for _, c := range m.Commands {
		w.b = msgp.AppendMapHeader(w.b, 3)
		w.str("command_type", c.Type).strOrNil("reason", c.Reason).strOrNil("args", "")
	}
	return w.b
}

// Append implements Message.
func (m *BatchedP2PLookupRetMsg) Append(b []byte) []byte {
	w := message(b, m.Type(), 1)
	w.array("layout_info", len(m.LayoutInfo))
	for _, hit := range m.LayoutInfo {
		w.b = msgp.AppendArrayHeader(w.b, 4)
		w.b = msgp.AppendString(w.b, hit.Instance)
		w.b = msgp.AppendString(w.b, hit.Location)
		w.b = appendInt(w.b, int64(hit.Chunks))
		w.b = msgp.AppendString(w.b, hit.PeerURL)
	}
	return w.b
}

// Append implements Message.
func (m *FullSyncStartRetMsg) Append(b []byte) []byte {
	return message(b, m.Type(), 3).str("sync_id", m.SyncID).bool("accepted", m.Accepted).strOrNil("error_msg", m.Error).b
}

// Append implements Message.
func (m *FullSyncStatusRetMsg) Append(b []byte) []byte {
	w := message(b, m.Type(), 5).str("sync_id", m.SyncID).bool("is_complete", m.Complete)
	w.name("global_progress")
	w.b = msgp.AppendFloat64(w.b, m.GlobalProgress)
	w.bool("can_exit_freeze", m.CanExitFreeze).array("missing_batches", len(m.MissingBatches))
	for _, id := range m.MissingBatches {
		w.b = appendInt(w.b, int64(id))
	}
	return w.b
}

// Append implements Message.
func (m *ErrorMsg) Append(b []byte) []byte { return message(b, m.Type(), 1).str("error", m.Error).b }
