package prompt

import (
	"bytes"
	"iter"

	"github.com/firsttoken/firsttoken/scoring"
)

const (
	// bytesPerToken is what English text and code come to with vocabularies of
	// 128k to 262k tokens; other scripts have more bytes a character, and fewer
	// characters a token.
	bytesPerToken = 4
	// mediaTokens stands for an image, whose number of tokens depends on its
	// size and on the model: some hundred to some thousand.
	mediaTokens = 1024
)

// estimate is the prompts of a request with their lengths guessed from the bytes
// of the fields that become text. There is at least one.
func estimate(path string, f *fields) []scoring.Sequence {
	var lengths []scoring.Tokens
	switch path {
	case chatPath:
		lengths = append(lengths, guess(f.messages)+guess(f.tools)+guess(f.documents))
	case ResponsesPath:
		lengths = append(lengths, guess(f.instructions)+guess(f.input)+guess(f.tools))
	case MessagesPath:
		lengths = append(lengths, guess(f.system)+guess(f.messages)+guess(f.tools))
	default:
		lengths = guessPrompts(f.prompt)
		if f.promptEmbeds.present() {
			lengths = append(lengths, mediaTokens)
		}
	}
	if len(lengths) == 0 {
		lengths = append(lengths, 1)
	}
	copies := f.copies()
	sequences := make([]scoring.Sequence, len(lengths))
	for i, n := range lengths {
		sequences[i] = scoring.Sequence{Length: max(n, 1), Copies: copies}
	}
	return sequences
}

// guess is the number of tokens in a value, from the strings in it, keys
// included. A string that holds a file counts as one piece of media.
func guess(v value) (n scoring.Tokens) {
	if !v.present() {
		return 0
	}
	size := 0
	for text := range v.strings() {
		if inlined(text) {
			n += mediaTokens
		} else {
			size += len(text)
		}
	}
	return n + scoring.Tokens(size/bytesPerToken)
}

// strings are the inner texts of all strings in a value, not unescaped. Those of
// a shallow document are not on its tape and are looked for in its text, where
// only strings have quotes.
func (v value) strings() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if v.kind() == kindString || !v.doc.shallow {
			for i := v.index; i < v.node().next; i++ {
				if s := (value{v.doc, i}); s.kind() == kindString && !yield(s.raw()) {
					return
				}
			}
			return
		}
		rest := v.raw()
		for {
			open := bytes.IndexByte(rest, '"')
			if open < 0 {
				return
			}
			rest = rest[open+1:]
			end := closingQuote(rest)
			if !yield(rest[:end]) {
				return
			}
			rest = rest[end+1:]
		}
	}
}

// closingQuote is where the string ends that text begins inside of; parse has
// checked that it does.
func closingQuote(text []byte) int {
	for i := 0; ; i++ {
		i += bytes.IndexByte(text[i:], '"')
		slashes := 0
		for slashes < i && text[i-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
}

// base64Run is how many characters of base64 in a row make a file: no word, path
// or identifier is as long.
const base64Run = 512

// inlined: the string is a file, as a data URL or, as input_audio has it, as bare
// base64.
func inlined(text []byte) bool {
	if bytes.HasPrefix(text, []byte("data:")) {
		return true
	}
	if len(text) < base64Run {
		return false
	}
	letters, digits := false, false
	for _, c := range text[:base64Run] {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			letters = true
		case c >= '0' && c <= '9':
			digits = true
		case c != '+' && c != '/' && c != '=':
			return false
		}
	}
	return letters && digits
}

// guessPrompts is the length of each prompt of a completion.
func guessPrompts(v value) []scoring.Tokens {
	switch {
	case v.kind() != kindArray:
		return []scoring.Tokens{guess(v)}
	case v.doc.shallow && bytes.IndexByte(v.raw(), '"') >= 0:
		return []scoring.Tokens{guess(v)}
	case v.doc.shallow:
		return []scoring.Tokens{scoring.Tokens(bytes.Count(v.raw(), []byte(","))) + 1}
	}
	var lengths []scoring.Tokens
	ids := scoring.Tokens(0)
	for e := range v.elements() {
		switch e.kind() {
		case kindString:
			lengths = append(lengths, guess(e))
		case kindArray:
			lengths = append(lengths, scoring.Tokens(e.len()))
		default:
			ids++
		}
	}
	if ids > 0 {
		lengths = append(lengths, ids)
	}
	return lengths
}
