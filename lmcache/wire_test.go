package lmcache_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/test/shared"
)

// outOfScope are the classes of the golden file that our controller takes no
// part in: what a controller sends to a worker's own REP socket and the answers
// to it, and what an orchestrator asks over HTTP or in process.
var outOfScope = []string{
	"CheckFinishMsg", "CheckFinishRetMsg", "CheckFinishWorkerMsg", "CheckFinishWorkerRetMsg",
	"ClearMsg", "ClearRetMsg", "ClearWorkerMsg", "ClearWorkerRetMsg",
	"CompressMsg", "CompressRetMsg", "CompressWorkerMsg", "CompressWorkerRetMsg",
	"DecompressMsg", "DecompressRetMsg", "DecompressWorkerMsg", "DecompressWorkerRetMsg",
	"HealthMsg", "HealthRetMsg", "HealthWorkerMsg", "HealthWorkerRetMsg",
	"LookupMsg", "LookupRetMsg",
	"MoveMsg", "MoveRetMsg", "MoveWorkerMsg", "MoveWorkerRetMsg",
	"NoSuchMsg", // planted by the capture
	"PinMsg", "PinRetMsg", "PinWorkerMsg", "PinWorkerRetMsg",
	"QueryInstMsg", "QueryInstRetMsg", "QueryWorkerInfoMsg", "QueryWorkerInfoRetMsg",
}

type golden struct {
	Encoded []struct {
		LMCache  string
		Messages []struct {
			Type  string
			Value json.RawMessage
			Hex   string
		}
	}
	LiveWorker     []goldenSession `json:"live_worker"`
	LiveController []goldenSession `json:"live_controller"`
	ZMTP           struct{ Captures map[string]goldenCapture }
	FullLookup     struct {
		Messages []struct {
			Type  string
			Value json.RawMessage
			Hex   string
		}
	} `json:"full_lookup_unmerged"`
}

type goldenSession struct {
	LMCache string
	Events  []goldenEvent
}

// goldenEvent is a message between worker and controller or, with HTTP, a
// question to the controller's HTTP API.
type goldenEvent struct {
	Dir, Socket, Note string
	Frames            []string
	Decoded           []json.RawMessage

	HTTP     string
	Request  json.RawMessage
	Status   int
	Response string
}

// goldenCapture is what a real client sent to a server that spoke by script.
type goldenCapture struct {
	ServerGreeting string `json:"server_greeting"`
	ServerReady    string `json:"server_ready"`
	ClientBytes    string `json:"client_bytes"`
}

