package extproc

import (
	"fmt"
	"strings"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// validateSessionKey checks that a key can name a header.
func validateSessionKey(key string) error {
	if i := strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }); i >= 0 {
		return fmt.Errorf("%q is no name of a header; write one without blanks and colons, such as x-user-id", key)
	}
	return nil
}

// tellSession gives the prompt its session: the header's, else what the encoder
// found in the body.
func (st *stream) tellSession(p *scoring.Prompt) {
	if st.head.session != "" {
		p.Session = prompt.ShortSession(st.head.session)
	}
}
