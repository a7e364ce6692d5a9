package prompt

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"unicode/utf8"
)

// kind is what a JSON value is.
type kind uint8

const (
	kindNone kind = iota // there is no such value
	kindNull
	kindTrue
	kindFalse
	kindInt
	kindFloat // also NaN and Infinity, as Python's reader takes them
	kindString
	kindArray
	kindObject
)

// node is one value on the tape of a document. An object's nodes are its keys
// and values in turn.
type node struct {
	kind    kind
	escaped bool   // a string with a backslash in it
	start   uint32 // the value's bytes; a string's are those between the quotes
	end     uint32
	next    uint32 // index of the node after this value and all that is in it
}

// document is a JSON text and the tape of its values, in the order of the text.
// The engine's web layer reads bodies with Python's json module, whose dialect
// this is: NaN and Infinity are numbers, a lone surrogate may be escaped, keys
// may repeat (the last value counts, at the first one's place), integers have
// any size. Strings stay in the text until somebody asks for them.
type document struct {
	text  []byte
	nodes []node
	stack []uint32 // indices of the open arrays and objects
	// shallow keeps the values of the outermost array or object only, so that the
	// tape of a huge text stays small. Set before parse.
	shallow bool
	values  int // seen so far, kept or not
	// surrogates: some string holds an escaped surrogate without its other
	// half, which no tokenizer takes.
	surrogates bool
}

// syntaxError is where and why a text is not JSON, in the words of Python's
// reader.
type syntaxError struct {
	reason string
	offset int // in characters, as Python counts
}

func (e *syntaxError) Error() string { return e.reason + " at character " + strconv.Itoa(e.offset) }

// maxDocumentBytes keeps offsets within uint32.
const maxDocumentBytes = 1<<32 - 2

// maxNesting is how many arrays and objects may be open at once. Python's own
// reader gives up near there; without it, a body of brackets alone would take a
// node for each byte.
const maxNesting = 1000

// maxValues is how many values a text may have, keys included: two million token
// ids are more than any context. It bounds the tape to 40 MB, and the time for a
// body of nothing but tiny values.
const maxValues = 2 << 20

// maxMembers bounds the tape of a shallow document, to 1 MB.
const maxMembers = 1 << 16

// errTooMany: a text with more than maxValues values.
var errTooMany = errors.New("JSON of more than two million values")

// offset is an index into a text or tape, which parse keeps within its range.
func offset(i int) uint32 { return uint32(i) } //nolint:gosec // see maxDocumentBytes

// parse reads text, which the document refers to from then on. Its tape's
// memory is reused.
func (d *document) parse(text []byte) error {
	d.text, d.nodes, d.stack, d.values, d.surrogates = text, d.nodes[:0], d.stack[:0], 0, false
	if len(text) > maxDocumentBytes {
		return fmt.Errorf("JSON text of %d bytes: the limit is %d", len(text), maxDocumentBytes)
	}
	i := d.blank(0)
	// One turn per value: read it, then whatever closes after it.
	for {
		var opened bool
		var err error
		if i, opened, err = d.value(i); err != nil {
			return err
		}
		if !opened {
			if i, err = d.closeAll(i); err != nil {
				return err
			}
		} else if i, err = d.first(i); err != nil {
			return err
		}
		if len(d.stack) == 0 {
			break
		}
	}
	if i = d.blank(i); i != len(text) {
		return d.fault("Extra data", i)
	}
	return nil
}

// value reads a scalar, or opens an array or object, at i.
func (d *document) value(i int) (next int, opened bool, err error) {
	if i >= len(d.text) {
		return 0, false, d.fault("Expecting value", i)
	}
	switch c := d.text[i]; c {
	case '"':
		next, err = d.string(i)
		return next, false, err
	case '{', '[':
		if len(d.stack) == maxNesting {
			return 0, false, errTooDeep
		}
		k := kindArray
		if c == '{' {
			k = kindObject
		}
		if !d.push(node{kind: k, start: offset(i)}) {
			return 0, false, errTooMany
		}
		d.stack = append(d.stack, offset(len(d.nodes)-1))
		return i + 1, true, nil
	case 'n':
		return d.literal(i, "null", kindNull)
	case 't':
		return d.literal(i, "true", kindTrue)
	case 'f':
		return d.literal(i, "false", kindFalse)
	case 'N':
		return d.literal(i, "NaN", kindFloat)
	case 'I':
		return d.literal(i, "Infinity", kindFloat)
	default:
		return d.number(i)
	}
}

// first goes to the first value of the array or object just opened, or closes
// it where it is empty.
func (d *document) first(i int) (int, error) {
	i = d.blank(i)
	open := &d.nodes[d.stack[len(d.stack)-1]]
	if i < len(d.text) && (open.kind == kindArray && d.text[i] == ']' || open.kind == kindObject && d.text[i] == '}') {
		return d.closeAll(d.close(i))
	}
	if open.kind == kindObject {
		return d.key(i)
	}
	return i, nil
}

