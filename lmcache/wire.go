package lmcache

// The messages between LMCache workers and their controller, named as
// LMCache's own classes are. Each is one msgpack map whose first pair is
// "type"; the class names are the same in every release, the fields grew:
//
//	era   releases            differs by
//	A, B  0.3.2 to 0.3.9      distributed_url; one KVAdmitMsg or KVEvictMsg per key, no seq_num
//	C     0.3.10 and 0.3.11   peer_init_url; BatchedKVOperationMsg
//	D     from 0.3.12         RegisterMsg and HeartbeatMsg are answered; full sync
//
// Append writes the bytes that LMCache's encoder (msgspec) would write for the
// same values, Decode reads what any era sends.

// MaxMessage is the largest message in bytes that Decode takes. A worker that
// drops 200,000 chunks at once reports them in one message of 9 MB.
const MaxMessage = 16 << 20

// NoSeq stands for an operation without sequence number.
const NoSeq = -1

// WireKey is a chunk key as the integer that travels. Which one depends on the
// sender's hash: SignedKey for builtin, UnsignedKey for all others.
type WireKey struct {
	Key Key
	// Negative: the integer is int64(Key), below 0. False: it is uint64(Key).
	Negative bool
}

// SignedKey is the integer int64(k).
func SignedKey(k Key) WireKey { return WireKey{k, int64(k) < 0} } //nolint:gosec // G115: the bit pattern is meant

// UnsignedKey is the integer uint64(k).
func UnsignedKey(k Key) WireKey { return WireKey{Key: k} }

// Message is one message of the protocol, either direction. The types that
// implement it are the pointers to the structs of this file.
type Message interface {
	// Type is the class name on the wire.
	Type() string
	// Append appends the msgpack encoding to b.
	Append(b []byte) []byte

	decode(r *reader)
}

// Registration is what a worker says of itself.
type Registration struct {
	Worker WorkerID
	// IP and Port are where the worker listens for control messages; the IP is
	// the engine's, the port is not the engine's HTTP port.
	IP   string
	Port int
	// PeerURL is the "host:port" where other workers fetch chunks; empty where
	// there is none.
	PeerURL string
	// Distributed: the sender is of era A or B and calls the URL
	// distributed_url.
	Distributed bool
}

// Messages from a worker. Those marked with an answer come on the reply or the
// heartbeat socket, the others on PULL.
type (
	// RegisterMsg is sent once when the engine starts. Answer in era D:
	// RegisterRetMsg.
	RegisterMsg struct{ Registration }

	// HeartbeatMsg is sent periodically, if at all. Answer in era D:
	// HeartbeatRetMsg.
	HeartbeatMsg struct{ Registration }

	// DeRegisterMsg may be sent when the engine stops; mostly it gets lost.
	DeRegisterMsg struct {
		Worker WorkerID
		IP     string
		Port   int
	}

	// KVAdmitMsg reports that a worker stored one chunk.
	KVAdmitMsg struct{ KVOperation }

	// KVEvictMsg reports that a worker dropped one chunk.
	KVEvictMsg struct{ KVOperation }

	// KVOperation is the body of KVAdmitMsg and KVEvictMsg.
	KVOperation struct {
		Worker   WorkerID
		Key      WireKey
		Location string
		Seq      int64 // NoSeq in eras A and B
	}

	// BatchedKVOperationMsg reports what changed in one location, in order.
	BatchedKVOperationMsg struct {
		Worker     WorkerID
		Location   string
		Operations []KVOp
	}

	// BatchedP2PLookupMsg asks which other worker holds a run of chunks.
	// Answer: BatchedP2PLookupRetMsg.
	BatchedP2PLookupMsg struct {
		Hashes []WireKey
		Worker WorkerID
	}

	// FullSyncStartMsg announces all keys of one location. Answer:
	// FullSyncStartRetMsg.
	FullSyncStartMsg struct {
		Worker     WorkerID
		Location   string
		SyncID     string
		TotalKeys  int
		BatchCount int
	}

	// FullSyncBatchMsg carries one part of the keys; BatchID counts from 0.
	FullSyncBatchMsg struct {
		Worker   WorkerID
		Location string
		SyncID   string
		BatchID  int
		Keys     []WireKey
	}

	// FullSyncEndMsg says that every batch was sent.
	FullSyncEndMsg struct {
		Worker          WorkerID
		Location        string
		SyncID          string
		ActualTotalKeys int
	}

	// FullSyncStatusMsg asks whether the sync arrived. Answer:
	// FullSyncStatusRetMsg.
	FullSyncStatusMsg struct {
		Worker WorkerID
		SyncID string
	}
)

// KVOp is one operation of a BatchedKVOperationMsg.
type KVOp struct {
	Key   WireKey
	Seq   int64
	Evict bool // false: admit
}

