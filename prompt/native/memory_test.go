//go:build linux && cgo && !nonative && !race

package native_test

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// Tokenizers and templates that are closed leave nothing behind. A leak of one
// thread's cache would be 17 MB a round. (The race detector's own memory grows.)
func TestMemoryComesBack(t *testing.T) {
	text := strings.Repeat("hello world, hello cache\n", 3000)
	round := func() {
		for _, engine := range engines {
			tokenizer, err := native.LoadTokenizer(small, native.Options{Engine: engine, MaxConcurrent: 2})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tokenizer.Encode(t.Context(), text, false); err != nil {
				t.Fatal(err)
			}
			tokenizer.Close()
			template, err := native.CompileTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
			if err != nil {
				t.Fatal(err)
			}
			template.Close()
		}
	}
	for range 5 {
		round()
	}
	before := residentBytes(t)
	for range 50 {
		round()
	}
	after := residentBytes(t)
	t.Logf("%d MB before, %d MB after", before>>20, after>>20)
	if grown := after - before; grown > 200<<20 {
		t.Errorf("50 loads and closes left %d MB behind", grown>>20)
	}
}

func residentBytes(t *testing.T) int {
	t.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}
