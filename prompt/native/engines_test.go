//go:build cgo && !nonative

package native_test

import (
	"cmp"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// pieces are what random texts are made of: what the pre-tokenizers' patterns
// tell apart, at the borders where they disagree when one of them is wrong.
var pieces = []string{
	" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2003", "\u2028", "\u200b", "\u0085",
	"a", "Z", "the", "The", "THE", "é", "e\u0301", "ß", "ǅ", "ʰ", "я", "你好", "日本", "한국", "ש", "ع", "क्", "ไทย",
	"0", "12", "1234", "٣", "½", "Ⅷ", "²",
	"'s", "'S", "'ll", "’s", "'", "\"", ".", "...", "!?", "-", "_", "/", "\\", "{\"k\": [1]}", "#", "€",
	"🦊", "👩‍💻", "🇨🇭", "\ufeff", "\ufffd", "\x00", "\x1f", "\x7f", "\U0010ffff",
	"<|im_start|>", "<|im_end|>", "<|im_end", "<s>", "</s>", "[INST]", "<｜User｜>", "<bos>", "<start_of_turn>", "<|eot_id|>", "<|",
	"ing", "tion", "return x", "aaaaaaaaaaaaaaaa", "        ", "\n\n\n\n", "================",
}

func randomText(rng *rand.Rand) string {
	var text strings.Builder
	for range 1 + rng.IntN(60) {
		if rng.IntN(10) == 0 {
			text.WriteRune(randomRune(rng))
		} else {
			text.WriteString(pieces[rng.IntN(len(pieces))])
		}
	}
	return text.String()
}

// randomRune is any code point that Unicode had assigned long before the engines
// were written: for newer ones their character tables need not agree.
func randomRune(rng *rand.Rand) rune {
	for {
		r := rune(rng.IntN(0x2fff))
		if utf8.ValidRune(r) {
			return r
		}
	}
}

// The fast engine against the reference, also without ../shared.
func TestEnginesAgree(t *testing.T) {
	compareOnRandomTexts(t, load(t, small, native.Fastokens), load(t, small, native.Tokenizers), 7)
}

func compareOnRandomTexts(t *testing.T, fast, reference *native.Tokenizer, seed uint64) {
	t.Helper()
	if fast.VocabSize() != reference.VocabSize() {
		t.Errorf("%d tokens, the reference has %d", fast.VocabSize(), reference.VocabSize())
	}
	rng := rand.New(rand.NewPCG(seed, seed))
	for range 500 {
		compareEngines(t, fast, reference, randomText(rng))
	}
	// One that is long enough for whatever an engine does with long texts.
	var long strings.Builder
	for long.Len() < 100_000 {
		long.WriteString(randomText(rng))
	}
	compareEngines(t, fast, reference, long.String())
}

func compareEngines(t *testing.T, fast, reference *native.Tokenizer, text string) {
	t.Helper()
	for _, addSpecial := range []bool{false, true} {
		got, err := fast.Encode(t.Context(), text, addSpecial)
		if err != nil {
			t.Fatalf("text %q: %v", text, err)
		}
		want, err := reference.Encode(t.Context(), text, addSpecial)
		if err != nil {
			t.Fatalf("text %q: reference: %v", text, err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("text %.500q, special tokens %v:\n got %.300v\nwant %.300v", text, addSpecial, got, want)
		}
	}
	ids, err := fast.Encode(t.Context(), text, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fast.Decode(t.Context(), ids)
	want, referenceErr := reference.Decode(t.Context(), ids)
	if got != want || err != nil || referenceErr != nil {
		t.Fatalf("ids of %.500q decoded: %.300q (%v), reference %.300q (%v)", text, got, err, want, referenceErr)
	}
}

// FuzzEngines looks for texts on which the engines differ, with the tokenizer in
// the folder $TOKENIZER, else with the small one; its pattern is that of the Qwen
// family. "make fuzz-engines" goes through all families. What it finds go test
// writes to testdata/fuzz/FuzzEngines: keep it there.
func FuzzEngines(f *testing.F) {
	for _, piece := range pieces {
		f.Add(piece + " x" + piece)
	}
	dir := cmp.Or(os.Getenv("TOKENIZER"), small)
	fast, reference := load(f, dir, native.Fastokens), load(f, dir, native.Tokenizers)
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			if _, err := fast.Encode(t.Context(), text, false); err == nil {
				t.Errorf("no error for %q, which is not UTF-8", text)
			}
			return
		}
		compareEngines(t, fast, reference, text)
	})
}

// findings are the texts that FuzzEngines found with any tokenizer.
func findings(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "fuzz", "FuzzEngines", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, path := range files {
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, value, _ := strings.Cut(string(file), "\nstring(")
		text, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(value), ")"))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if utf8.ValidString(text) {
			texts = append(texts, text)
		}
	}
	return texts
}
