//go:build cgo && !nonative

package native_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/test/shared"
)

// families are the tokenizers of ../shared, each with a golden file.
var families = []string{"qwen2.5", "qwen3", "llama3.1", "mistral-nemo", "deepseek-v3", "gemma3", "gpt-oss"}

// goldenInputs is golden/tokenizer-inputs.json.gz.
type goldenInputs struct {
	Texts        []string      `json:"texts"`
	ChatRequests []chatRequest `json:"chat_requests"`
}

// chatRequest is what the golden chats were made from.
type chatRequest struct {
	Name      string            `json:"name"`
	Messages  []json.RawMessage `json:"messages"`
	Tools     json.RawMessage   `json:"tools"`
	Kwargs    json.RawMessage   `json:"chat_template_kwargs"`
	Generate  *bool             `json:"add_generation_prompt"`
	Continues bool              `json:"continue_final_message"`
}

// goldenFamily is golden/tokenizer-FAMILY.json.gz.
type goldenFamily struct {
	// Wrap: what the post-processor puts before and after a text.
	Wrap [2][]uint32 `json:"wrap"`
	// Enc: the ids of each text, without special tokens.
	Enc [][]uint32 `json:"enc"`
	// Chat: by template.
	Chat map[string]struct {
		ContentFormat string       `json:"content_format"`
		Cases         []goldenChat `json:"cases"`
	} `json:"chat"`
}

