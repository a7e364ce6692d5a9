//go:build cgo && !nozmq

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/kvevents"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
)

// eventPublisher publishes as an engine does, and returns where, and how to
// announce the blocks of 16 of a prompt once somebody listens.
func eventPublisher(t *testing.T) (address string, announce func(ids []uint32)) {
	t.Helper()
	ctx, err := zmq.NewContext()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ctx.Socket(zmq.XPub, zmq.Options{}) // It sees who subscribes.
	if err != nil {
		t.Fatal(err)
	}
	poller, err := ctx.NewPoller(pub)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = poller.Close()
		_ = pub.Close()
		_ = ctx.Close()
	})
	if address, err = pub.Bind("tcp://127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return address, func(ids []uint32) {
		t.Helper()
		if ready, err := poller.Poll(20 * time.Second); err != nil || len(ready) == 0 {
			t.Fatalf("nobody subscribes: %v", err)
		}
		b := msgp.AppendFloat64(msgp.AppendArrayHeader(nil, 2), 1)
		b = msgp.AppendMapHeader(msgp.AppendArrayHeader(b, 1), 5)
		b = msgp.AppendString(msgp.AppendString(b, "type"), "BlockStored")
		b = msgp.AppendArrayHeader(msgp.AppendString(b, "block_hashes"), uint32(len(ids)/16))
		for i := range len(ids) / 16 {
			b = msgp.AppendInt(b, 1000+i)
		}
		b = msgp.AppendArrayHeader(msgp.AppendString(b, "token_ids"), uint32(len(ids)))
		for _, id := range ids {
			b = msgp.AppendUint32(b, id)
		}
		b = msgp.AppendInt(msgp.AppendString(b, "block_size"), 16)
		b = msgp.AppendString(msgp.AppendString(b, "medium"), "GPU")
		if err := pub.Send(nil, binary.BigEndian.AppendUint64(nil, 0), b); err != nil {
			t.Fatal(err)
		}
	}
}

// A prompt that an engine announced is sent there, each to its own.
func TestServeFollowsKVEvents(t *testing.T) {
	models := `{"object":"list","data":[{"id":"m"}]}`
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	var addresses []string
	var announce []func([]uint32)
	for range 2 {
		address := fakeEngine(t, models)
		events, tell := eventPublisher(t)
		addresses, announce = append(addresses, address), append(announce, tell)
		cfg.Endpoints = append(cfg.Endpoints, discovery.Entry{Address: address, KVEvents: discovery.KVEventsEntry{Endpoint: events}})
	}
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)

	prompts := make([][]uint32, 2)
	for i := range prompts {
		for id := range 1600 {
			prompts[i] = append(prompts[i], uint32(id+i*5000))
		}
		announce[i](prompts[i])
	}
	var view struct {
		KVEvents []kvevents.Status `json:"kv_events"`
	}
	for deadline := time.Now().Add(20 * time.Second); len(view.KVEvents) != 2 || view.KVEvents[0].Blocks["gpu"] != 100 || view.KVEvents[1].Blocks["gpu"] != 100; {
		if time.Now().After(deadline) {
			t.Fatalf("the events never arrived: %+v", view)
		}
		get(t, b, "/status", &view)
	}
	for round := range 4 {
		for i, ids := range prompts {
			text, err := json.Marshal(ids)
			if err != nil {
				t.Fatal(err)
			}
			chosen, _, _ := strings.Cut(choose(t, conn, fmt.Sprintf(`{"model":"m","prompt":%s,"stream":true}`, text)), ",")
			if chosen != addresses[i] {
				t.Errorf("round %d: prompt %d went to %s, want %s, which holds it", round, i, chosen, addresses[i])
			}
		}
	}
	if text := get(t, b, "/metrics", nil); !strings.Contains(text, `firsttoken_kv_events_blocks{endpoint="`+addresses[0]+`",medium="gpu"} 100`) {
		t.Errorf("/metrics lacks the blocks:\n%s", text)
	}
}

// A request that is not streamed leaves the queue when its engine tells that the
// prompt is computed, long before the answer, and before the time predicted.
func TestServeFollowsPrefills(t *testing.T) {
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	address := fakeEngine(t, `{"object":"list","data":[{"id":"m"}]}`)
	events, announce := eventPublisher(t)
	cfg.Endpoints = []discovery.Entry{{Address: address, KVEvents: discovery.KVEventsEntry{Endpoint: events}}}
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)

	// Predicted to take many seconds.
	ids := make([]uint32, 64_001)
	for i := range ids {
		ids[i] = uint32(i)
	}
	text, err := json.Marshal(ids)
	if err != nil {
		t.Fatal(err)
	}
	choose(t, conn, fmt.Sprintf(`{"model":"m","prompt":%s}`, text))
	var view status
	get(t, b, "/status", &view)
	if e := view.Fleet[0]; e.Waiting != 1 || e.QueuedSeconds < 10 {
		t.Fatalf("before its events: %+v", e)
	}
	announce(ids[:64_000])
	for deadline := time.Now().Add(20 * time.Second); view.Fleet[0].Decoding != 1; get(t, b, "/status", &view) {
		if time.Now().After(deadline) {
			t.Fatalf("the request is still queued: %+v, %+v", view.Fleet[0], view.KVEvents)
		}
	}
	if e := view.Fleet[0]; e.Waiting != 0 || e.QueuedSeconds != 0 {
		t.Errorf("after its events: %+v", e)
	}
	if text := get(t, b, "/metrics", nil); !strings.Contains(text, "firsttoken_bookings_prefilled_total 1\n") || !strings.Contains(text, "firsttoken_bookings_predicted_total 0\n") {
		t.Errorf("/metrics does not tell why:\n%s", text)
	}
}
