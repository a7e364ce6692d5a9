//go:build cgo && !nonative

package native_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// small is the tokenizer that lies in the repository.
const small = "../../test/tokenizer"

var engines = []native.Engine{native.Fastokens, native.Tokenizers}

// copyOfSmall is a folder with the small tokenizer's files, to be changed.
func copyOfSmall(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		text, err := os.ReadFile(filepath.Join(small, name))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

func writeFile(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadTokenizerFaults(t *testing.T) {
	broken := copyOfSmall(t)
	writeFile(t, filepath.Join(broken, "tokenizer.json"), []byte(`{"model": {"type": "BPE", "vocab": `))
	brokenConfig := copyOfSmall(t)
	writeFile(t, filepath.Join(brokenConfig, "tokenizer_config.json"), []byte(`{"added_tokens_decoder": {"x": {"content": "y"}}}`))
	brokenGzip := t.TempDir()
	writeFile(t, filepath.Join(brokenGzip, "tokenizer.json.gz"), []byte("no gzip"))
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "tokenizer.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, dir string
		engine    native.Engine
		want      []string
	}{
		{"no file", t.TempDir(), "", []string{"no tokenizer.json and no tokenizer.json.gz in", "copy it there"}},
		{"not JSON", broken, native.Fastokens, []string{filepath.Join(broken, "tokenizer.json"), "fastokens", "EOF"}},
		{"not JSON", broken, native.Tokenizers, []string{filepath.Join(broken, "tokenizer.json"), "tokenizers", "EOF"}},
		{"config", brokenConfig, "", []string{"tokenizer_config.json", `"x" is not a token id`}},
		{"not gzip", brokenGzip, "", []string{filepath.Join(brokenGzip, "tokenizer.json.gz"), "gzip"}},
		{"folder", folder, "", []string{filepath.Join(folder, "tokenizer.json")}},
		{"engine", small, "sentencepiece", []string{`"sentencepiece"`, `"fastokens"`, `"tokenizers"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tokenizer, err := native.LoadTokenizer(test.dir, native.Options{Engine: test.engine})
			if err == nil {
				tokenizer.Close()
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if missing := errors.Is(err, fs.ErrNotExist); missing != (test.name == "no file") {
				t.Errorf("errors.Is(%q, fs.ErrNotExist) is %v", err, missing)
			}
		})
	}
}

func TestLoadGzippedTokenizer(t *testing.T) {
	dir := copyOfSmall(t)
	path := filepath.Join(dir, "tokenizer.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(text)
	_ = w.Close()
	writeFile(t, path+".gz", packed.Bytes())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	tokenizer := load(t, dir, native.Fastokens)
	if got := tokenizer.VocabSize(); got != 8192 {
		t.Errorf("vocabulary of %d tokens, want 8192", got)
	}
}

// transformers adds the tokens of tokenizer_config.json to those of
// tokenizer.json, and the flags of the former win.
func TestAddedTokensOfTheConfig(t *testing.T) {
	dir := copyOfSmall(t)
	writeFile(t, filepath.Join(dir, "tokenizer_config.json"), []byte(`{"added_tokens_decoder": {
		"8191": {"content": "<|im_end|>", "lstrip": true, "rstrip": false, "normalized": false, "single_word": false, "special": true},
		"8193": {"content": "<|b|>", "lstrip": false, "rstrip": false, "normalized": false, "single_word": false, "special": true},
		"8192": {"content": "<|a|>", "lstrip": false, "rstrip": false, "normalized": false, "single_word": false, "special": true}}}`))
	for _, engine := range engines {
		t.Run(string(engine), func(t *testing.T) {
			tokenizer := load(t, dir, engine)
			checkIDs(t, tokenizer, "<|b|><|a|>  <|im_end|>", false, []uint32{8193, 8192, 8191})
			if got := tokenizer.VocabSize(); got != 8194 {
				t.Errorf("vocabulary of %d tokens, want 8194", got)
			}
		})
	}
}

// What tokenizer.json says of truncation and padding is for training.
func TestNeitherTruncatedNorPadded(t *testing.T) {
	dir := copyOfSmall(t)
	path := filepath.Join(dir, "tokenizer.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for old, replacement := range map[string]string{
		`"truncation":null`: `"truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}`,
		`"padding":null`:    `"padding":{"strategy":{"Fixed":64},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"!"}`,
	} {
		if !bytes.Contains(text, []byte(old)) {
			t.Fatalf("no %s in tokenizer.json", old)
		}
		text = bytes.Replace(text, []byte(old), []byte(replacement), 1)
	}
	writeFile(t, path, text)
	want, err := load(t, small, native.Fastokens).Encode(t.Context(), "one two three four", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, engine := range engines {
		checkIDs(t, load(t, dir, engine), "one two three four", true, want)
	}
}

func TestTokenID(t *testing.T) {
	for _, engine := range engines {
		tokenizer := load(t, small, engine)
		for token, want := range map[string]uint32{"<|endoftext|>": 8189, "<|im_end|>": 8191, "!": 0} {
			if got, found := tokenizer.TokenID(token); got != want || !found {
				t.Errorf("%s: token %q: %d %v, want %d", engine, token, got, found, want)
			}
		}
		for _, token := range []string{"", "<|eot_id|>", "\xff"} {
			if got, found := tokenizer.TokenID(token); found {
				t.Errorf("%s: token %q: %d, want none", engine, token, got)
			}
		}
	}
}

func TestDecode(t *testing.T) {
	for _, engine := range engines {
		tokenizer := load(t, small, engine)
		for _, text := range []string{"", "Hello, world!\n", "<|im_start|>user\nGrüße 🦊<|im_end|>"} {
			ids, err := tokenizer.Encode(t.Context(), text, false)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := tokenizer.Decode(t.Context(), ids); got != text || err != nil {
				t.Errorf("%s: decoded %q, error %v, want %q", engine, got, err, text)
			}
		}
		fox, err := tokenizer.Encode(t.Context(), "🦊", false)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tokenizer.Decode(t.Context(), fox[:1]); !strings.Contains(got, "\ufffd") || err != nil {
			t.Errorf("%s: decoded the first token of a character: %q, error %v", engine, got, err)
		}
		if got, err := tokenizer.Decode(t.Context(), []uint32{1 << 31}); err == nil && got != "" {
			t.Errorf("%s: decoded an id outside the vocabulary: %q", engine, got)
		}
	}
}

func TestEncodeRefusals(t *testing.T) {
	tokenizer, err := native.LoadTokenizer(small, native.Options{MaxInputBytes: 8})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tokenizer.Encode(t.Context(), "12345678", false); err != nil {
		t.Errorf("a text at the limit: %v", err)
	}
	_, err = tokenizer.Encode(t.Context(), "123456789", false)
	if !errors.Is(err, native.ErrInputTooLarge) || !strings.Contains(err.Error(), "9 bytes, limit 8") {
		t.Errorf("a text above the limit: error %v", err)
	}
	if _, err := tokenizer.Decode(t.Context(), make([]uint32, 9)); !errors.Is(err, native.ErrInputTooLarge) {
		t.Errorf("ids above the limit: error %v", err)
	}
	if _, err := tokenizer.Encode(t.Context(), "a\xff", false); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("a text that is not UTF-8: error %v", err)
	}
	tokenizer.Close()
	tokenizer.Close()
	if _, err := tokenizer.Encode(t.Context(), "x", false); !errors.Is(err, native.ErrClosed) {
		t.Errorf("after Close: error %v", err)
	}
	if _, err := tokenizer.Decode(t.Context(), nil); !errors.Is(err, native.ErrClosed) {
		t.Errorf("after Close: error %v", err)
	}
	if id, found := tokenizer.TokenID("!"); found {
		t.Errorf("after Close: token id %d", id)
	}
}

// Calls from many goroutines give what one gives, also while others wait, give
// up, or close the tokenizer.
func TestConcurrentCalls(t *testing.T) {
	texts := []string{"a b c", strings.Repeat("def f(x): return x + 1\n", 400), "<|im_start|>Grüße<|im_end|>", "   \n\t "}
	for _, engine := range engines {
		t.Run(string(engine), func(t *testing.T) {
			tokenizer, err := native.LoadTokenizer(small, native.Options{Engine: engine, MaxConcurrent: 3})
			if err != nil {
				t.Fatal(err)
			}
			var want [][]uint32
			for _, text := range texts {
				ids, err := tokenizer.Encode(t.Context(), text, false)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, ids)
			}
			gone, giveUp := context.WithCancel(t.Context())
			contexts := []context.Context{gone, t.Context(), t.Context(), t.Context()}
			var calls sync.WaitGroup
			for g := range 16 {
				calls.Go(func() {
					ctx := contexts[g%4]
					for i := range 40 {
						if g == 0 && i == 20 {
							giveUp()
						}
						n := (g + i) % len(texts)
						ids, err := tokenizer.Encode(ctx, texts[n], false)
						switch {
						case errors.Is(err, context.Canceled) && g%4 == 0, errors.Is(err, native.ErrClosed):
						case err != nil:
							t.Error(err)
						case !slices.Equal(ids, want[n]):
							t.Errorf("text %d: other ids than alone", n)
						}
						if g == 1 && i == 35 {
							tokenizer.Close()
						}
					}
				})
			}
			calls.Wait()
			giveUp()
			tokenizer.Close()
		})
	}
}
