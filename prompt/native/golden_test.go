//go:build cgo && !nonative

package native_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/test/shared"
)

// families are the tokenizers of ../shared, each with a golden file.
var families = []string{"qwen2.5", "qwen3", "llama3.1", "mistral-nemo", "deepseek-v3", "gemma3", "gpt-oss"}

// goldenTexts is golden/tokenizer-inputs.json.gz as far as this package goes.
type goldenTexts struct {
	Texts []string `json:"texts"`
}

// goldenFamily is golden/tokenizer-FAMILY.json.gz.
type goldenFamily struct {
	// Wrap: what the post-processor puts before and after a text.
	Wrap [2][]uint32 `json:"wrap"`
	// Enc: the ids of each text, without special tokens.
	Enc [][]uint32 `json:"enc"`
	// Chat: by template.
	Chat map[string]struct {
		ContentFormat string `json:"content_format"`
	} `json:"chat"`
}

func readGolden[T any](t *testing.T, path string) T {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var golden T
	if err := json.NewDecoder(unpacked).Decode(&golden); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return golden
}

func load(tb testing.TB, dir string, engine native.Engine) *native.Tokenizer {
	tb.Helper()
	tokenizer, err := native.LoadTokenizer(dir, native.Options{Engine: engine})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(tokenizer.Close)
	return tokenizer
}

// Both engines give the ids that transformers gives, for every text of the
// golden files, with and without special tokens.
func TestGoldenTexts(t *testing.T) {
	texts := readGolden[goldenTexts](t, shared.File(t, "golden", "tokenizer-inputs.json.gz")).Texts
	for _, family := range families {
		golden := readGolden[goldenFamily](t, shared.File(t, "golden", "tokenizer-"+family+".json.gz"))
		if len(golden.Enc) != len(texts) || len(texts) == 0 {
			t.Fatalf("%s: %d id lists for %d texts", family, len(golden.Enc), len(texts))
		}
		for _, engine := range []native.Engine{native.Fastokens, native.Tokenizers} {
			t.Run(family+"/"+string(engine), func(t *testing.T) {
				tokenizer := load(t, shared.File(t, "tokenizers", family), engine)
				for i, text := range texts {
					checkIDs(t, tokenizer, text, false, golden.Enc[i])
					checkIDs(t, tokenizer, text, true, slices.Concat(golden.Wrap[0], golden.Enc[i], golden.Wrap[1]))
				}
			})
		}
	}
}

func checkIDs(t *testing.T, tokenizer *native.Tokenizer, text string, addSpecial bool, want []uint32) {
	t.Helper()
	got, err := tokenizer.Encode(t.Context(), text, addSpecial)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("ids of %.80q (special tokens %v):\n got %v\nwant %v", text, addSpecial, got, want)
	}
}

// templateFile is the file of a template that the golden files name.
func templateFile(family, template string) string {
	file := "chat_template.jinja"
	switch template {
	case "llama3.1+3.2":
		file = "chat_template.llama3.2.jinja"
	case "mistral-nemo+small3.2":
		file = "chat_template.mistral-small-3.2.jinja"
	case "deepseek-v3+v3.1":
		file = "chat_template.v3.1.jinja"
	}
	return filepath.Join(family, file)
}

func TestGoldenContentFormat(t *testing.T) {
	for _, family := range families {
		golden := readGolden[goldenFamily](t, shared.File(t, "golden", "tokenizer-"+family+".json.gz"))
		for name, chat := range golden.Chat {
			t.Run(fmt.Sprintf("%s/%s", family, name), func(t *testing.T) {
				source, err := os.ReadFile(shared.File(t, "tokenizers", templateFile(family, name)))
				if err != nil {
					t.Fatal(err)
				}
				template, err := native.CompileTemplate(string(source))
				if err != nil {
					t.Fatal(err)
				}
				defer template.Close()
				if got := template.ContentFormat(); got != chat.ContentFormat {
					t.Errorf("content format %q, want %q", got, chat.ContentFormat)
				}
				t.Log(template.Names())
			})
		}
	}
}

var golden = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)
