package prompt

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// string checks the string whose quote is at i; it decodes nothing.
func (d *document) string(i int) (int, error) {
	t, begin, escaped := d.text, i, false
	for i++; ; {
		for i+8 <= len(t) {
			if special := notPlain(binary.LittleEndian.Uint64(t[i:])); special != 0 {
				i += bits.TrailingZeros64(special) / 8
				break
			}
			i += 8
		}
		for i < len(t) && plain[t[i]] {
			i++
		}
		if i >= len(t) {
			return 0, d.fault("Unterminated string starting at", begin)
		}
		switch t[i] {
		case '"':
			if !d.push(node{kind: kindString, escaped: escaped, start: offset(begin + 1), end: offset(i)}) {
				return 0, errTooMany
			}
			return i + 1, nil
		case '\\':
			escaped = true
			end, err := d.escape(begin, i)
			if err != nil {
				return 0, err
			}
			i = end
		default:
			return 0, d.fault("Invalid control character at", i)
		}
	}
}

// plain are the bytes that stand for themselves inside a string.
var plain = func() (p [256]bool) {
	for c := range p {
		p[c] = c >= 0x20 && c != '"' && c != '\\'
	}
	return p
}()

// Eight bytes are looked at in one word. In these masks the highest bit of a
// byte is set where the byte is looked for. Above the first such byte of the
// text, the lowest of the word, bits may be set wrongly, so only that one counts.
const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// notPlain marks the bytes that are not plain.
func notPlain(word uint64) uint64 {
	control := (word - ' '*lowBits) &^ word & highBits
	return control | equals(word, '"') | equals(word, '\\')
}

// equals marks the bytes that are c.
func equals(word uint64, c byte) uint64 {
	word ^= uint64(c) * lowBits
	return (word - lowBits) &^ word & highBits
}

// escape checks the escape whose backslash is at i and gives its end.
func (d *document) escape(begin, i int) (int, error) {
	t := d.text
	if i+1 >= len(t) {
		return 0, d.fault("Unterminated string starting at", begin)
	}
	switch t[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2, nil
	case 'u':
	default:
		return 0, d.fault(`Invalid \escape`, i)
	}
	// Something has to follow the digits: the closing quote at least.
	high, ok := hex4(t, i+2)
	if !ok || i+6 == len(t) {
		return 0, d.fault(`Invalid \uXXXX escape`, i+1)
	}
	if !utf16.IsSurrogate(high) {
		return i + 6, nil
	}
	if high < 0xDC00 && i+12 < len(t) && t[i+6] == '\\' && t[i+7] == 'u' {
		low, ok := hex4(t, i+8)
		if !ok {
			return 0, d.fault(`Invalid \uXXXX escape`, i+7)
		}
		if low >= 0xDC00 && low <= 0xDFFF {
			return i + 12, nil
		}
	}
	d.surrogates = true
	return i + 6, nil
}

// hex4 reads the four hexadecimal digits at i.
func hex4(t []byte, i int) (rune, bool) {
	if i+4 > len(t) {
		return 0, false
	}
	var r rune
	for _, c := range t[i : i+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// unescape decodes the inside of a string that parse accepted, appended to dst.
// A lone surrogate becomes the three bytes that UTF-8 would give it, so that the
// result is not valid UTF-8. The text never gets longer.
func unescape(dst, s []byte) []byte {
	dst = slices.Grow(dst, len(s)+8)
	out, n := dst[:cap(dst)], len(dst) // n: the end of what is decoded
	for i := 0; i < len(s); {
		if i+8 <= len(s) {
			word := binary.LittleEndian.Uint64(s[i:])
			binary.LittleEndian.PutUint64(out[n:], word)
			run := 8
			if slash := equals(word, '\\'); slash != 0 {
				run = bits.TrailingZeros64(slash) / 8
			}
			i, n = i+run, n+run
			if run == 8 {
				continue
			}
		} else if s[i] != '\\' {
			out[n] = s[i]
			i, n = i+1, n+1
			continue
		}
		c := s[i+1]
		if i += 2; c != 'u' {
			out[n] = unescaped[c]
			n++
			continue
		}
		r, _ := hex4(s, i)
		if i += 4; !utf16.IsSurrogate(r) {
			n += utf8.EncodeRune(out[n:], r)
			continue
		}
		if i+6 <= len(s) && s[i] == '\\' && s[i+1] == 'u' {
			low, _ := hex4(s, i+2)
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				n += utf8.EncodeRune(out[n:], pair)
				i += 6
				continue
			}
		}
		n += copy(out[n:], []byte{0xE0 | byte(r>>12), 0x80 | byte(r>>6)&0x3F, 0x80 | byte(r)&0x3F}) //nolint:gosec // the bits are what is meant
	}
	return out[:n]
}

var unescaped = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// view is b as a string without a copy: b must not change while it is used.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) } //nolint:gosec // saves a copy of every text
