//go:build cgo && !nozmq

package engine_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/test/shared"
)

// publishing is an engine that publishes KV events on free ports.
func publishing(version string) engine.Config {
	cfg := config()
	cfg.Events.Endpoint, cfg.Events.Replay = "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"
	cfg.Events.Topic, cfg.Events.VLLMVersion = "kv@e1@m", version
	return cfg
}

// message is one message of KV events.
type message struct {
	seq     uint64
	payload []byte
	frames  int // of the replay's answer
}

// replayed asks the engine for all messages from a number on.
func (r *rig) replayed(from uint64) []message {
	r.Helper()
	_, address := r.EventAddresses()
	ctx, err := zmq.NewContext()
	if err != nil {
		r.Fatal(err)
	}
	defer ctx.Close()
	socket, err := ctx.Socket(zmq.Dealer, zmq.Options{RecvHWM: 100_000})
	if err != nil {
		r.Fatal(err)
	}
	defer socket.Close()
	if err := socket.Connect(address); err != nil {
		r.Fatal(err)
	}
	poller, err := ctx.NewPoller(socket)
	if err != nil {
		r.Fatal(err)
	}
	defer poller.Close()
	eventually(r, "the engine takes a question", func() bool {
		return socket.Send(nil, binary.BigEndian.AppendUint64(nil, from)) == nil
	})
	var messages []message
	for {
		if _, err := poller.Poll(patience); err != nil {
			r.Fatal(err)
		}
		frames, err := socket.Recv()
		if err != nil {
			r.Fatal(err)
		}
		n := len(frames)
		seq := binary.BigEndian.Uint64(frames[n-2])
		if n == 4 && seq != math.MaxUint64 && string(frames[1]) != "kv@e1@m" {
			r.Errorf("topic %q", frames[1])
		}
		if seq == math.MaxUint64 {
			return messages
		}
		messages = append(messages, message{seq, frames[n-1], n})
	}
}

// blockEvent is one KV event in either form.
type blockEvent struct {
	Type   string
	Fields []string // in their order
	Values map[string]any
}

// fieldsOf are the fields by release and event, as vLLM's classes have them.
type fieldsOf map[string][]string

// read takes a message apart, as the classes with these fields have it.
func (m message) read(tb testing.TB, fields fieldsOf) (events []blockEvent) {
	tb.Helper()
	batch, rest, err := msgp.ReadIntfBytes(m.payload)
	if err != nil || len(rest) > 0 {
		tb.Fatalf("%v, %d bytes left", err, len(rest))
	}
	list := batch.([]any)
	if len(list) != 3 || list[0].(float64) < 1.7e9 || fmt.Sprint(list[2]) != "0" {
		tb.Errorf("batch of %d: time %v, rank %v", len(list), list[0], list[2])
	}
	for i, raw := range list[1].([]any) {
		if a, ok := raw.([]any); ok {
			e := blockEvent{Type: a[0].(string), Values: map[string]any{}}
			e.Fields = fields[e.Type][:len(a)-1]
			for i, name := range e.Fields {
				e.Values[name] = a[i+1]
			}
			events = append(events, e)
			continue
		}
		values := raw.(map[string]any)
		e := blockEvent{Type: values["type"].(string), Values: values, Fields: keyOrder(tb, m.payload, i)}
		delete(values, "type")
		events = append(events, e)
	}
	return events
}

// keyOrder are the keys of the i-th event, a map whose first is its type.
func keyOrder(tb testing.TB, payload []byte, i int) (keys []string) {
	tb.Helper()
	check := func(rest []byte, err error) []byte {
		if err != nil {
			tb.Fatal(err)
		}
		return rest
	}
	_, rest, err := msgp.ReadArrayHeaderBytes(payload)
	check(rest, err)
	rest = check(msgp.Skip(rest))
	_, rest, err = msgp.ReadArrayHeaderBytes(rest)
	check(rest, err)
	for range i {
		rest = check(msgp.Skip(rest))
	}
	n, rest, err := msgp.ReadMapHeaderBytes(rest)
	check(rest, err)
	for range n {
		var key string
		key, rest, err = msgp.ReadStringBytes(rest)
		check(rest, err)
		rest = check(msgp.Skip(rest))
		keys = append(keys, key)
	}
	if keys[0] != "type" {
		tb.Errorf("an event begins with %s", keys[0])
	}
	return keys[1:]
}

