package prompt

import (
	"errors"
	"iter"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// value is one value of a document. The zero value is "there is none".
type value struct {
	doc   *document
	index uint32
}

func (d *document) root() value { return value{d, 0} }

func (v value) node() *node { return &v.doc.nodes[v.index] }

func (v value) kind() kind {
	if v.doc == nil {
		return kindNone
	}
	return v.node().kind
}

// present: the value exists and is not null.
func (v value) present() bool { return v.kind() > kindNull }

// raw is the value's own text; a string's is without quotes and not unescaped.
func (v value) raw() []byte {
	n := v.node()
	return v.doc.text[n.start:n.end]
}

// str is a string's text. It shares the document's memory where it can.
func (v value) str() string {
	if !v.node().escaped {
		return view(v.raw())
	}
	return view(unescape(make([]byte, 0, len(v.raw())), v.raw()))
}

// is reports whether the value is the string s.
func (v value) is(s string) bool {
	return v.kind() == kindString && (!v.node().escaped && string(v.raw()) == s || v.node().escaped && v.str() == s)
}

// elements are the values of an array.
func (v value) elements() iter.Seq[value] {
	return func(yield func(value) bool) {
		if v.kind() != kindArray {
			return
		}
		for i, end := v.index+1, v.node().next; i < end; i = v.doc.nodes[i].next {
			if !yield(value{v.doc, i}) {
				return
			}
		}
	}
}

// members are the keys and values of an object, as written: a key may repeat.
func (v value) members() iter.Seq2[value, value] {
	return func(yield func(key, member value) bool) {
		if v.kind() != kindObject {
			return
		}
		for i, end := v.index+1, v.node().next; i < end; i = v.doc.nodes[i+1].next {
			if !yield(value{v.doc, i}, value{v.doc, i + 1}) {
				return
			}
		}
	}
}

// get is the last member of that key.
func (v value) get(key string) (found value) {
	for k, member := range v.members() {
		if k.is(key) {
			found = member
		}
	}
	return found
}

// len is the number of elements, or of different keys.
func (v value) len() int {
	if v.kind() == kindObject {
		keys := map[string]struct{}{}
		for k := range v.members() {
			keys[k.str()] = struct{}{}
		}
		return len(keys)
	}
	n := 0
	for range v.elements() {
		n++
	}
	return n
}

// truthy is Python's bool(v).
func (v value) truthy() bool {
	switch v.kind() {
	case kindTrue:
		return true
	case kindInt, kindFloat:
		return v.float() != 0
	case kindString:
		return len(v.raw()) > 0
	case kindArray, kindObject:
		return v.node().next > v.index+1
	default:
		return false
	}
}

// float is a number's value, infinite where it is out of range.
func (v value) float() float64 {
	f, _ := strconv.ParseFloat(view(v.raw()), 64) // the grammar is checked; out of range gives ±Inf
	return f
}

// boolean is what pydantic makes of the value for a field of type bool.
func (v value) boolean() (b, ok bool) {
	switch v.kind() {
	case kindTrue:
		return true, true
	case kindFalse:
		return false, true
	case kindInt, kindFloat:
		f := v.float()
		return f == 1, f == 0 || f == 1
	case kindString:
		switch strings.ToLower(v.str()) {
		case "1", "on", "t", "true", "y", "yes":
			return true, true
		case "0", "off", "f", "false", "n", "no":
			return false, true
		}
	default:
	}
	return false, false
}

// integer is what pydantic makes of the value for a field of type int, clamped
// to int64.
func (v value) integer() (n int64, ok bool) {
	switch v.kind() {
	case kindTrue:
		return 1, true
	case kindFalse:
		return 0, true
	case kindInt:
		return clampInt(view(v.raw()))
	case kindFloat:
		f := v.float()
		if f != math.Trunc(f) || math.IsInf(f, 0) {
			return 0, false
		}
		if math.Abs(f) >= 1<<63 {
			return clampInt(new(big.Float).SetFloat64(f).Text('f', 0))
		}
		return int64(f), true
	case kindString:
		s := strings.TrimSpace(v.str())
		if whole, zeros, found := strings.Cut(s, "."); found && strings.Trim(zeros, "0") == "" {
			s = whole
		}
		return clampInt(strings.ReplaceAll(strings.TrimPrefix(s, "+"), "_", ""))
	default:
		return 0, false
	}
}

func clampInt(digits string) (int64, bool) {
	n, err := strconv.ParseInt(digits, 10, 64)
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}

// errTooDeep: lists and objects nested deeper than a template is given.
var errTooDeep = errors.New("JSON nested deeper than 200 levels")

const maxDepth = 200

// write appends the value to the variables of a template. Numbers become what
// Python's reader makes of them.
func (v value) write(out *native.Value, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	switch v.kind() {
	case kindNone, kindNull:
		out.Nil()
	case kindTrue:
		out.Bool(true)
	case kindFalse:
		out.Bool(false)
	case kindInt:
		raw := view(v.raw())
		if n, err := strconv.ParseInt(raw, 10, 64); err == nil {
			out.Int(n)
		} else {
			out.BigInt(raw)
		}
	case kindFloat:
		out.Float(v.float())
	case kindString:
		return writeString(out, v)
	case kindArray:
		out.List()
		for e := range v.elements() {
			if err := e.write(out, depth+1); err != nil {
				return err
			}
		}
		out.EndList()
	case kindObject:
		out.Map()
		for k, member := range v.members() {
			if v.doc.surrogates && hasSurrogate(k) {
				return errSurrogate
			}
			out.Key(k.str())
			if err := member.write(out, depth+1); err != nil {
				return err
			}
		}
		out.EndMap()
	}
	return nil
}

// errSurrogate: half of a surrogate pair in a text, which no tokenizer takes.
var errSurrogate = errors.New("lone surrogate")

func writeString(out *native.Value, v value) error {
	if v.doc.surrogates && hasSurrogate(v) {
		return errSurrogate
	}
	v.writeText(out, "")
	return nil
}

// writeText appends a string with tail behind it, unescaped in its place.
func (v value) writeText(out *native.Value, tail string) {
	if !v.node().escaped && tail == "" {
		out.String(v.str())
		return
	}
	out.StringBy(len(v.raw())+8+len(tail), func(dst []byte) []byte { return append(unescape(dst, v.raw()), tail...) })
}

// hasSurrogate: the string is not valid UTF-8 once unescaped.
func hasSurrogate(v value) bool {
	return v.node().escaped && !utf8.Valid(unescape(nil, v.raw()))
}
