package kvevents

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/test/shared"
)

// golden is what the real kv_events.py of seven vLLM releases published.
type golden struct {
	Versions []struct {
		Version string
		Fields  map[string][]string
		Events  []goldenEvent
		Live    []goldenFrames
		Hashes  []goldenHashes `json:"block_hashes"`
	}
}

type goldenEvent struct {
	Label      string
	PayloadHex string `json:"payload_hex"`
	Decoded    []json.RawMessage
}

// goldenHashes are blocks as the engine hashes them, and as it publishes them by
// default.
type goldenHashes struct {
	Hashes   []json.RawMessage `json:"block_hashes"`
	External []string          `json:"external_int64"`
	Keys     string            `json:"extra_keys"`
	Value    any               `json:"extra_keys_value"`
}

type goldenFrames struct {
	Socket   string
	Frames   []string
	StartSeq *uint64 `json:"start_seq"`
}

func readGolden(tb testing.TB) golden {
	tb.Helper()
	text, err := os.ReadFile(shared.File(tb, "golden", "vllm-kv-events.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(text, &g); err != nil {
		tb.Fatal(err)
	}
	if len(g.Versions) != 7 {
		tb.Fatalf("%d versions, want 7", len(g.Versions))
	}
	return g
}

func unhex(tb testing.TB, text string) []byte {
	tb.Helper()
	raw, err := hex.DecodeString(text)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// The events of every version in both forms, against what vLLM's own decoder
// made of them.
func TestDecodeGolden(t *testing.T) {
	for _, v := range readGolden(t).Versions {
		for _, record := range v.Events {
			t.Run(v.Version+" "+record.Label, func(t *testing.T) {
				var b batch
				if err := b.decode(unhex(t, record.PayloadHex)); err != nil {
					t.Fatal(err)
				}
				var at float64
				var raw []json.RawMessage
				unmarshal(t, record.Decoded[0], &at)
				unmarshal(t, record.Decoded[1], &raw)
				var want []event
				for _, r := range raw {
					want = append(want, wantEvent(t, v.Fields, r))
				}
				if at != b.time {
					t.Errorf("time %v, want %v", b.time, at)
				}
				if diff := cmp.Diff(want, b.events, cmp.AllowUnexported(event{})); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
			})
		}
	}
}

func unmarshal(tb testing.TB, raw []byte, into any) {
	tb.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		tb.Fatalf("%s: %v", raw, err)
	}
}

// wantEvent is the event of a decoded record: a list after its tag, or an
// object.
func wantEvent(t *testing.T, fields map[string][]string, raw json.RawMessage) event {
	t.Helper()
	record := map[string]json.RawMessage{}
	if raw[0] == '[' {
		var list []json.RawMessage
		unmarshal(t, raw, &list)
		record["type"] = list[0]
		var tag string
		unmarshal(t, list[0], &tag)
		for i, value := range list[1:] {
			record[fields[tag][i]] = value
		}
	} else {
		unmarshal(t, raw, &record)
	}
	e := event{medium: "gpu", foreign: -1}
	for name, value := range record {
		if string(value) == "null" {
			continue
		}
		var s string
		switch name {
		case "type":
			unmarshal(t, value, &s)
			e.kind = map[string]kind{"BlockStored": kindStored, "BlockRemoved": kindRemoved, "AllBlocksCleared": kindCleared}[s]
		case "block_hashes":
			var list []json.RawMessage
			unmarshal(t, value, &list)
			for _, h := range list {
				e.hashes = append(e.hashes, wantHash(t, h))
			}
		case "parent_block_hash":
			e.parent, e.hasParent = wantHash(t, value), true
		case "token_ids":
			unmarshal(t, value, &e.tokens)
		case "block_size":
			unmarshal(t, value, &e.blockSize)
		case "medium":
			unmarshal(t, value, &s)
			e.medium = strings.ToLower(s)
		case "lora_id":
			if name := record["lora_name"]; name == nil || string(name) == "null" {
				e.foreign = 0
			}
		case "lora_name":
			unmarshal(t, value, &e.adapter)
		case "extra_keys":
			if string(value) != `[["tenant-a"], null]` && string(value) != `[["tenant-a"],null]` {
				t.Errorf("extra keys %s are new", value)
			}
			e.salt = "tenant-a"
		case "group_idx":
			unmarshal(t, value, &e.group)
		case "kv_cache_spec_kind":
			unmarshal(t, value, &e.spec)
		case "kv_cache_spec_sliding_window":
			unmarshal(t, value, &e.window)
		case "locality", "ownership", "session_id", "lookahead_token_ids":
		default:
			t.Errorf("field %s is new", name)
		}
	}
	return e
}

// wantHash is a hash as vLLM publishes it by default, whichever form it came
// in: the low 64 bits.
func wantHash(t *testing.T, raw json.RawMessage) uint64 {
	t.Helper()
	if raw[0] == '{' {
		var digest struct{ Bytes string }
		unmarshal(t, raw, &digest)
		n, err := strconv.ParseUint(digest.Bytes[len(digest.Bytes)-16:], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n, err := strconv.ParseUint(strings.Trim(string(raw), `"`), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A digest and the integer that is published in its place are one name, whatever
// it was made with; and the salts and adapters that went into it are known for
// what they are, tagged or not.
func TestHashesGolden(t *testing.T) {
	compared := 0
	for _, v := range readGolden(t).Versions {
		for i, record := range v.Hashes {
			e := event{foreign: -1}
			want := event{foreign: -1}
			switch record.Keys {
			case "none":
			case "cache_salt_first":
				want.salt = "tenant-a"
			case "lora":
				e.adapter, want.adapter = "my-adapter", "my-adapter"
			default:
				t.Errorf("extra keys %s are new", record.Keys)
			}
			if err := e.decodeExtraKeys(packed(t, nil, []any{record.Value})); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(want, e, cmp.AllowUnexported(event{})); diff != "" {
				t.Errorf("%s: %v (-want +got)\n%s", v.Version, record.Value, diff)
			}
			for j, raw := range record.Hashes {
				var hash struct{ Bytes, Int string }
				unmarshal(t, raw, &hash)
				if hash.Int != "" && v.Version == "0.9.2" {
					continue // Of 256 bits, which its messages cannot carry.
				}
				want, err := strconv.ParseUint(record.External[j], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				for form, packed := range map[string][]byte{
					"digest": msgp.AppendBytes(nil, unhex(t, hash.Bytes)), "unsigned": msgp.AppendUint64(nil, want), "signed": msgp.AppendInt64(nil, int64(want)),
				} {
					got, rest, err := blockHash(packed)
					if err != nil || got != want || len(rest) > 0 {
						t.Errorf("%s: record %d as %s: %d, want %d; %v", v.Version, i, form, got, want, err)
					}
				}
				compared++
			}
		}
	}
	if compared == 0 {
		t.Error("nothing was compared")
	}
}

// The frames that went over the sockets of each version are read as what they
// are, and each replay answers the question before it.
func TestLiveFramesGolden(t *testing.T) {
	for _, v := range readGolden(t).Versions {
		if len(v.Live) == 0 {
			continue // A record of hashes alone.
		}
		t.Run(v.Version, func(t *testing.T) {
			published := map[uint64]string{}
			var want []uint64 // of the replay under way
			seen := map[string]int{}
			for _, record := range v.Live {
				frames := make([][]byte, len(record.Frames))
				for i, f := range record.Frames {
					frames[i] = unhex(t, f)
				}
				seen[record.Socket]++
				switch record.Socket {
				case "PUB->SUB":
					seq, ok := sequence(frames[1])
					if !ok || len(frames) != 3 {
						t.Fatalf("frames %q", record.Frames)
					}
					published[seq] = record.Frames[2]
					var b batch
					if err := b.decode(frames[2]); err != nil {
						t.Error(err)
					}
				case "replay request DEALER->ROUTER":
					start, ok := sequence(frames[1])
					if !ok || start != *record.StartSeq {
						t.Fatalf("request %q", record.Frames)
					}
					want = nil
					for seq := start; seq < 5; seq++ {
						if seq >= 2 { // The buffer of three steps.
							want = append(want, seq)
						}
					}
				case "replay reply":
					seq, payload, ok := replayFrames(frames)
					if !ok {
						t.Fatalf("reply %q", record.Frames)
					}
					if seq == endSequence {
						if len(want) > 0 {
							t.Errorf("the replay ended before %d", want)
						}
						continue
					}
					if len(want) == 0 || seq != want[0] || hex.EncodeToString(payload) != published[seq] {
						t.Errorf("reply %d of %d: %x", seq, want, payload)
					}
					want = want[1:]
				default:
					t.Errorf("socket %s is new", record.Socket)
				}
			}
			if len(seen) != 3 {
				t.Errorf("saw %v", seen)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range readGolden(f).Versions {
		for _, record := range v.Events {
			f.Add(unhex(f, record.PayloadHex))
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var b batch
		if err := b.decode(payload); err != nil {
			return
		}
		if at, ok := timestamp(payload); !ok || (at != b.time && at == at) {
			t.Errorf("time %v, decoded %v", at, b.time)
		}
		if n := len(b.hashes) + len(b.tokens) + len(b.events); n > len(payload) {
			t.Errorf("%d things in %d bytes", n, len(payload))
		}
		for i := range b.events {
			e := &b.events[i]
			if e.blockSize < 0 || e.blockSize > maxBlockSize || e.group < 0 || e.window < 0 || len(e.medium) > 4*maxName || e.medium == "" {
				t.Errorf("%+v", e)
			}
		}
		// Whatever it says, the index takes it.
		ix := newIndex(Config{MaxBlocks: 100})
		v := ix.open(1, feed(1))[0]
		v.apply(&b, now, true)
		v.apply(&b, now, true)
		checkView(t, v)
	})
}

// withKeys is a message of one event with fields as in JSON; bytes are written as
// {"bytes": hex}.
func withKeys(tb testing.TB, fields string) []byte {
	tb.Helper()
	decoder := json.NewDecoder(strings.NewReader(fields))
	decoder.UseNumber()
	var value map[string]any
	if err := decoder.Decode(&value); err != nil {
		tb.Fatal(err)
	}
	value["type"] = "BlockStored"
	return packed(tb, nil, []any{json.Number("0"), []any{value}})
}

func packed(tb testing.TB, to []byte, value any) []byte {
	tb.Helper()
	switch v := value.(type) {
	case nil:
		return msgp.AppendNil(to)
	case string:
		return msgp.AppendString(to, v)
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			tb.Fatal(err)
		}
		return msgp.AppendInt64(to, n)
	case []any:
		to = msgp.AppendArrayHeader(to, uint32(len(v)))
		for _, element := range v {
			to = packed(tb, to, element)
		}
		return to
	case map[string]any:
		if text, ok := v["bytes"].(string); ok {
			return msgp.AppendBytes(to, unhex(tb, text))
		}
		to = msgp.AppendMapHeader(to, uint32(len(v)))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			to = packed(tb, msgp.AppendString(to, key), v[key])
		}
		return to
	}
	tb.Fatalf("%T", value)
	return nil
}

// What a block's hash has in it besides tokens: an adapter's name, a salt, and
// what no prompt of ours can have. Fields come in any order.
func TestDecodeExtraKeys(t *testing.T) {
	const none = -1
	for _, tt := range []struct {
		fields, adapter, salt string
		foreign               int
	}{
		{`{}`, "", "", none},
		{`{"lora_id": null, "lora_name": null, "extra_keys": null}`, "", "", none},
		{`{"lora_id": 0, "lora_name": "", "extra_keys": []}`, "", "", none},
		{`{"extra_keys": [null, [], null]}`, "", "", none},
		// An adapter by name, with and without number; by number alone it may be
		// any.
		{`{"lora_id": 1, "lora_name": "a"}`, "a", "", none},
		{`{"lora_id": null, "lora_name": "A/b"}`, "A/b", "", none},
		{`{"lora_id": 1}`, "", "", 0},
		{`{"lora_id": "x", "lora_name": null}`, "", "", 0},
		{`{"lora_id": 1, "lora_name": "a", "extra_keys": [["a"], ["a"]]}`, "a", "", none},
		// A salt, on the first block of a prompt alone.
		{`{"extra_keys": [["s"], null]}`, "", "s", none},
		{`{"extra_keys": [[["cache_salt", "s"]], null]}`, "", "s", none},
		{`{"lora_name": "a", "extra_keys": [["a", "s"], ["a"]]}`, "a", "s", none},
		{`{"lora_name": "a", "extra_keys": [["a", "a"], ["a"]]}`, "a", "a", none},
		{`{"lora_name": "a", "extra_keys": [["s"]]}`, "a", "s", none},
		{`{"lora_name": "a", "extra_keys": [[["lora", "a", "/path"], ["cache_salt", "a"]], [["lora", "a", "/path"]]]}`, "a", "a", none},
		{`{"extra_keys": [null, ["s"]]}`, "", "", 1},
		{`{"parent_block_hash": 1, "extra_keys": [["s"]]}`, "", "", 0},
		{`{"parent_block_hash": 1, "extra_keys": [[["cache_salt", "s"]]]}`, "", "", 0},
		// Another adapter's, images, embeddings, and what may come.
		{`{"extra_keys": [[["lora", "a", "/path"]]]}`, "", "", 0},
		{`{"lora_name": "a", "extra_keys": [["a"], ["a", "a"]]}`, "a", "", 1},
		{`{"lora_name": "a", "extra_keys": [["a"], [["cache_salt", "a"]]]}`, "a", "", 1},
		{`{"extra_keys": [["s"], [["image", 3]], null]}`, "", "s", 1},
		{`{"extra_keys": [[["image", -3], "s"]]}`, "", "s", 0},
		{`{"extra_keys": [[["mm", "image", 0]]]}`, "", "", 0},
		{`{"extra_keys": [[["mm", "image"]]]}`, "", "", 0},
		{`{"extra_keys": [[["cache_salt", 3]]]}`, "", "", 0},
		{`{"extra_keys": [[["cache_salt"]]]}`, "", "", 0},
		{`{"extra_keys": [["image", "s"]]}`, "", "image", 0},
		{`{"extra_keys": [[""]]}`, "", "", 0},
		{`{"extra_keys": [null, [{"bytes": "00ff"}]]}`, "", "", 1},
		{`{"extra_keys": [null, [7]]}`, "", "", 1},
		{`{"extra_keys": ["s"]}`, "", "", 0},
		{`{"extra_keys": [{"cache_salt": "s"}]}`, "", "", 0},
	} {
		var b batch
		if err := b.decode(withKeys(t, tt.fields)); err != nil {
			t.Errorf("%s: %v", tt.fields, err)
			continue
		}
		if e := b.events[0]; e.adapter != tt.adapter || e.salt != tt.salt || e.foreign != tt.foreign {
			t.Errorf("%s: adapter %q, salt %q, foreign from %d; want %q, %q, %d", tt.fields, e.adapter, e.salt, e.foreign, tt.adapter, tt.salt, tt.foreign)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, payload := range map[string]string{
		"nothing":            "",
		"not a list":         "80",
		"time alone":         "91cb41da454fb0200000",
		"time is text":       "92a17490",
		"events is a map":    "920080",
		"event is a number":  "92009101",
		"event without tag":  "92009190",
		"map without type":   "92009181a16101",
		"type is a number":   "92009181a474797065" + "01",
		"cut short":          "920091" + "92ac426c6f636b52656d6f766564",
		"too many hashes":    "920091" + "92ac426c6f636b52656d6f766564" + "ddffffffff",
		"hash is text":       "920091" + "92ac426c6f636b52656d6f766564" + "91a161",
		"negative token":     "920091" + "94ab426c6f636b53746f726564" + "9101" + "c0" + "91ff",
		"negative size":      "920091" + "95ab426c6f636b53746f726564" + "9101" + "c0" + "9101" + "ff",
		"something after it": "92009000",
	} {
		t.Run(name, func(t *testing.T) {
			var b batch
			if err := b.decode(unhex(t, payload)); err == nil {
				t.Errorf("decoded: %+v", b)
			}
		})
	}
}

// What a later vLLM may add does no harm.
func TestDecodeSkipsTheUnknown(t *testing.T) {
	for name, payload := range map[string]string{
		"a fourth element":           "9400" + "91" + "91b0416c6c426c6f636b73436c6561726564" + "00" + "81a16101",
		"two elements":               "9200" + "91" + "91b0416c6c426c6f636b73436c6561726564",
		"a field more, array":        "9200" + "91" + "92b0416c6c426c6f636b73436c6561726564" + "9101",
		"a field more, map":          "9200" + "91" + "82a474797065b0416c6c426c6f636b73436c6561726564" + "a16191c0",
		"type at the end":            "9200" + "91" + "82a16191c0" + "a474797065b0416c6c426c6f636b73436c6561726564",
		"an unknown event, too":      "9200" + "92" + "91b0416c6c426c6f636b73436c6561726564" + "93a141" + "01" + "a162",
		"an unknown map, same names": "9200" + "92" + "81a474797065b0416c6c426c6f636b73436c6561726564" + "82a474797065a141" + "ac626c6f636b5f686173686573" + "a17a",
	} {
		t.Run(name, func(t *testing.T) {
			var b batch
			if err := b.decode(unhex(t, payload)); err != nil {
				t.Fatal(err)
			}
			if b.events[0].kind != kindCleared || (len(b.events) > 1 && b.events[1].kind != kindOther) {
				t.Errorf("%+v", b.events)
			}
		})
	}
}

func fromBase64(tb testing.TB, text string) []byte {
	tb.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}