func integers(v any) (out []uint64) {
	for _, e := range v.([]any) {
		switch n := e.(type) {
		case int64:
			out = append(out, uint64(n))
		case uint64:
			out = append(out, n)
		}
	}
	return out
}

// canonical names blocks by when they were first told, so that engines with
// different hashes can be compared.
type canonical map[uint64]int

func (c canonical) name(hash any) int {
	n, ok := hash.(uint64)
	if i, small := hash.(int64); small {
		n, ok = uint64(i), true
	}
	if !ok {
		return -1
	}
	if _, known := c[n]; !known {
		c[n] = len(c)
	}
	return c[n]
}

// plain is an event without what depends on the engine's hashes.
func (c canonical) plain(e blockEvent) string {
	if e.Type == "AllBlocksCleared" {
		return e.Type
	}
	parent := -1
	if e.Type == "BlockStored" {
		parent = c.name(e.Values["parent_block_hash"])
	}
	var blocks []int
	for _, h := range e.Values["block_hashes"].([]any) {
		blocks = append(blocks, c.name(h))
	}
	other := maps.Clone(e.Values)
	delete(other, "parent_block_hash")
	delete(other, "block_hashes")
	delete(other, "token_ids")
	text, err := json.Marshal(other)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintln(e.Type, e.Fields, "blocks", blocks, "after", parent, string(text))
}

// TestEventsAreThoseOfTheTrace asks what the real engine was asked, one request
// after the other as there, and compares what both published for each.
func TestEventsAreThoseOfTheTrace(t *testing.T) {
	requests, published, _ := readTrace(t)
	cfg := publishing("0.32.0")
	cfg.BlockTokens, cfg.MaxModelLen = 32, 8192
	cfg.Profile.KVTokens, cfg.Profile.BatchTokens, cfg.Profile.MaxSeqs = 299*32, 2048, 4
	cfg.Tokenizer = qwen(t)
	r := start(t, cfg)
	theirs, ours := canonical{}, canonical{}
	next, compared := uint64(0), 0
	removals := true // the trace tells as much of them as this engine can know
	for i, q := range requests {
		var told []message
		for len(published) > 0 && (i == len(requests)-1 || published[0].at(t) < requests[i+1].SentAt) {
			told, published = append(told, message{payload: published[0].Payload}), published[1:]
		}
		if q.Closed {
			// When the client went is not known to the step, so from here on other
			// blocks are the oldest.
			removals = false
			continue
		}
		r.do(http.MethodPost, q.Path, string(q.Body))
		answered := r.replayed(next)
		next += uint64(len(answered))
		var prompt struct{ Prompt json.RawMessage }
		_ = json.Unmarshal(q.Body, &prompt)
		var ids []uint64
		given := json.Unmarshal(prompt.Prompt, &ids) == nil
		list := func(messages []message, names canonical) (stored, removed []string) {
			at := map[int]int{-1: 0} // tokens up to and with a block
			for _, m := range messages {
				for _, e := range m.read(t, nil) {
					if e.Type == "BlockRemoved" {
						removed = append(removed, names.plain(e))
						continue
					}
					line := names.plain(e)
					if e.Type == "BlockStored" && given {
						begin, known := at[names.name(e.Values["parent_block_hash"])]
						tokens := integers(e.Values["token_ids"])
						for j, h := range e.Values["block_hashes"].([]any) {
							at[names.name(h)] = begin + (j+1)*32
						}
						if end := min(begin+len(tokens), len(ids)); known && begin < end && !slices.Equal(ids[begin:end], tokens[:end-begin]) {
							t.Errorf("%s: tokens from %d on are not the prompt's", q.Name, begin)
						}
						line += fmt.Sprintln(len(tokens), "tokens")
					}
					stored = append(stored, line)
				}
			}
			return stored, removed
		}
		wantStored, wantRemoved := list(told, theirs)
		gotStored, gotRemoved := list(answered, ours)
		if diff := cmp.Diff(wantStored, gotStored); diff != "" {
			t.Errorf("%s: stored (-theirs +ours)\n%s", q.Name, diff)
		}
		if diff := cmp.Diff(wantRemoved, gotRemoved); removals && diff != "" {
			t.Errorf("%s: removed (-theirs +ours)\n%s", q.Name, diff)
		}
		if q.Name == "B5000" && len(answered) != 3 {
			t.Errorf("%s: told in %d messages, want one for each step", q.Name, len(answered))
		}
		compared += len(wantStored)
	}
	if compared < 20 {
		t.Errorf("compared only %d events", compared)
	}
}

