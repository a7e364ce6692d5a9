package prompt

import (
	"bufio"
	"compress/gzip"
	"os"
	"strings"
	"testing"
)

// TestMessageSchema: what pydantic makes of random messages with vLLM's types
// (testdata/messages.py): accepted, refused, or refused once somebody reads the
// parts or tool calls.
func TestMessageSchema(t *testing.T) {
	file, err := os.Open("testdata/messages.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(unpacked)
	for lines.Scan() {
		var d document
		if err := d.parse(lines.Bytes()); err != nil {
			t.Fatal(err)
		}
		if got, want := schemaClass(d.root().get("message")), d.root().get("class").str(); got != want {
			t.Errorf("%s: %s, want %s", d.root().get("message").raw(), got, want)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

func schemaClass(v value) string {
	m, fault := readMessage(v, 0)
	if fault != nil {
		if !strings.HasPrefix(fault.Param, "body.messages") {
			return "lazy" // the tool calls of OpenAI's schema
		}
		return "schema"
	}
	for p := range m.content.elements() {
		if k, _ := classify(p); !m.open && !m.allows(k) {
			return "lazy"
		}
	}
	return "ok"
}
