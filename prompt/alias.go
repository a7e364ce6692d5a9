package prompt

import (
	"encoding/json"
	"strings"

	"github.com/firsttoken/firsttoken/scoring"
)

// names tells p the model of the body's fields: where the client used an alias,
// the model behind it, and where in the body the alias stands.
func (e *Encoder) names(p *scoring.Prompt, f *fields, body []byte) {
	if f.model.kind() != kindString {
		return
	}
	p.Model = strings.Clone(f.model.str())
	model, ok := e.aliases[p.Model]
	if !ok {
		return
	}
	p.Alias, p.Model = p.Model, model
	// A string's node lies between its quotes, in a text that may begin behind a
	// byte order mark.
	n, before := f.model.node(), len(body)-len(f.model.doc.text)
	p.AliasAt = [2]int{before + int(n.start) - 1, before + int(n.end) + 1}
	// Who goes on with the fields must not look for the alias among the model's
	// own names.
	f.model = value{}
}

// Rename is body, the one that p was made of, as an engine must get it: with the
// model's own name where the client wrote an alias, and no other byte changed. Of
// several members "model" it is the last that has a meaning, to engines and here.
// Without alias it is body itself, else a copy.
func Rename(body []byte, p *scoring.Prompt) []byte {
	if p.Alias == "" {
		return body
	}
	name, err := json.Marshal(p.Model)
	if err != nil {
		panic(err) // a string always marshals
	}
	begin, end := p.AliasAt[0], p.AliasAt[1]
	renamed := make([]byte, 0, len(body)-(end-begin)+len(name))
	renamed = append(renamed, body[:begin]...)
	renamed = append(renamed, name...)
	return append(renamed, body[end:]...)
}