// TestEventsHaveTheFormOfTheirRelease compares fields and frames with those that
// vLLM's own classes of each release have.
func TestEventsHaveTheFormOfTheirRelease(t *testing.T) {
	text, err := os.ReadFile(shared.File(t, "golden", "vllm-kv-events.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Versions []struct {
			Version string
			Fields  fieldsOf
			Events  []struct {
				Label      string
				PayloadHex string `json:"payload_hex"`
			}
			Live []struct {
				Socket string
				Frames []string
			}
		}
	}
	if err := json.Unmarshal(text, &golden); err != nil {
		t.Fatal(err)
	}
	for _, v := range golden.Versions {
		if len(v.Live) == 0 {
			continue // a record of hashes alone
		}
		t.Run(v.Version, func(t *testing.T) {
			cfg := publishing(v.Version)
			cfg.Profile.KVTokens, cfg.MaxModelLen = 320, 320
			cfg.Adapters = []engine.Adapter{{Name: "sql", Path: "/adapters/sql"}}
			r := start(t, cfg)
			r.post("/v1/completions", object{"prompt": ids(1, 100), "max_tokens": 1, "cache_salt": "s", "model": "sql"})
			r.post("/v1/completions", object{"prompt": ids(2, 300), "max_tokens": 1})
			r.do(http.MethodPost, "/reset_prefix_cache", "")
			r.post("/v1/completions", object{"prompt": ids(2, 10), "max_tokens": 1})
			messages := r.replayed(0)
			if len(messages) != 3 {
				t.Fatalf("%d messages", len(messages))
			}
			frames := 0 // of a replayed message
			for _, record := range v.Live {
				if record.Socket == "replay reply" {
					frames = len(record.Frames)
				}
			}
			// The first event begins after time and counts: an array, a map or a
			// wide map.
			if want, got := v.Events[0].PayloadHex[22:23], fmt.Sprintf("%x", messages[0].payload[11]>>4); got != want {
				t.Errorf("events begin with %s…, want %s…", got, want)
			}
			types := map[string]int{}
			for _, m := range messages {
				if m.frames != frames {
					t.Errorf("replayed in %d frames, want %d", m.frames, frames)
				}
				for _, e := range m.read(t, v.Fields) {
					types[e.Type]++
					rest := v.Fields[e.Type]
					for _, name := range e.Fields {
						i := slices.Index(rest, name)
						if i < 0 {
							t.Fatalf("%s has the fields %v, want them as in %v", e.Type, e.Fields, v.Fields[e.Type])
						}
						rest = rest[i+1:]
					}
				}
			}
			if types["BlockStored"] != 2 || types["BlockRemoved"] == 0 || types["AllBlocksCleared"] != 1 {
				t.Errorf("events %v", types)
			}
			first := messages[0].read(t, v.Fields)[0].Values
			if lora := fmt.Sprint(first["lora_id"]); lora != "1" {
				t.Errorf("lora_id %s", lora)
			}
			if slices.Contains(v.Fields["BlockStored"], "lora_name") && first["lora_name"] != "sql" {
				t.Errorf("lora_name %v", first["lora_name"])
			}
			if slices.Contains(v.Fields["BlockStored"], "extra_keys") {
				want := "[[sql s] [sql] [sql] [sql] [sql] [sql]]" // never said what is what
				if got := fmt.Sprint(first["extra_keys"]); got != want {
					t.Errorf("extra_keys %s, want %s", got, want)
				}
			}
		})
	}
}

