package kvevents

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/scoring"
)

// wirePayload is one step's message in the map form: the removals of a full
// cache, one event for each block as vLLM tells them, and the blocks that took
// their place.
func wirePayload(at float64, stored event, removed []uint64) []byte {
	b := msgp.AppendFloat64(msgp.AppendArrayHeader(nil, 3), at)
	b = msgp.AppendArrayHeader(b, uint32(1+len(removed)))
	for _, h := range removed {
		b = msgp.AppendString(msgp.AppendString(msgp.AppendMapHeader(b, 4), "type"), "BlockRemoved")
		b = msgp.AppendUint64(msgp.AppendArrayHeader(msgp.AppendString(b, "block_hashes"), 1), h)
		b = msgp.AppendString(msgp.AppendString(b, "medium"), "GPU")
		b = msgp.AppendInt(msgp.AppendString(b, "group_idx"), 0)
	}
	b = msgp.AppendString(msgp.AppendString(msgp.AppendMapHeader(b, 11), "type"), "BlockStored")
	b = msgp.AppendArrayHeader(msgp.AppendString(b, "block_hashes"), uint32(len(stored.hashes)))
	for _, h := range stored.hashes {
		b = msgp.AppendUint64(b, h)
	}
	b = msgp.AppendString(b, "parent_block_hash")
	if stored.hasParent {
		b = msgp.AppendUint64(b, stored.parent)
	} else {
		b = msgp.AppendNil(b)
	}
	b = msgp.AppendArrayHeader(msgp.AppendString(b, "token_ids"), uint32(len(stored.tokens)))
	for _, id := range stored.tokens {
		b = msgp.AppendUint32(b, id)
	}
	b = msgp.AppendInt(msgp.AppendString(b, "block_size"), stored.blockSize)
	b = msgp.AppendNil(msgp.AppendString(b, "lora_id"))
	b = msgp.AppendString(msgp.AppendString(b, "medium"), "GPU")
	b = msgp.AppendNil(msgp.AppendString(b, "lora_name"))
	b = msgp.AppendArrayHeader(msgp.AppendString(b, "extra_keys"), uint32(len(stored.hashes)))
	for range stored.hashes {
		b = msgp.AppendNil(b)
	}
	b = msgp.AppendInt(msgp.AppendString(b, "group_idx"), 0)
	b = msgp.AppendString(msgp.AppendString(b, "kv_cache_spec_kind"), "full_attention")
	return msgp.AppendInt(b, 0)
}

// BenchmarkApply takes an engine's messages from the frames' payload to the
// index: prefills of 2,048 tokens in blocks of 16, one a step, with a cache of
// 400,000 tokens that is full. Both the stored and the removed blocks count.
func BenchmarkApply(b *testing.B) {
	const blocks, size, room = 128, 16, 25_000
	rng := rand.New(rand.NewPCG(1, 2))
	var payloads [][]byte
	var order []uint64
	for range 600 {
		e := event{blockSize: size}
		for range blocks {
			e.hashes = append(e.hashes, rng.Uint64())
		}
		for range blocks * size {
			e.tokens = append(e.tokens, rng.Uint32N(150_000))
		}
		var removed []uint64
		if len(order)+blocks > room {
			removed, order = order[:blocks], order[blocks:]
		}
		order = append(order, e.hashes...)
		payloads = append(payloads, wirePayload(float64(len(payloads)), e, removed))
	}
	ix := newIndex(DefaultConfig())
	s := stream{view: ix.open(1, feed(1))[0], batch: &batch{}}
	s.begin()
	seq, bytes := uint64(0), 0
	for b.Loop() {
		m := message{seq, payloads[seq%uint64(len(payloads))]}
		s.message(now, m)
		bytes += len(m.payload)
		seq++
	}
	events := s.view.status().Counts.Events
	b.ReportMetric(float64(events["removed"]+blocks*events["stored"])/b.Elapsed().Seconds(), "blocks/s")
	b.ReportMetric(float64(bytes)/b.Elapsed().Seconds()/1e6, "MB/s")
}

// BenchmarkMatch looks a prompt of 32,768 tokens up for 16 endpoints in blocks
// of 16: one that nobody has, one that one endpoint has, one that all have.
func BenchmarkMatch(b *testing.B) {
	const engines, length, size = 16, 32768, 16
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() []uint32 {
		ids := make([]uint32, length)
		for i := range ids {
			ids[i] = rng.Uint32N(150_000)
		}
		return ids
	}
	for _, holders := range []int{0, 1, engines} {
		b.Run(fmt.Sprintf("holders=%d", holders), func(b *testing.B) {
			ix := newIndex(DefaultConfig())
			var endpoints []scoring.Endpoint
			ids := random()
			for i := range engines {
				endpoints = append(endpoints, scoring.Endpoint{ID: scoring.EndpointID(i)})
				v := ix.open(scoring.EndpointID(i), feed(1))[0]
				prompts := [][]uint32{random(), random(), random()}
				if i < holders {
					prompts = append(prompts, ids)
				}
				for _, ids := range prompts {
					e := event{kind: kindStored, medium: mediumGPU, blockSize: size, foreign: -1, tokens: ids}
					for range length / size {
						e.hashes = append(e.hashes, rng.Uint64())
					}
					v.apply(&batch{events: []event{e}}, now, true)
				}
			}
			p := sequenceOf(ids)
			for b.Loop() {
				if row := ix.match(p, endpoints)[0]; (row[0].Cached == length) != (holders > 0) {
					b.Fatal(row)
				}
			}
		})
	}
}

// BenchmarkMemory reports what a block costs, in an index of a million.
func BenchmarkMemory(b *testing.B) {
	const blocks, size = 1_000_000, 16
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	tokens := make([]uint32, 64*size)
	for b.Loop() {
		before := heap()
		ix := newIndex(Config{MaxBlocks: blocks})
		v := ix.open(1, feed(1))[0]
		rng := rand.New(rand.NewPCG(1, 2))
		for range blocks / 64 {
			e := event{kind: kindStored, medium: mediumGPU, blockSize: size, foreign: -1, tokens: tokens}
			for range 64 {
				e.hashes = append(e.hashes, rng.Uint64())
			}
			tokens[0] = rng.Uint32()
			v.apply(&batch{events: []event{e}}, now, true)
		}
		b.ReportMetric(float64(heap()-before)/float64(ix.total.Load()), "B/block")
		runtime.KeepAlive(ix)
	}
}
