package lmcache

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"

	"github.com/tinylib/msgp/msgp"
)

// maxJSON is the largest JSON message in bytes that Decode takes: read
// generically it takes thirty times the room and time of msgpack.
const maxJSON = 1 << 20

// packJSON turns a JSON object into the msgpack that Decode reads. No LMCache
// release sends JSON, its controller takes it; so this need not be fast.
func packJSON(b []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return appendJSON(nil, v)
}

func appendJSON(b []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case map[string]any:
		b = msgp.AppendMapHeader(b, uint32(len(v))) //nolint:gosec // G115: below MaxMessage
		for name, value := range v {
			if b, err = appendJSON(msgp.AppendString(b, name), value); err != nil {
				return nil, err
			}
		}
		return b, nil
	case []any:
		b = msgp.AppendArrayHeader(b, uint32(len(v))) //nolint:gosec // G115: below MaxMessage
		for _, value := range v {
			if b, err = appendJSON(b, value); err != nil {
				return nil, err
			}
		}
		return b, nil
	case json.Number:
		if i, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return appendInt(b, i), nil
		}
		if u, err := strconv.ParseUint(string(v), 10, 64); err == nil {
			return msgp.AppendUint64(b, u), nil
		}
		f, err := v.Float64()
		return msgp.AppendFloat64(b, f), err
	}
	return msgp.AppendIntf(b, v) // nil, bool, string
}
