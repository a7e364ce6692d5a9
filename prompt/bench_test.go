package prompt_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
)

// BenchmarkEncode: chats of several turns. ReportAllocs counts Go's memory; the
// library's own is not in it.
func BenchmarkEncode(b *testing.B) {
	source, err := os.ReadFile("chat.go")
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{4 << 10, 100 << 10, 1 << 20} {
		body := chatBody(b, string(source), size)
		for _, parallel := range []bool{false, true} {
			b.Run(fmt.Sprintf("bytes=%d/parallel=%t", size, parallel), func(b *testing.B) {
				e := newEncoder(b, config(benchModel(b)), prompt.Options{})
				r := prompt.Request{Path: chatPath, Body: body}
				one := func() {
					if p, err := e.Encode(b.Context(), r); err != nil || p.Source != "native" {
						b.Fatalf("%+v, %v", p, err)
					}
				}
				one()
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				if parallel {
					b.ResetTimer()
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							one()
						}
					})
					return
				}
				for b.Loop() {
					one()
				}
			})
		}
	}
}

// chatBody is a chat whose messages hold size bytes of text.
func chatBody(b *testing.B, source string, size int) []byte {
	b.Helper()
	text := strings.Repeat(source, size/len(source)+1)[:size]
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	var messages []message
	const turns = 8
	for i := range turns {
		messages = append(messages, message{[]string{"user", "assistant"}[i%2], text[i*size/turns : (i+1)*size/turns]})
	}
	body, err := json.Marshal(map[string]any{"messages": messages})
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// benchModel is the model of $TOKENIZER, else the repository's small one.
func benchModel(b *testing.B) prompt.ModelConfig {
	b.Helper()
	cfg := smallModel()
	if dir := os.Getenv("TOKENIZER"); dir != "" {
		cfg.Tokenizer = dir
	}
	m, err := prompt.LoadModel(cfg)
	if errors.Is(err, native.ErrNotBuilt) {
		b.Skip("this build has no native tokenizer")
	} else if err != nil {
		b.Fatal(err)
	}
	m.Close()
	return cfg
}