type goldenChat struct {
	Name  string   `json:"name"`
	Text  string   `json:"text"`
	IDs   []uint32 `json:"ids"`
	Error string   `json:"error"`
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

// Every family of ../shared: both engines against the golden texts and against
// each other, and the templates against the golden chats.
func TestFamilies(t *testing.T) {
	inputs := readGolden[goldenInputs](t, shared.File(t, "golden", "tokenizer-inputs.json.gz"))
	for i, family := range families {
		t.Run(family, func(t *testing.T) {
			dir := shared.File(t, "tokenizers", family)
			golden := readGolden[goldenFamily](t, shared.File(t, "golden", "tokenizer-"+family+".json.gz"))
			fast, reference := load(t, dir, native.Fastokens), load(t, dir, native.Tokenizers)
			t.Run("texts/fastokens", func(t *testing.T) { checkGoldenTexts(t, fast, inputs.Texts, golden) })
			// The segment cache changes nothing, whether a piece is in it or not yet.
			cached := loadCached(t, dir, 16<<20)
			for _, round := range []string{"cold", "warm"} {
				t.Run("texts/cached/"+round, func(t *testing.T) { checkGoldenTexts(t, cached, inputs.Texts, golden) })
				t.Run("chats/cached/"+round, func(t *testing.T) { checkGoldenChats(t, cached, family, inputs.ChatRequests, golden) })
			}
			t.Run("random/cached", func(t *testing.T) { compareOnRandomTexts(t, cached, reference, uint64(i)+100) })
			t.Run("texts/tokenizers", func(t *testing.T) { checkGoldenTexts(t, reference, inputs.Texts, golden) })
			t.Run("chats", func(t *testing.T) { checkGoldenChats(t, fast, family, inputs.ChatRequests, golden) })
			t.Run("found by fuzzing", func(t *testing.T) {
				for _, text := range findings(t) {
					compareEngines(t, fast, reference, text)
				}
			})
			t.Run("random", func(t *testing.T) { compareOnRandomTexts(t, fast, reference, uint64(i)) })
		})
	}
}

// checkGoldenTexts: the ids that transformers gives, with and without special
// tokens.
func checkGoldenTexts(t *testing.T, tokenizer *native.Tokenizer, texts []string, golden goldenFamily) {
	t.Helper()
	if len(golden.Enc) != len(texts) || len(texts) == 0 {
		t.Fatalf("%d id lists for %d texts", len(golden.Enc), len(texts))
	}
	for i, text := range texts {
		checkIDs(t, tokenizer, text, false, golden.Enc[i])
		checkIDs(t, tokenizer, text, true, slices.Concat(golden.Wrap[0], golden.Enc[i], golden.Wrap[1]))
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

// checkGoldenChats renders the golden chats whose messages a template takes as
// they came (no tool calls, no lists of parts, no developer role): the same text,
// ids and refusals. What other messages must go through first is tested by
// package prompt, with all of them.
func checkGoldenChats(t *testing.T, tokenizer *native.Tokenizer, family string, requests []chatRequest, golden goldenFamily) {
	t.Helper()
	byName := map[string]chatRequest{}
	for _, request := range requests {
		byName[request.Name] = request
	}
	tokens := specialTokens(t, shared.File(t, "tokenizers", family))
	for name, chat := range golden.Chat {
		source, err := os.ReadFile(shared.File(t, "tokenizers", templateFile(family, name)))
		if err != nil {
			t.Fatal(err)
		}
		template := compile(t, string(source))
		if got := template.ContentFormat(); got != chat.ContentFormat {
			t.Errorf("%s: content format %q, want %q", name, got, chat.ContentFormat)
		}
		rendered := 0
		for _, want := range chat.Cases {
			variables := chatVariables(byName[want.Name], chat.ContentFormat, tokens)
			if variables == nil {
				continue
			}
			rendered++
			text, err := textOf(template.Render(t.Context(), variables, goldenNow))
			if want.Error != "" {
				var refusal *native.TemplateError
				if !errors.As(err, &refusal) || !strings.Contains(want.Error, refusal.Message) {
					t.Errorf("%s %s: error %v, want %q", name, want.Name, err, want.Error)
				}
				continue
			}
			if text != want.Text || err != nil {
				t.Errorf("%s %s: error %v, text (- want, + got)\n%s", name, want.Name, err, cmp.Diff(want.Text, text))
				continue
			}
			checkIDs(t, tokenizer, text, false, want.IDs)
		}
		if rendered < 25 {
			t.Errorf("%s: only %d chats compared", name, rendered)
		}
	}
}

// goldenNow is the time at which the golden chats were rendered.
var goldenNow = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)

// chatVariables is nil for requests that this package cannot render alone.
func chatVariables(r chatRequest, format string, tokens map[string]string) *native.Value {
	v := native.NewValue(1 << 12)
	v.Map()
	v.Key("messages")
	v.List()
	for _, raw := range r.Messages {
		var message map[string]any
		_ = json.Unmarshal(raw, &message)
		content, isText := message["content"].(string)
		if !isText || len(message) != 2 || message["role"] == "developer" || r.Continues {
			return nil
		}
		v.Map()
		v.Key("role")
		v.String(message["role"].(string))
		v.Key("content")
		if format == native.ContentOpenAI {
			v.List()
			v.Map()
			v.Key("type")
			v.String("text")
			v.Key("text")
			v.String(content)
			v.EndMap()
			v.EndList()
		} else {
			v.String(content)
		}
		v.EndMap()
	}
	v.EndList()
	v.Key("tools")
	if r.Tools == nil {
		v.Nil()
	} else {
		writeJSON(v, json.NewDecoder(bytes.NewReader(r.Tools)))
	}
	v.Key("documents")
	v.Nil()
	v.Key("add_generation_prompt")
	v.Bool(r.Generate == nil || *r.Generate)
	for name, text := range tokens {
		v.Key(name)
		v.String(text)
	}
	if r.Kwargs != nil {
		kwargs := json.NewDecoder(bytes.NewReader(r.Kwargs))
		_, _ = kwargs.Token()
		for kwargs.More() {
			name, _ := kwargs.Token()
			v.Key(name.(string))
			writeJSON(v, kwargs)
		}
	}
	v.EndMap()
	return v
}

// writeJSON writes the decoder's next value, with the order of its keys.
func writeJSON(v *native.Value, decoder *json.Decoder) {
	decoder.UseNumber()
	token, _ := decoder.Token()
	switch token := token.(type) {
	case nil:
		v.Nil()
	case bool:
		v.Bool(token)
	case string:
		v.String(token)
	case json.Number:
		if i, err := token.Int64(); err == nil {
			v.Int(i)
		} else if f, err := token.Float64(); err == nil {
			v.Float(f)
		}
	case json.Delim:
		if token == '[' {
			v.List()
			for decoder.More() {
				writeJSON(v, decoder)
			}
			v.EndList()
		} else {
			v.Map()
			for decoder.More() {
				key, _ := decoder.Token()
				v.Key(key.(string))
				writeJSON(v, decoder)
			}
			v.EndMap()
		}
		_, _ = decoder.Token() // the closing delimiter
	}
}

// specialTokens are the variables like bos_token that tokenizer_config.json names.
func specialTokens(t *testing.T, dir string) map[string]string {
	t.Helper()
	var config map[string]json.RawMessage
	path := filepath.Join(dir, "tokenizer_config.json")
	if _, err := os.Stat(path); err == nil {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &config); err != nil {
			t.Fatal(err)
		}
	} else {
		config = readGolden[map[string]json.RawMessage](t, path+".gz")
	}
	tokens := map[string]string{}
	for _, name := range []string{"bos_token", "eos_token", "pad_token", "unk_token"} {
		var text string
		var token struct {
			Content string `json:"content"`
		}
		if json.Unmarshal(config[name], &text) == nil && text != "" {
			tokens[name] = text
		} else if json.Unmarshal(config[name], &token) == nil && token.Content != "" {
			tokens[name] = token.Content
		}
	}
	return tokens
}