// TestOldestMessagesAreNotKept: the replay begins at what is kept.
func TestOldestMessagesAreNotKept(t *testing.T) {
	cfg := publishing("0.33.0")
	cfg.Events.BufferSteps = 3
	r := start(t, cfg)
	for i := range 5 {
		r.post("/v1/completions", object{"prompt": ids(i, 20), "max_tokens": 1})
	}
	for from, want := range map[uint64][]uint64{0: {2, 3, 4}, 3: {3, 4}, 9: nil} {
		var got []uint64
		for _, m := range r.replayed(from) {
			got = append(got, m.seq)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("from %d: %s", from, diff)
		}
	}
}

// TestWhatACancelledStepComputedIsPublished: the client goes while the step that
// computes its prompt is under way.
func TestWhatACancelledStepComputedIsPublished(t *testing.T) {
	cfg := publishing("0.33.0")
	cfg.Faults.Slow = 1e9 // no step ends
	r := start(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, r.URL()+"/v1/completions", strings.NewReader(encode(t, object{"prompt": ids(1, 100), "max_tokens": 5, "stream": true})))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool { return r.metric("vllm:num_requests_running") == 1 })
	cancel()
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	eventually(t, "it is gone", func() bool { return r.metric("vllm:num_requests_running") == 0 })
	if err := r.SetFaults(engine.Faults{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its blocks are told", func() bool { return len(r.replayed(0)) == 1 })
	if e := r.replayed(0)[0].read(t, nil); len(e) != 1 || len(e[0].Values["block_hashes"].([]any)) != 6 {
		t.Errorf("%+v", e)
	}
}

// TestRestartBeginsAnew: addresses stay, everything else begins from nothing.
func TestRestartBeginsAnew(t *testing.T) {
	r := start(t, publishing("0.33.0"))
	ask := func() float64 {
		return r.post("/v1/completions", object{"prompt": ids(1, 100), "max_tokens": 1}).field(t, "usage.prompt_tokens_details.cached_tokens").(float64)
	}
	if a, b := ask(), ask(); a != 0 || b != 96 {
		t.Errorf("%v and %v cached before", a, b)
	}
	address, started := r.Address(), r.metric("process_start_time_seconds")
	live, again := r.EventAddresses()
	first := r.replayed(0)
	running := r.open(object{"prompt": "x", "max_tokens": 30_000, "stream": true})
	if got := r.do(http.MethodPost, "/restart", ""); got.StatusCode != http.StatusOK {
		t.Fatal(got.Status)
	}
	if _, err := io.ReadAll(running); err == nil {
		t.Error("a running answer went on to its end")
	}
	eventually(t, "it is up again", func() bool {
		resp, err := http.Get("http://" + address + "/health")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	if l, a := r.EventAddresses(); l != live || a != again || r.Address() != address {
		t.Errorf("addresses %s %s %s, were %s %s %s", r.Address(), l, a, address, live, again)
	}
	if got := r.metric("vllm:prompt_tokens_total"); got != 0 {
		t.Errorf("%v prompt tokens counted before the first", got)
	}
	if got := r.metric("process_start_time_seconds"); got <= started {
		t.Errorf("started at %v, before at %v", got, started)
	}
	if got := ask(); got != 0 {
		t.Errorf("%v cached after the restart", got)
	}
	if m := r.replayed(0); len(m) != 1 || m[0].seq != 0 || len(first) != 1 {
		t.Errorf("%d messages after the restart, the first %+v", len(m), m)
	}
}
