package migrate

import (
	"errors"
	"strings"
	"unicode"
)

var errQuote = errors.New("the command line ends inside quotes")

// Words splits a command line as a shell does: at blanks, save those in quotes
// or behind a backslash; a backslash at a line's end joins lines. Variables and
// the like stay as they are written.
func Words(line string) ([]string, error) {
	var (
		words   []string
		word    strings.Builder
		begun   bool
		quote   rune
		escaped bool
	)
	end := func() {
		if begun {
			words = append(words, word.String())
			word.Reset()
			begun = false
		}
	}
	for _, c := range line {
		switch {
		case escaped:
			escaped = false
			if c != '\n' {
				if quote == '"' && c != '"' && c != '\\' {
					word.WriteRune('\\')
				}
				word.WriteRune(c)
				begun = true
			}
		case c == '\\' && quote != '\'':
			escaped = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '"' || c == '\'':
			quote, begun = c, true
		case unicode.IsSpace(c):
			end()
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if quote != 0 {
		return nil, errQuote
	}
	end()
	return words, nil
}
