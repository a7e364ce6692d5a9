//go:build cgo && !nonative

package native_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/test/shared"
)

// goSource is 4 MB of Go's own source: text that no engine has seen before.
func goSource(b *testing.B) string {
	b.Helper()
	files, err := filepath.Glob(filepath.Join(runtime.GOROOT(), "src", "*", "*.go")) //nolint:staticcheck // any large text will do
	if err != nil || len(files) == 0 {
		b.Skip("no Go source to encode")
	}
	var text strings.Builder
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		if utf8.Valid(source) {
			text.Write(source)
		}
		if text.Len() > 4<<20 {
			break
		}
	}
	return text.String()
}

// BenchmarkEncode encodes another piece of a large text each time, with a real
// vocabulary. The first round over the text is new to the engine's caches.
func BenchmarkEncode(b *testing.B) {
	source := goSource(b)
	dir := shared.File(b, "tokenizers", "qwen2.5")
	for _, engine := range engines {
		for _, size := range []int{4 << 10, 80 << 10, 400 << 10} {
			b.Run(fmt.Sprintf("%s/%dK", engine, size>>10), func(b *testing.B) {
				tokenizer := load(b, dir, engine)
				b.SetBytes(int64(size))
				at := 0
				for b.Loop() {
					if at+size > len(source) {
						at = 0
					}
					piece := strings.ToValidUTF8(source[at:at+size], "")
					at += size
					if _, err := tokenizer.Encode(b.Context(), piece, false); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCall is what a call costs beside its work.
func BenchmarkCall(b *testing.B) {
	tokenizer := load(b, small, native.Fastokens)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tokenizer.Encode(b.Context(), "hi", false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRender renders a conversation of 40 messages with 10 KB each.
func BenchmarkRender(b *testing.B) {
	source, err := os.ReadFile(filepath.Join(small, "chat_template.jinja"))
	if err != nil {
		b.Fatal(err)
	}
	template, err := native.CompileTemplate(string(source))
	if err != nil {
		b.Fatal(err)
	}
	defer template.Close()
	content := strings.Repeat("What is cached need not be computed. ", 10<<10/37)
	var v native.Value
	b.ReportAllocs()
	for b.Loop() {
		v.Reset()
		v.Map()
		v.Key("messages")
		v.List()
		for i := range 40 {
			v.Map()
			v.Key("role")
			v.String([]string{"user", "assistant"}[i%2])
			v.Key("content")
			v.String(content)
			v.EndMap()
		}
		v.EndList()
		v.Key("add_generation_prompt")
		v.Bool(true)
		v.EndMap()
		text, err := textOf(template.Render(b.Context(), &v, time.Time{}))
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(text)))
	}
}
