package hub

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
)

// Model is one state of one model's files.
type Model struct {
	// ID is ORG/NAME.
	ID string
	// Revision is a branch, a tag or a commit; empty: main.
	Revision string
}

func (m Model) String() string {
	if m.Revision == "" {
		return m.ID
	}
	return m.ID + "@" + m.Revision
}

func (m Model) revision() string { return cmp.Or(m.Revision, "main") }

// folder is the name of the model's folder in the cache.
func (m Model) folder() string { return "models--" + strings.ReplaceAll(m.ID, "/", "--") }

// part is what each half of an id may be, after huggingface_hub's rules.
var part = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)

// maxID is the hub's limit on the length of an id.
const maxID = 96

// IsID reports whether text may be a model's id on a hub. ./x, /x and x/y/z are
// paths, and so is x: the few models without an organisation are not worth
// that a misspelt folder is looked for in the network.
func IsID(text string) bool {
	if len(text) > maxID || strings.Contains(text, "--") || strings.Contains(text, "..") {
		return false
	}
	org, name, two := strings.Cut(text, "/")
	return two && part.MatchString(org) && part.MatchString(name)
}

// validRevision keeps a revision inside the folders that it names.
func validRevision(revision string) error {
	for segment := range strings.SplitSeq(revision, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsAny(segment, "\\\x00") {
			return fmt.Errorf("revision %q is no branch, tag or commit", revision)
		}
	}
	return nil
}
