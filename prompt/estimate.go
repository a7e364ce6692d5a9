package prompt

import (
	"bytes"

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
	if path == chatPath {
		lengths = append(lengths, guess(f.messages)+guess(f.tools)+guess(f.documents))
	} else {
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

// guess is the number of tokens in a value, from the strings in it. An inlined
// file counts as one piece of media.
func guess(v value) (n scoring.Tokens) {
	if !v.present() {
		return 0
	}
	if v.doc.shallow {
		return scoring.Tokens(len(v.raw()) / bytesPerToken)
	}
	size := 0
	for i := v.index; i < v.node().next; i++ {
		if s := (value{v.doc, i}); s.kind() == kindString {
			if raw := s.raw(); bytes.HasPrefix(raw, []byte("data:")) {
				n += mediaTokens
			} else {
				size += len(raw)
			}
		}
	}
	return n + scoring.Tokens(size/bytesPerToken)
}

// guessPrompts is the length of each prompt of a completion.
func guessPrompts(v value) []scoring.Tokens {
	if v.kind() != kindArray || v.doc.shallow {
		return []scoring.Tokens{guess(v)}
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
