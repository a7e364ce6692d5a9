package prompt

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

// estimateOf is the estimated length of a request's prompts together. shallow:
// the body is taken for one that is too large to be tokenized.
func estimateOf(t *testing.T, path, body string, shallow bool) (n scoring.Tokens) {
	t.Helper()
	d := document{shallow: shallow}
	if err := d.parse([]byte(body)); err != nil {
		t.Fatalf("%.80s: %v", body, err)
	}
	f := readFields(d.root())
	for _, s := range estimate(path, &f) {
		n += s.Length
	}
	return n
}

// TestEstimate: the length comes from the texts; a file in the body counts as
// one, whatever its size, also in a body too large to be tokenized.
func TestEstimate(t *testing.T) {
	file := strings.Repeat("UklGRiQAAABXQVZFZm10IBAAAAABAAEA+/", 20_000)
	words := strings.Repeat("all these words ", 1000)
	escaped := strings.Repeat(`\"\\`, 1000)
	part := func(format string, args ...any) string {
		return `{"messages":[{"role":"user","content":[` + fmt.Sprintf(format, args...) + `]}]}`
	}
	for _, tc := range []struct {
		name, path, body string
		least, most      scoring.Tokens
	}{
		{"text", chatPath, part(`{"type":"text","text":"%s"}`, words), 4000, 4020},
		{"escapes", chatPath, part(`{"type":"text","text":"%s"},{"type":"text","text":"%s"}`, escaped, words), 5000, 5020},
		{"image", chatPath, part(`{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}`, file), 1024, 1060},
		{"audio", chatPath, part(`{"type":"input_audio","input_audio":{"data":"%s","format":"wav"}}`, file), 1024, 1060},
		{"two images and text", chatPath, part(`{"image_url":"data:%s"},{"text":"%s"},{"image_url":"data:%s"}`, file, words, file), 6048, 6080},
		{"long word", completionPath, `{"prompt":"` + strings.Repeat("a", 4000) + `"}`, 1000, 1000},
		{"token ids", completionPath, `{"prompt":[1,22,333,4444,55555]}`, 5, 5},
		{"nothing", completionPath, `{"prompt":""}`, 1, 1},
	} {
		for _, shallow := range []bool{false, true} {
			if n := estimateOf(t, tc.path, tc.body, shallow); n < tc.least || n > tc.most {
				t.Errorf("%s, shallow %t: %d tokens, want %d to %d", tc.name, shallow, n, tc.least, tc.most)
			}
		}
	}
}

// TestEstimateShallow: looking for strings in the text finds those that the tape
// has.
func TestEstimateShallow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pieces := []string{`"`, `\`, "data:", "a", "[", "{", ",", "ü", "\n", " "}
	text := func() string {
		var b strings.Builder
		for range rng.IntN(12) {
			b.WriteString(pieces[rng.IntN(len(pieces))])
		}
		return b.String()
	}
	var random func(depth int) any
	random = func(depth int) any {
		switch kind := rng.IntN(5); {
		case depth == 0 || kind < 2:
			return text()
		case kind == 2:
			return []any{random(depth - 1), random(depth - 1)}
		case kind == 3:
			return map[string]any{text(): random(depth - 1), text(): random(depth - 1)}
		default:
			return rng.IntN(1000)
		}
	}
	for range 2000 {
		body, err := json.Marshal(map[string]any{"messages": random(4), "tools": random(4)})
		if err != nil {
			t.Fatal(err)
		}
		if deep, shallow := estimateOf(t, chatPath, string(body), false), estimateOf(t, chatPath, string(body), true); deep != shallow {
			t.Fatalf("%s: %d tokens, shallow %d", body, deep, shallow)
		}
	}
}