// Messages from the controller.
type (
	// RegisterRetMsg answers RegisterMsg. The key heartbeat_url of ExtraConfig
	// is a "host:port" without scheme; where it is missing the worker never
	// sends heartbeats.
	RegisterRetMsg struct{ ExtraConfig map[string]string }

	// HeartbeatRetMsg answers HeartbeatMsg.
	HeartbeatRetMsg struct{ Commands []Command }

	// BatchedP2PLookupRetMsg answers BatchedP2PLookupMsg; a miss is one empty
	// hit.
	BatchedP2PLookupRetMsg struct{ LayoutInfo []P2PHit }

	// FullSyncStartRetMsg answers FullSyncStartMsg. Error is empty where the
	// sync is accepted.
	FullSyncStartRetMsg struct {
		SyncID   string
		Accepted bool
		Error    string
	}

	// FullSyncStatusRetMsg answers FullSyncStatusMsg. The engine stores nothing
	// until CanExitFreeze.
	FullSyncStatusRetMsg struct {
		SyncID         string
		Complete       bool
		GlobalProgress float64 // 0 to 1
		CanExitFreeze  bool
		MissingBatches []int
	}

	// ErrorMsg answers what could not be understood or is not served.
	ErrorMsg struct{ Error string }
)

// CommandFullSync is the Type of the only command there is: send all keys.
const CommandFullSync = "full_sync"

// Command is something a worker is told to do in the answer to its heartbeat.
type Command struct {
	Type   string
	Reason string // empty: nil
}

// P2PHit is one worker that holds a run of chunks: the first Chunks ones of
// those asked for.
type P2PHit struct {
	Instance string
	Location string
	Chunks   int
	PeerURL  string
}

// Type implements Message.
func (*RegisterMsg) Type() string { return "RegisterMsg" }

// Type implements Message.
func (*HeartbeatMsg) Type() string { return "HeartbeatMsg" }

// Type implements Message.
func (*DeRegisterMsg) Type() string { return "DeRegisterMsg" }

// Type implements Message.
func (*KVAdmitMsg) Type() string { return "KVAdmitMsg" }

// Type implements Message.
func (*KVEvictMsg) Type() string { return "KVEvictMsg" }

// Type implements Message.
func (*BatchedKVOperationMsg) Type() string { return "BatchedKVOperationMsg" }

// Type implements Message.
func (*BatchedP2PLookupMsg) Type() string { return "BatchedP2PLookupMsg" }

// Type implements Message.
func (*FullSyncStartMsg) Type() string { return "FullSyncStartMsg" }

// Type implements Message.
func (*FullSyncBatchMsg) Type() string { return "FullSyncBatchMsg" }

// Type implements Message.
func (*FullSyncEndMsg) Type() string { return "FullSyncEndMsg" }

// Type implements Message.
func (*FullSyncStatusMsg) Type() string { return "FullSyncStatusMsg" }

// Type implements Message.
func (*RegisterRetMsg) Type() string { return "RegisterRetMsg" }

// Type implements Message.
func (*HeartbeatRetMsg) Type() string { return "HeartbeatRetMsg" }

// Type implements Message.
func (*BatchedP2PLookupRetMsg) Type() string { return "BatchedP2PLookupRetMsg" }

// Type implements Message.
func (*FullSyncStartRetMsg) Type() string { return "FullSyncStartRetMsg" }

// Type implements Message.
func (*FullSyncStatusRetMsg) Type() string { return "FullSyncStatusRetMsg" }

// Type implements Message.
func (*ErrorMsg) Type() string { return "ErrorMsg" }

// newMessage makes an empty message of a class, nil where the class is not one
// of those above.
func newMessage(class string) Message {
	switch class {
	case "BatchedKVOperationMsg":
		return new(BatchedKVOperationMsg)
	case "KVAdmitMsg":
		return new(KVAdmitMsg)
	case "KVEvictMsg":
		return new(KVEvictMsg)
	case "RegisterMsg":
		return new(RegisterMsg)
	case "HeartbeatMsg":
		return new(HeartbeatMsg)
	case "DeRegisterMsg":
		return new(DeRegisterMsg)
	case "BatchedP2PLookupMsg":
		return new(BatchedP2PLookupMsg)
	case "FullSyncStartMsg":
		return new(FullSyncStartMsg)
	case "FullSyncBatchMsg":
		return new(FullSyncBatchMsg)
	case "FullSyncEndMsg":
		return new(FullSyncEndMsg)
	case "FullSyncStatusMsg":
		return new(FullSyncStatusMsg)
	case "RegisterRetMsg":
		return new(RegisterRetMsg)
	case "HeartbeatRetMsg":
		return new(HeartbeatRetMsg)
	case "BatchedP2PLookupRetMsg":
		return new(BatchedP2PLookupRetMsg)
	case "FullSyncStartRetMsg":
		return new(FullSyncStartRetMsg)
	case "FullSyncStatusRetMsg":
		return new(FullSyncStatusRetMsg)
	case "ErrorMsg":
		return new(ErrorMsg)
	}
	return nil
}