func readGolden(tb testing.TB) golden {
	tb.Helper()
	raw, err := os.ReadFile(shared.File(tb, "golden", "lmcache-wire.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(raw, &g); err != nil {
		tb.Fatal(err)
	}
	return g
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// same holds one message in both encodings against the other: both decode to
// the same values, and those encode to LMCache's own bytes.
func same(t *testing.T, wire []byte, value json.RawMessage) {
	t.Helper()
	got, err := lmcache.Decode(wire)
	if err != nil {
		t.Errorf("decode %s: %v", value, err)
		return
	}
	want, err := lmcache.Decode(value)
	if err != nil {
		t.Errorf("decode JSON %s: %v", value, err)
		return
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-JSON +msgpack):\n%s", value, diff)
	}
	if b := want.Append(nil); !bytes.Equal(b, wire) {
		t.Errorf("%s\nencoded %x\nLMCache %x", value, b, wire)
	}
}

func TestGoldenMessages(t *testing.T) {
	foreign, checked, all := map[string]bool{}, 0, 0
	for _, version := range readGolden(t).Encoded {
		all += len(version.Messages)
		for _, m := range version.Messages {
			checked++
			if slices.Contains(outOfScope, m.Type) {
				foreign[m.Type] = true
				var unknown *lmcache.UnknownTypeError
				if _, err := lmcache.Decode(unhex(t, m.Hex)); !errors.As(err, &unknown) || unknown.Class != m.Type {
					t.Errorf("%s: %v, want an UnknownTypeError", m.Type, err)
				}
				continue
			}
			same(t, unhex(t, m.Hex), m.Value)
		}
	}
	for _, class := range outOfScope {
		if !foreign[class] && class != "NoSuchMsg" {
			t.Errorf("%s is called out of scope, but the golden file has none", class)
		}
	}
	if checked == 0 || checked != all {
		t.Errorf("%d messages checked of %d", checked, all)
	}
}

// TestGoldenSessions reads every frame that real workers and controllers
// exchanged.
func TestGoldenSessions(t *testing.T) {
	g := readGolden(t)
	checked, all := 0, 0
	for _, session := range slices.Concat(g.LiveWorker, g.LiveController) {
		for _, event := range session.Events {
			all += len(event.Frames)
			for i, frame := range event.Frames {
				checked++
				wire := unhex(t, frame)
				message, err := lmcache.Decode(wire)
				var unknown *lmcache.UnknownTypeError
				switch {
				case frame == "": // the delimiter of a request or reply
					if i > 0 || len(event.Frames) < 2 {
						t.Errorf("lmcache %s, %s: an empty frame that delimits nothing", session.LMCache, event.Socket)
					}
				case errors.As(err, &unknown):
					if !slices.Contains(outOfScope, unknown.Class) {
						t.Errorf("lmcache %s, %s on %s: %v", session.LMCache, event.Dir, event.Socket, err)
					}
				case string(event.Decoded[i]) == "null" && wire[0] != '{': // malformed on purpose
					if err == nil {
						t.Errorf("%x: decoded %T, LMCache refused it", wire, message)
					}
				case err != nil:
					t.Errorf("lmcache %s, %s on %s: %v", session.LMCache, event.Dir, event.Socket, err)
				case wire[0] == '{':
					if _, ok := message.(*lmcache.HeartbeatMsg); !ok {
						t.Errorf("JSON %s: decoded %T", wire, message)
					}
				default:
					same(t, wire, event.Decoded[i])
				}
			}
		}
	}
	if checked == 0 || checked != all {
		t.Errorf("%d frames checked of %d", checked, all)
	}
}

// "decoders must accept any key order, unknown keys must be ignored".
func TestDecodeTakesAnyOrderAndUnknownKeys(t *testing.T) {
	b := msgp.AppendMapHeader(nil, 6)
	b = msgp.AppendInt(msgp.AppendString(b, "seq_num"), 7)
	b = msgp.AppendInt64(msgp.AppendString(b, "key"), -2)
	b = msgp.AppendString(b, "future")
	b = msgp.AppendMapHeader(b, 1)
	b = msgp.AppendArrayHeader(msgp.AppendString(b, "deep"), 2)
	b = msgp.AppendArrayHeader(msgp.AppendNil(b), 0)
	b = msgp.AppendString(msgp.AppendString(b, "type"), "KVAdmitMsg")
	b = msgp.AppendString(msgp.AppendString(b, "location"), "LocalCPUBackend")
	b = msgp.AppendString(msgp.AppendString(b, "instance_id"), "a")
	if _, err := lmcache.Decode(b); err == nil || !strings.Contains(err.Error(), `"worker_id"`) {
		t.Fatalf("got %v, want an error that names worker_id", err)
	}
	b[0]++ // one more pair
	b = msgp.AppendInt(msgp.AppendString(b, "worker_id"), 3)
	got, err := lmcache.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	want, err := lmcache.Decode([]byte(`{"type":"KVAdmitMsg","instance_id":"a","worker_id":3,"key":-2,"location":"LocalCPUBackend","seq_num":7}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeTakesEitherURLOrNone(t *testing.T) {
	for body, url := range map[string]string{
		`"peer_init_url":"a:1"`:                        "a:1",
		`"peer_init_url":null`:                         "",
		`"distributed_url":"b:2"`:                      "b:2",
		`"distributed_url":"b:2","peer_init_url":null`: "b:2",
		`"peer_init_url":"a:1","distributed_url":""`:   "a:1",
		`"none":1`: "",
	} {
		m, err := lmcache.Decode([]byte(`{"type":"RegisterMsg","instance_id":"a","worker_id":0,"ip":"10.0.0.1","port":1,` + body + `}`))
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if got := m.(*lmcache.RegisterMsg).PeerURL; got != url {
			t.Errorf("%s: url %q, want %q", body, got, url)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	admit := (&lmcache.KVAdmitMsg{}).Append(nil)
	for name, b := range map[string][]byte{
		"nothing":           {},
		"a fixint":          {0x05},
		"an array":          {0x90},
		"a bad opcode":      {0xc1, 0x62, 0x61, 0x64},
		"no type":           {0x80},
		"empty JSON":        []byte(`{`),
		"JSON and more":     []byte(`{"type":"ErrorMsg","error":"x"} {}`),
		"bytes at the end":  append(slices.Clone(admit), 0),
		"a cut message":     admit[:len(admit)-1],
		"a huge list":       append(msgp.AppendString(msgp.AppendString(msgp.AppendString([]byte{0x82}, "type"), "FullSyncBatchMsg"), "keys"), 0xdd, 0xff, 0xff, 0xff, 0xff),
		"a negative rank":   []byte(`{"type":"FullSyncStatusMsg","instance_id":"a","worker_id":-1,"sync_id":"s"}`),
		"a string for rank": []byte(`{"type":"FullSyncStatusMsg","instance_id":"a","worker_id":"0","sync_id":"s"}`),
		"another op_type":   []byte(`{"type":"BatchedKVOperationMsg","instance_id":"a","worker_id":0,"location":"L","operations":[{"op_type":"pin","key":1,"seq_num":1}]}`),
		"a huge name":       []byte(`{"type":"FullSyncStatusMsg","instance_id":"` + strings.Repeat("a", 4097) + `","worker_id":0,"sync_id":"s"}`),
		"too large":         append(slices.Clone(admit), make([]byte, lmcache.MaxMessage)...),
		"too large a JSON":  []byte(`{"type":"ErrorMsg","error":"x"` + strings.Repeat(" ", 1<<20) + `}`),
	} {
		if m, err := lmcache.Decode(b); err == nil {
			t.Errorf("%s: decoded %T", name, m)
		}
	}
}

// Nesting must not be able to exhaust the stack.
func TestDecodeSkipsDeepNesting(t *testing.T) {
	b := msgp.AppendString([]byte{0x83}, "junk")
	b = append(b, bytes.Repeat([]byte{0x91}, 1<<20)...)
	b = append(b, 0xc0)
	b = msgp.AppendString(msgp.AppendString(b, "type"), "ErrorMsg")
	b = msgp.AppendString(msgp.AppendString(b, "error"), "x")
	if _, err := lmcache.Decode(b); err != nil {
		t.Error(err)
	}
}

// Whatever decodes is written back to bytes that decode to the same, and
// nothing panics.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"type":"BatchedKVOperationMsg","instance_id":"a","worker_id":0,"location":"L","operations":[{"op_type":"evict","key":18446744073709551615,"seq_num":1}]}`))
	for _, m := range everyMessage() {
		f.Add(m.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := lmcache.Decode(b)
		if err != nil {
			return
		}
		again, err := lmcache.Decode(m.Append(nil))
		if err != nil {
			t.Fatalf("%#v: own encoding: %v", m, err)
		}
		if diff := cmp.Diff(m, again, cmpopts.EquateEmpty(), cmpopts.EquateNaNs()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestEveryMessageSurvivesTheWire(t *testing.T) {
	for _, m := range everyMessage() {
		got, err := lmcache.Decode(m.Append(nil))
		if err != nil {
			t.Errorf("%s: %v", m.Type(), err)
			continue
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Errorf("%s:\n%s", m.Type(), diff)
		}
	}
}

func everyMessage() []lmcache.Message {
	w := lmcache.WorkerID{Instance: "vllm-a", Worker: 3}
	g := lmcache.Registration{Worker: w, IP: "10.0.0.7", Port: 8001, PeerURL: "10.0.0.7:9001"}
	old := g
	old.Distributed = true
	keys := []lmcache.WireKey{
		lmcache.SignedKey(0), lmcache.SignedKey(1<<64 - 1), lmcache.UnsignedKey(1<<64 - 1),
		lmcache.SignedKey(1 << 63), lmcache.UnsignedKey(1 << 63),
	}
	op := lmcache.KVOperation{Worker: w, Key: keys[1], Location: lmcache.LocationCPU, Seq: 7}
	unnumbered := op
	unnumbered.Seq = lmcache.NoSeq
	return []lmcache.Message{
		&lmcache.RegisterMsg{Registration: g},
		&lmcache.RegisterMsg{Registration: old},
		&lmcache.HeartbeatMsg{Registration: g},
		&lmcache.DeRegisterMsg{Worker: w, IP: "10.0.0.7", Port: 8001},
		&lmcache.KVAdmitMsg{KVOperation: op},
		&lmcache.KVEvictMsg{KVOperation: unnumbered},
		&lmcache.BatchedKVOperationMsg{Worker: w, Location: "L", Operations: []lmcache.KVOp{{Key: keys[0], Seq: 0}, {Key: keys[2], Seq: 1, Evict: true}}},
		&lmcache.BatchedP2PLookupMsg{Hashes: keys, Worker: w},
		&lmcache.FullSyncStartMsg{Worker: w, Location: "L", SyncID: "s", TotalKeys: 5, BatchCount: 1},
		&lmcache.FullSyncBatchMsg{Worker: w, Location: "L", SyncID: "s", BatchID: 0, Keys: keys},
		&lmcache.FullSyncEndMsg{Worker: w, Location: "L", SyncID: "s", ActualTotalKeys: 5},
		&lmcache.FullSyncStatusMsg{Worker: w, SyncID: "s"},
		&lmcache.RegisterRetMsg{ExtraConfig: map[string]string{"heartbeat_url": "h:1", "a": "b"}},
		&lmcache.HeartbeatRetMsg{Commands: []lmcache.Command{{Type: lmcache.CommandFullSync, Reason: "controller_restart"}, {Type: "other"}}},
		&lmcache.BatchedP2PLookupRetMsg{LayoutInfo: []lmcache.P2PHit{{Instance: "b", Location: "L", Chunks: 3, PeerURL: "u:1"}, {}}},
		&lmcache.FullSyncStartRetMsg{SyncID: "s", Error: "busy"},
		&lmcache.FullSyncStatusRetMsg{SyncID: "s", Complete: true, GlobalProgress: 0.5, CanExitFreeze: true, MissingBatches: []int{2, 300}},
		&lmcache.ErrorMsg{Error: "boom"},
	}
}

func TestDecodeTakesDigestsAsKeys(t *testing.T) {
	b := msgp.AppendString(msgp.AppendString([]byte{0x85}, "type"), "KVAdmitMsg")
	b = msgp.AppendString(msgp.AppendString(b, "instance_id"), "a")
	b = msgp.AppendInt(msgp.AppendString(b, "worker_id"), 0)
	b = msgp.AppendString(msgp.AppendString(b, "location"), "L")
	b = msgp.AppendString(b, "key")
	m, err := lmcache.Decode(msgp.AppendBytes(b, []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.(*lmcache.KVAdmitMsg).Key; got != lmcache.UnsignedKey(0x0102030405060708) {
		t.Errorf("key %v", got)
	}
	if _, err := lmcache.Decode(msgp.AppendBytes(b, []byte{1, 2, 3})); err == nil {
		t.Error("a key of 3 bytes was taken")
	}
}

func BenchmarkDecode50Ops(b *testing.B) {
	m := &lmcache.BatchedKVOperationMsg{Worker: lmcache.WorkerID{Instance: "vllm-a"}, Location: lmcache.LocationCPU}
	for i := range 50 {
		m.Operations = append(m.Operations, lmcache.KVOp{Key: lmcache.SignedKey(lmcache.Key(i) * 0x9e3779b97f4a7c15), Seq: int64(i)})
	}
	wire := m.Append(nil)
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := lmcache.Decode(wire); err != nil {
			b.Fatal(err)
		}
	}
}
