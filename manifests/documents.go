package manifests

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is a YAML mapping; keys are printed in order of the alphabet, as
// kubectl does.
type object map[string]any

// list is a YAML sequence.
type list []any

// document is one Kubernetes object.
type document struct {
	// about says what it is for, to whoever reads the file.
	about string
	object
}

// print joins documents to a file.
func print(head string, documents []document) ([]byte, error) {
	var out bytes.Buffer
	comment(&out, head)
	for i, d := range documents {
		if i > 0 || head != "" {
			out.WriteString("---\n")
		}
		comment(&out, d.about)
		enc := yaml.NewEncoder(&out)
		enc.SetIndent(2)
		if err := enc.Encode(d.object); err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
	}
	return out.Bytes(), nil
}

func comment(out *bytes.Buffer, text string) {
	if text == "" {
		return
	}
	for line := range strings.Lines(strings.TrimSpace(text)) {
		out.WriteString("# " + strings.TrimSpace(line) + "\n")
	}
}
