package overhead_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// text makes bodies. What is short is one message that was never sent before.
// What is long is a conversation of nine messages, one of a few that the service
// has seen, with a new question behind it: what a chat sends at each turn.
type text struct {
	source string
	serial atomic.Int64
	bodies atomic.Int64
}

// conversations is how many there are of what is long.
const conversations = 16

// model is served by all engines.
const model = "m"

// newText talks of the repository's own pages.
func newText(t *testing.T) *text {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, file := range append(files, "../../README.md", "../../ARCHITECTURE.md") {
		page, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(page)
	}
	const enough = 100_000
	if source.Len() < enough {
		t.Fatalf("%d bytes of text, want %d", source.Len(), enough)
	}
	return &text{source: strings.ToValidUTF8(source.String(), "")}
}

// slot is what each request has a number of its own in the place of.
const slot = "00000000"

// request is one client's request, which it sends again and again.
type request struct {
	text  *text
	bytes []byte
	at    int // of the slot
}

// next is the request with its next number. The memory is the same every time.
func (r *request) next() []byte {
	copy(r.bytes[r.at:], fmt.Appendf(nil, "%08d", r.text.serial.Add(1)%100_000_000))
	return r.bytes
}

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// request makes one with a body of about size bytes. streamed comes first in it:
// that is where the engines look.
func (t *text) request(size int, streamed bool) *request {
	const long, question, around = 2000, 300, 80
	var messages []message
	if size < long {
		messages = []message{{"user", slot + " " + t.source[:max(0, size-around)]}}
	} else {
		number := int(t.bodies.Add(1)) % conversations
		const turns = 9
		at := number * 1000
		for i := range turns {
			n := (size - question) / turns
			if at+n > len(t.source) {
				at = 0
			}
			content := strings.ToValidUTF8(t.source[at:at+n], "")
			messages = append(messages, message{[]string{"user", "assistant"}[i%2], fmt.Sprintf("conversation %d: %s", number, content)})
			at += n
		}
		messages = append(messages, message{"user", slot + " " + strings.ToValidUTF8(t.source[at%1000:at%1000+question], "")})
	}
	list, err := json.Marshal(messages)
	if err != nil {
		panic(err) // strings always marshal
	}
	body := fmt.Sprintf(`{"stream":%t,"model":%q,"messages":%s}`, streamed, model, list)
	all := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nhost: engines\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	return &request{text: t, bytes: []byte(all), at: strings.LastIndex(all, slot)}
}
