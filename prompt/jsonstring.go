package prompt

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// string checks the string whose quote is at i; it decodes nothing.
func (d *document) string(i int) (int, error) {
	t, begin, escaped := d.text, i, false
	for i++; ; i++ {
		for i < len(t) && plain[t[i]] {
			i++
		}
		if i >= len(t) {
			return 0, d.fault("Unterminated string starting at", begin)
		}
		switch t[i] {
		case '"':
			d.push(node{kind: kindString, escaped: escaped, start: offset(begin + 1), end: offset(i)})
			return i + 1, nil
		case '\\':
			escaped = true
			end, err := d.escape(begin, i)
			if err != nil {
				return 0, err
			}
			i = end - 1
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
// result is not valid UTF-8.
func unescape(dst, s []byte) []byte {
	for i := 0; i < len(s); {
		run := bytes.IndexByte(s[i:], '\\')
		if run < 0 {
			return append(dst, s[i:]...)
		}
		dst = append(dst, s[i:i+run]...)
		i += run
		c := s[i+1]
		if i += 2; c != 'u' {
			dst = append(dst, unescaped[c])
			continue
		}
		r, _ := hex4(s, i)
		if i += 4; !utf16.IsSurrogate(r) {
			dst = utf8.AppendRune(dst, r)
			continue
		}
		if i+6 <= len(s) && s[i] == '\\' && s[i+1] == 'u' {
			low, _ := hex4(s, i+2)
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				dst = utf8.AppendRune(dst, pair)
				i += 6
				continue
			}
		}
		dst = append(dst, 0xE0|byte(r>>12), 0x80|byte(r>>6)&0x3F, 0x80|byte(r)&0x3F) //nolint:gosec // the bits are what is meant
	}
	return dst
}

var unescaped = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// view is b as a string without a copy: b must not change while it is used.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) } //nolint:gosec // saves a copy of every text
