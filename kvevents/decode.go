package kvevents

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/tinylib/msgp/msgp"
)

// Limits on what a message can make us remember beyond its own length.
const (
	maxBlockSize = 1 << 20 // tokens of a block
	maxName      = 64      // bytes of a medium's or a spec's name
)

// The fields in the order of vLLM's array form (until 0.23), without the tag.
// Every version so far has only added to the end.
var (
	storedFields = bytes.Fields([]byte("block_hashes parent_block_hash token_ids block_size lora_id medium lora_name " +
		"extra_keys group_idx kv_cache_spec_kind kv_cache_spec_sliding_window"))
	removedFields = bytes.Fields([]byte("block_hashes medium group_idx"))
)

var errTrailing = errors.New("bytes after the end")

// decode reads a message's payload: [time, events] or [time, events, rank],
// each event an array that begins with its tag, or a map with the key "type".
// Unknown tags, fields and elements are skipped. b is overwritten; its slices
// are good until the next decode and do not refer to payload.
func (b *batch) decode(payload []byte) error {
	b.events, b.hashes, b.tokens = b.events[:0], b.hashes[:0], b.tokens[:0]
	n, rest, err := msgp.ReadArrayHeaderBytes(payload)
	if err != nil {
		return fmt.Errorf("batch: %w", err)
	}
	if n < 2 {
		return fmt.Errorf("batch of %d elements, want time and events", n)
	}
	if b.time, rest, err = number(rest); err != nil {
		return fmt.Errorf("time: %w", err)
	}
	count, rest, err := msgp.ReadArrayHeaderBytes(rest)
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	for i := range count {
		if rest, err = b.decodeEvent(rest); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	for range n - 2 {
		if rest, err = msgp.Skip(rest); err != nil {
			return fmt.Errorf("batch: %w", err)
		}
	}
	if len(rest) > 0 {
		return errTrailing
	}
	return nil
}

// timestamp is the time of a payload that is not decoded; false where there is
// none.
func timestamp(payload []byte) (float64, bool) {
	n, rest, err := msgp.ReadArrayHeaderBytes(payload)
	if err != nil || n < 1 {
		return 0, false
	}
	t, _, err := number(rest)
	return t, err == nil
}

func (b *batch) decodeEvent(p []byte) (rest []byte, err error) {
	e := event{foreign: -1, medium: mediumGPU}
	b.extra, b.numbered = nil, false
	switch msgp.NextType(p) {
	case msgp.ArrayType:
		rest, err = b.decodeArray(&e, p)
	case msgp.MapType:
		rest, err = b.decodeMap(&e, p)
	default:
		return p, fmt.Errorf("is a %s, want an array or a map", msgp.NextType(p))
	}
	if err != nil {
		return p, err
	}
	if b.numbered && e.adapter == "" {
		// Numbers are given as adapters are loaded; nothing tells whose it is.
		e.foreign = 0
	} else if err := e.decodeExtraKeys(b.extra); err != nil {
		return p, fmt.Errorf("extra_keys: %w", err)
	}
	b.events = append(b.events, e)
	return rest, nil
}

func (b *batch) decodeArray(e *event, p []byte) ([]byte, error) {
	n, p, err := msgp.ReadArrayHeaderBytes(p)
	if err != nil {
		return p, err
	}
	if n == 0 {
		return p, errors.New("has no tag")
	}
	tag, p, err := msgp.ReadStringZC(p)
	if err != nil {
		return p, fmt.Errorf("tag: %w", err)
	}
	e.kind = kindOf(tag)
	fields := removedFields
	if e.kind == kindStored {
		fields = storedFields
	}
	for i := range n - 1 {
		if e.kind == kindOther || int(i) >= len(fields) {
			p, err = msgp.Skip(p)
		} else {
			p, err = b.decodeField(e, fields[i], p)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (b *batch) decodeMap(e *event, p []byte) ([]byte, error) {
	n, p, err := msgp.ReadMapHeaderBytes(p)
	if err != nil {
		return p, err
	}
	tagged := false
	for range n {
		var key []byte
		if key, p, err = msgp.ReadStringZC(p); err != nil {
			return p, fmt.Errorf("key: %w", err)
		}
		if string(key) == "type" {
			var tag []byte
			if tag, p, err = msgp.ReadStringZC(p); err != nil {
				return p, fmt.Errorf("type: %w", err)
			}
			e.kind, tagged = kindOf(tag), true
			continue
		}
		// An unknown kind's fields may mean anything, whatever their names.
		if tagged && e.kind == kindOther {
			p, err = msgp.Skip(p)
		} else {
			p, err = b.decodeField(e, key, p)
		}
		if err != nil {
			return p, err
		}
	}
	if !tagged {
		return p, errors.New(`has no "type"`)
	}
	return p, nil
}

func kindOf(tag []byte) kind {
	switch string(tag) {
	case "BlockStored":
		return kindStored
	case "BlockRemoved":
		return kindRemoved
	case "AllBlocksCleared":
		return kindCleared
	}
	return kindOther
}

// decodeField reads the value of one field, or skips it where nobody asks.
func (b *batch) decodeField(e *event, name, p []byte) (rest []byte, err error) {
	switch string(name) {
	case "block_hashes":
		rest, err = b.decodeHashes(e, p)
	case "token_ids":
		rest, err = b.decodeTokens(e, p)
	case "parent_block_hash":
		if e.hasParent = !msgp.IsNil(p); e.hasParent {
			e.parent, rest, err = blockHash(p)
		} else {
			rest, err = msgp.Skip(p)
		}
	case "block_size":
		e.blockSize, rest, err = small(p, maxBlockSize)
	case "group_idx":
		e.group, rest, err = small(p, math.MaxInt32)
	case "kv_cache_spec_sliding_window":
		e.window, rest, err = small(p, math.MaxInt32)
	case "lora_id":
		rest, err = b.decodeLoRA(p)
	case "lora_name":
		e.adapter, rest, err = verbatim(p)
	case "medium":
		var medium string
		if medium, rest, err = text(p); medium != "" {
			e.medium = medium
		}
	case "kv_cache_spec_kind":
		e.spec, rest, err = text(p)
	case "extra_keys":
		rest, err = msgp.Skip(p)
		b.extra = p[:len(p)-len(rest)]
	default:
		rest, err = msgp.Skip(p)
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	return rest, nil
}

func (b *batch) decodeHashes(e *event, p []byte) ([]byte, error) {
	n, p, err := list(p)
	if err != nil {
		return p, err
	}
	begin := len(b.hashes)
	for range n {
		var hash uint64
		if hash, p, err = blockHash(p); err != nil {
			return p, err
		}
		b.hashes = append(b.hashes, hash)
	}
	e.hashes = b.hashes[begin:len(b.hashes):len(b.hashes)]
	return p, nil
}

func (b *batch) decodeTokens(e *event, p []byte) ([]byte, error) {
	n, p, err := list(p)
	if err != nil {
		return p, err
	}
	begin := len(b.tokens)
	for range n {
		var id uint32
		// Most of a message is token ids; the library's own reader costs three
		// times as much for them.
		switch {
		case len(p) >= 1 && p[0] < 0x80:
			id, p = uint32(p[0]), p[1:]
		case len(p) >= 2 && p[0] == 0xcc:
			id, p = uint32(p[1]), p[2:]
		case len(p) >= 3 && p[0] == 0xcd:
			id, p = uint32(binary.BigEndian.Uint16(p[1:])), p[3:]
		case len(p) >= 5 && p[0] == 0xce:
			id, p = binary.BigEndian.Uint32(p[1:]), p[5:]
		default:
			if id, p, err = msgp.ReadUint32Bytes(p); err != nil {
				return p, err
			}
		}
		b.tokens = append(b.tokens, id)
	}
	e.tokens = b.tokens[begin:len(b.tokens):len(b.tokens)]
	return p, nil
}

// decodeLoRA reads an adapter's number: vLLM counts from 1.
func (b *batch) decodeLoRA(p []byte) ([]byte, error) {
	switch msgp.NextType(p) {
	case msgp.NilType:
		return msgp.Skip(p)
	case msgp.IntType, msgp.UintType:
		id, rest, err := msgp.ReadInt64Bytes(p)
		b.numbered = id > 0
		return rest, err
	default:
		b.numbered = true // Whatever it is, it is not none.
		return msgp.Skip(p)
	}
}

// decodeExtraKeys reads what the blocks' hashes have in them besides tokens:
// null for none at all, else for each block null or a list. The adapter's name
// and the salt of a prompt's first block are what a prompt has too; the first
// block with anything else is where foreign begins. p may be empty.
func (e *event) decodeExtraKeys(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, p, err := list(p)
	if err != nil {
		return err
	}
	for i := range n {
		keys, known := 0, msgp.IsNil(p)
		if msgp.NextType(p) == msgp.ArrayType {
			known = true
			if keys, p, err = list(p); err != nil {
				return err
			}
		} else if p, err = msgp.Skip(p); err != nil {
			return err
		}
		named := false
		for range keys {
			tag, key := extraKey(p)
			switch {
			case tag != "cache_salt" && e.adapter != "" && key == e.adapter && !named:
				named = true
			case tag != "lora" && key != "" && e.salt == "" && i == 0 && !e.hasParent:
				e.salt = key
			default:
				known = false
			}
			if p, err = msgp.Skip(p); err != nil {
				return err
			}
		}
		if !known && e.foreign < 0 {
			e.foreign = i
		}
	}
	return nil
}

// extraKey reads an element of a block's extra keys: a plain string, or with its
// tag, as ["cache_salt", salt] and ["lora", name, path]. The key of anything else
// is empty: an image is told as [hash, position], embeddings as bytes.
func extraKey(p []byte) (tag, key string) {
	if msgp.NextType(p) == msgp.StrType {
		key, _, _ = verbatim(p)
		return "", key
	}
	if msgp.NextType(p) != msgp.ArrayType {
		return "", ""
	}
	n, p, err := msgp.ReadArrayHeaderBytes(p)
	if err != nil || n < 2 || msgp.NextType(p) != msgp.StrType {
		return "", ""
	}
	if tag, p, err = verbatim(p); err != nil || msgp.NextType(p) != msgp.StrType {
		return "", ""
	}
	if key, _, err = verbatim(p); err != nil || tag != "cache_salt" && tag != "lora" {
		return "", ""
	}
	return tag, key
}

// verbatim reads a string as it is; null is the empty one.
func verbatim(p []byte) (string, []byte, error) {
	if msgp.IsNil(p) {
		rest, err := msgp.Skip(p)
		return "", rest, err
	}
	return msgp.ReadStringBytes(p)
}

// list reads an array's length, or 0 for null. It is the message's word: nobody
// makes room before the elements are there.
func list(p []byte) (n int, rest []byte, err error) {
	if msgp.IsNil(p) {
		rest, err = msgp.Skip(p)
		return 0, rest, err
	}
	size, rest, err := msgp.ReadArrayHeaderBytes(p)
	if err != nil {
		return 0, p, err
	}
	return int(size), rest, nil
}

// blockHash reads an engine's name of a block.
func blockHash(p []byte) (hash uint64, rest []byte, err error) {
	switch msgp.NextType(p) {
	case msgp.IntType:
		var signed int64
		signed, rest, err = msgp.ReadInt64Bytes(p)
		return uint64(signed), rest, err //nolint:gosec // The bit pattern is the name.
	case msgp.UintType:
		return msgp.ReadUint64Bytes(p)
	case msgp.BinType:
		digest, rest, err := msgp.ReadBytesZC(p)
		if err != nil {
			return 0, p, err
		}
		for _, c := range digest[max(0, len(digest)-8):] {
			hash = hash<<8 | uint64(c)
		}
		return hash, rest, nil
	default:
		return 0, p, fmt.Errorf("is a %s, want an integer or bytes", msgp.NextType(p))
	}
}

// small reads an integer from 0 to most; null is 0.
func small(p []byte, most int64) (int, []byte, error) {
	if msgp.IsNil(p) {
		rest, err := msgp.Skip(p)
		return 0, rest, err
	}
	n, rest, err := msgp.ReadInt64Bytes(p)
	if err != nil {
		return 0, p, err
	}
	if n < 0 || n > most {
		return 0, p, fmt.Errorf("is %d, want 0 to %d", n, most)
	}
	return int(n), rest, nil
}

// text reads a short string in lower case; null is the empty one.
func text(p []byte) (string, []byte, error) {
	if msgp.IsNil(p) {
		rest, err := msgp.Skip(p)
		return "", rest, err
	}
	s, rest, err := msgp.ReadStringZC(p)
	if err != nil {
		return "", p, err
	}
	// What nearly every event says is not copied.
	switch string(s) {
	case "GPU":
		return mediumGPU, rest, nil
	case "full_attention":
		return "full_attention", rest, nil
	}
	return strings.ToLower(string(s[:min(len(s), maxName)])), rest, nil
}

// number reads a float or an integer.
func number(p []byte) (float64, []byte, error) {
	switch msgp.NextType(p) {
	case msgp.Float64Type:
		return msgp.ReadFloat64Bytes(p)
	case msgp.Float32Type:
		f, rest, err := msgp.ReadFloat32Bytes(p)
		return float64(f), rest, err
	case msgp.IntType, msgp.UintType:
		n, rest, err := msgp.ReadInt64Bytes(p)
		return float64(n), rest, err
	default:
		return 0, p, fmt.Errorf("is a %s, want a number", msgp.NextType(p))
	}
}