// closeAll goes from the end of a value to the next value, over whatever closes
// in between. It ends with an empty stack at the end of the outermost value.
func (d *document) closeAll(i int) (int, error) {
	for len(d.stack) > 0 {
		i = d.blank(i)
		open := d.nodes[d.stack[len(d.stack)-1]].kind
		switch {
		case i < len(d.text) && d.text[i] == ',':
			if i = d.blank(i + 1); open == kindObject {
				return d.key(i)
			}
			return i, nil
		case i < len(d.text) && (open == kindArray && d.text[i] == ']' || open == kindObject && d.text[i] == '}'):
			i = d.close(i)
		default:
			return 0, d.fault("Expecting ',' delimiter", i)
		}
	}
	return i, nil
}

// close ends the innermost open value, whose bracket is at i.
func (d *document) close(i int) int {
	at := d.stack[len(d.stack)-1]
	d.stack = d.stack[:len(d.stack)-1]
	switch {
	case d.shallow && len(d.stack) > 1:
		d.nodes = d.nodes[:at]
		return i + 1
	case d.shallow && len(d.stack) == 1:
		d.nodes = d.nodes[:at+1]
	}
	d.nodes[at].end, d.nodes[at].next = offset(i+1), offset(len(d.nodes))
	return i + 1
}

// key reads a key and its colon at i.
func (d *document) key(i int) (int, error) {
	if i >= len(d.text) || d.text[i] != '"' {
		return 0, d.fault("Expecting property name enclosed in double quotes", i)
	}
	i, err := d.string(i)
	if err != nil {
		return 0, err
	}
	if i = d.blank(i); i >= len(d.text) || d.text[i] != ':' {
		return 0, d.fault("Expecting ':' delimiter", i)
	}
	return d.blank(i + 1), nil
}

func (d *document) blank(i int) int {
	for i < len(d.text) {
		switch d.text[i] {
		case ' ', '\n', '\t', '\r':
			i++
		default:
			return i
		}
	}
	return i
}

// push appends a node that holds nothing yet, unless the document is shallow and
// the node deep inside; false: it is one too many.
func (d *document) push(n node) bool {
	if d.values++; d.values > maxValues || d.shallow && len(d.nodes) > maxMembers {
		return false
	}
	if d.shallow && len(d.stack) > 1 && n.kind != kindArray && n.kind != kindObject {
		return true
	}
	n.next = offset(len(d.nodes) + 1)
	d.nodes = append(d.nodes, n)
	return true
}

// scalar ends a literal or number that lies between i and end.
func (d *document) scalar(k kind, i, end int) (int, bool, error) {
	if !d.push(node{kind: k, start: offset(i), end: offset(end)}) {
		return 0, false, errTooMany
	}
	return end, false, nil
}

func (d *document) literal(i int, word string, k kind) (int, bool, error) {
	end := i + len(word)
	if end > len(d.text) || string(d.text[i:end]) != word {
		return 0, false, d.fault("Expecting value", i)
	}
	return d.scalar(k, i, end)
}

func (d *document) number(i int) (int, bool, error) {
	t, start, k := d.text, i, kindInt
	digits := func() bool {
		from := i
		for i < len(t) && t[i] >= '0' && t[i] <= '9' {
			i++
		}
		return i > from
	}
	if t[i] == '-' {
		i++
	}
	switch {
	case i < len(t) && t[i] == '0':
		i++
	case digits():
	case i > start && i < len(t) && t[i] == 'I':
		if !bytes.HasPrefix(t[i:], []byte("Infinity")) {
			return 0, false, d.fault("Expecting value", start)
		}
		return d.scalar(kindFloat, start, i+len("Infinity"))
	default:
		return 0, false, d.fault("Expecting value", start)
	}
	// A fraction or exponent without digits is not part of the number.
	if end := i; i < len(t) && t[i] == '.' {
		if i++; digits() {
			k = kindFloat
		} else {
			i = end
		}
	}
	if end := i; i < len(t) && (t[i] == 'e' || t[i] == 'E') {
		if i++; i < len(t) && (t[i] == '+' || t[i] == '-') {
			i++
		}
		if digits() {
			k = kindFloat
		} else {
			i = end
		}
	}
	return d.scalar(k, start, i)
}

func (d *document) fault(reason string, i int) error {
	return &syntaxError{reason: reason, offset: utf8.RuneCount(d.text[:min(i, len(d.text))])}
}

// documents are kept for their memory.
var documents = sync.Pool{New: func() any { return new(document) }}

// maxPooledNodes is the largest tape kept in the pool (16 MiB); a body of a
// million token ids must not hold its memory for ever.
const maxPooledNodes = 1 << 20

// release gives the document's memory back for reuse; nothing may refer to it
// any more.
func (d *document) release() {
	if cap(d.nodes) > maxPooledNodes {
		return
	}
	d.text, d.shallow = nil, false
	documents.Put(d)
}
