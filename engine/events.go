package engine

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/firsttoken/firsttoken/simulator"
)

// release is a vLLM release: 1000 times the major number plus the minor.
type release int

// The releases that changed the form of KV events. Not every release between
// was looked at, so a field may have come a little before.
const (
	releaseMedium        release = 10
	releaseLoRAName      release = 14
	releaseExtraKeys     release = 17
	releaseGroup         release = 21
	releaseSpec          release = 23
	releaseMaps          release = 24
	releaseTopicInReplay release = 26
	// From here on a BlockStored can have more fields than a small map has room
	// for.
	releaseWideMaps release = 33
)

func parseRelease(text string) (release, error) {
	numbers := strings.SplitN(text, ".", 3)
	if len(numbers) >= 2 {
		major, err1 := strconv.ParseUint(numbers[0], 10, 8)
		minor, err2 := strconv.ParseUint(numbers[1], 10, 8)
		if err1 == nil && err2 == nil {
			return release(major)*1000 + release(minor), nil
		}
	}
	return 0, fmt.Errorf("%q is no release of vLLM; write such as %s", text, Version)
}

// eventForm writes KV events as one vLLM release does.
type eventForm struct {
	release     release
	blockTokens int
	bytesHashes bool
}

// batch is the message of one step: [time, events, data-parallel rank]. Nil:
// there is nothing to tell.
func (f eventForm) batch(now time.Time, changes []simulator.BlockChange, generations func(simulator.ID) *generation, storeOnly bool) []byte {
	var events []byte
	n := uint32(0)
	for _, c := range changes {
		if c.Kind != simulator.BlocksStored && storeOnly {
			continue
		}
		n++
		switch c.Kind {
		case simulator.BlocksStored:
			events = f.stored(events, generations(c.ID), c.First, c.Last)
		case simulator.BlockLost:
			events = f.removed(events, c.Key)
		case simulator.CacheReset:
			e := f.event(events, "AllBlocksCleared")
			events = e.end()
		}
	}
	if n == 0 {
		return nil
	}
	b := msgp.AppendArrayHeader(nil, 3)
	b = msgp.AppendFloat64(b, float64(now.UnixMicro())/1e6)
	b = msgp.AppendArrayHeader(b, n)
	b = append(b, events...)
	return msgp.AppendInt(b, 0)
}

// stored tells the blocks of a generation from first on, last excluded.
func (f eventForm) stored(b []byte, g *generation, first, last int) []byte {
	e := f.event(b, "BlockStored")
	e.field("block_hashes")
	e.b = msgp.AppendArrayHeader(e.b, size(last-first))
	for _, k := range g.request.Blocks[first:last] {
		e.b = f.hash(e.b, k)
	}
	e.field("parent_block_hash")
	if first > 0 {
		e.b = f.hash(e.b, g.request.Blocks[first-1])
	} else {
		e.b = msgp.AppendNil(e.b)
	}
	e.field("token_ids")
	e.b = msgp.AppendArrayHeader(e.b, size((last-first)*f.blockTokens))
	for i := first * f.blockTokens; i < last*f.blockTokens; i++ {
		e.b = msgp.AppendUint32(e.b, g.token(i))
	}
	e.field("block_size")
	e.b = msgp.AppendInt(e.b, f.blockTokens)
	e.field("lora_id")
	if g.adapter != nil {
		e.b = msgp.AppendInt(e.b, g.adapter.id)
	} else {
		e.b = msgp.AppendNil(e.b)
	}
	if f.release >= releaseMedium {
		e.text("medium", "GPU")
	}
	if f.release >= releaseLoRAName {
		e.field("lora_name")
		if g.adapter != nil {
			e.b = msgp.AppendString(e.b, g.adapter.Name)
		} else {
			e.b = msgp.AppendNil(e.b)
		}
	}
	if f.release >= releaseExtraKeys {
		e.field("extra_keys")
		e.b = msgp.AppendArrayHeader(e.b, size(last-first))
		for i := first; i < last; i++ {
			e.b = extraKeys(e.b, g, i)
		}
	}
	if f.release >= releaseGroup {
		e.field("group_idx")
		e.b = msgp.AppendInt(e.b, 0)
	}
	if f.release >= releaseSpec {
		e.text("kv_cache_spec_kind", "full_attention")
	}
	return e.end()
}

// extraKeys are what the hash of a block has in it besides tokens: the adapter,
// and in the first block the request's cache_salt.
func extraKeys(b []byte, g *generation, block int) []byte {
	var keys []string
	if g.adapter != nil {
		keys = append(keys, g.adapter.Name)
	}
	if block == 0 && g.salt != "" {
		keys = append(keys, g.salt)
	}
	if keys == nil {
		return msgp.AppendNil(b)
	}
	b = msgp.AppendArrayHeader(b, size(len(keys)))
	for _, k := range keys {
		b = msgp.AppendString(b, k)
	}
	return b
}

func (f eventForm) removed(b []byte, k simulator.Key) []byte {
	e := f.event(b, "BlockRemoved")
	e.field("block_hashes")
	e.b = f.hash(msgp.AppendArrayHeader(e.b, 1), k)
	if f.release >= releaseMedium {
		e.text("medium", "GPU")
	}
	if f.release >= releaseGroup {
		e.field("group_idx")
		e.b = msgp.AppendInt(e.b, 0)
	}
	return e.end()
}

// hash writes a block's name: the integer, or a digest whose last eight bytes
// are the integer.
func (f eventForm) hash(b []byte, k simulator.Key) []byte {
	if !f.bytesHashes {
		return msgp.AppendUint64(b, uint64(k))
	}
	digest := make([]byte, 24, 32)
	for i := range digest {
		digest[i] = byte(uint64(k) >> (i % 8 * 8)) //nolint:gosec // any bytes do
	}
	return msgp.AppendBytes(b, binary.BigEndian.AppendUint64(digest, uint64(k)))
}

// eventWriter writes one event field by field. Its header says how many there
// are, so it is written last.
type eventWriter struct {
	form   eventForm
	b      []byte
	header int // where in b it begins
	wide   bool
	fields int
}

// wideHeader is the length of a header with a 16-bit count.
const wideHeader = 3

func (f eventForm) event(b []byte, tag string) *eventWriter {
	e := &eventWriter{form: f, header: len(b)}
	// msgspec leaves room for the most fields that an event can have.
	e.wide = f.release >= releaseWideMaps && tag == "BlockStored"
	e.b = append(b, make([]byte, e.headerSize())...)
	e.text("type", tag)
	return e
}

func (e *eventWriter) headerSize() int {
	if e.wide {
		return wideHeader
	}
	return 1
}

// field begins the next field, whose value the caller appends.
func (e *eventWriter) field(name string) {
	e.fields++
	if e.form.release >= releaseMaps {
		e.b = msgp.AppendString(e.b, name)
	}
}

func (e *eventWriter) text(name, value string) {
	e.field(name)
	e.b = msgp.AppendString(e.b, value)
}

func (e *eventWriter) end() []byte {
	var header []byte
	switch {
	case e.wide:
		header = binary.BigEndian.AppendUint16([]byte{0xde}, uint16(e.fields)) //nolint:gosec // there are about ten
	case e.form.release >= releaseMaps:
		header = msgp.AppendMapHeader(nil, size(e.fields))
	default:
		header = msgp.AppendArrayHeader(nil, size(e.fields))
	}
	copy(e.b[e.header:], header)
	return e.b
}

// size is a length as msgp takes it; all of them are bounded by the KV memory.
func size(n int) uint32 { return uint32(n) } //nolint:gosec // see above
