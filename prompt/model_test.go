package prompt_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
)

// folder copies the small tokenizer's vocabulary beside another configuration.
func folder(t *testing.T, tokenizerConfig string) string {
	t.Helper()
	dir := t.TempDir()
	vocabulary, err := os.ReadFile(filepath.Join(smallTokenizer, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"tokenizer.json": vocabulary, "tokenizer_config.json": []byte(tokenizerConfig)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestModelOptions: each option changes the text or ids as the engine's flag does.
func TestModelOptions(t *testing.T) {
	const (
		templates = `{"bos_token":{"content":"<|endoftext|>"},"chat_template":[` +
			`{"name":"default","template":"{{ bos_token }}{{ mood }}{{ messages[0]['content'] }}{{ strftime_now('%d %H') }}"},` +
			`{"name":"tool_use","template":"tools:{{ tools | length }}"}]}`
		chat  = `{"messages":[{"role":"user","content":"Hi"}]`
		tools = `,"tools":[{"type":"function","function":{"name":"f"}}]`
	)
	for _, tc := range []struct {
		name   string
		change func(*prompt.ModelConfig)
		path   string
		body   string
		text   string // what is tokenized
		ids    int    // where not 0
		fault  string // part of the message
	}{
		{name: "own template", path: chatPath, body: chat + `}`, text: "<|endoftext|>Hi15 12"},
		{name: "tool template", path: chatPath, body: chat + tools + `}`, text: "tools:1"},
		{name: "excluded tools", path: chatPath, body: chat + tools + `,"tool_choice":"none"}`, text: "<|endoftext|>Hi15 12", change: func(c *prompt.ModelConfig) { c.ExcludeToolsWhenToolChoiceNone = true }},
		{name: "no parser", path: chatPath, body: chat + tools + `}`, fault: `"auto" tool choice requires`, change: func(c *prompt.ModelConfig) { c.ToolParser = "none" }},
		{name: "server kwargs", path: chatPath, body: chat + `}`, text: "<|endoftext|>sadHi15 12", change: func(c *prompt.ModelConfig) { c.ChatTemplateKwargs = map[string]any{"mood": "sad"} }},
		{
			name: "request kwargs", path: chatPath, body: chat + `,"chat_template_kwargs":{"mood":"glad"}}`, text: "<|endoftext|>gladHi15 12",
			change: func(c *prompt.ModelConfig) { c.ChatTemplateKwargs = map[string]any{"mood": "sad"} },
		},
		{name: "untrusted template", path: chatPath, body: chat + `,"chat_template":"x"}`, fault: "--trust-request-chat-template"},
		{name: "trusted template", path: chatPath, body: chat + `,"chat_template":"x{{ bos_token }}"}`, text: "x<|endoftext|>", change: func(c *prompt.ModelConfig) { c.TrustRequestChatTemplate = true }},
		{name: "no BOS", path: completionPath, body: `{"prompt":"Hello"}`, text: "Hello", ids: 2},
		{name: "BOS", path: completionPath, body: `{"prompt":"Hello"}`, text: "Hello", ids: 3, change: func(c *prompt.ModelConfig) { c.AddBOS = "always" }},
		{name: "BOS survives truncation", path: completionPath, body: `{"prompt":"Hello Hello","truncate_prompt_tokens":2}`, text: "Hello Hello", ids: 2, change: func(c *prompt.ModelConfig) { c.AddBOS = "always" }},
		{name: "length", path: completionPath, body: `{"prompt":"Hello Hello","max_tokens":1}`, fault: "maximum context length is 2 tokens", change: func(c *prompt.ModelConfig) { c.MaxModelLen = 2 }},
	} {
		cfg := prompt.DefaultModelConfig()
		cfg.Tokenizer = folder(t, templates)
		if tc.change != nil {
			tc.change(&cfg)
		}
		got, err := loadModel(t, cfg).Encode(t.Context(), prompt.Request{Path: tc.path, Body: []byte(tc.body)}, noon)
		if tc.fault != "" {
			var fault *prompt.RequestError
			if !errors.As(err, &fault) || !strings.Contains(fault.Message, tc.fault) {
				t.Errorf("%s: %+v, %v; want %q", tc.name, got, err, tc.fault)
			}
			continue
		}
		if err != nil || got.Prompts[0].Text != tc.text || tc.ids != 0 && len(got.Prompts[0].TokenIDs) != tc.ids {
			t.Errorf("%s: %+v, %v; want %q in %d ids", tc.name, got, err, tc.text, tc.ids)
		}
	}
}

// TestBrokenFolders: the error names the file that is to be mended.
func TestBrokenFolders(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                            "tokenizer_config.json: ",
		`{"chat_template":"{% if %}"}`: "tokenizer_config.json: chat template: ",
		`{"chat_template":{"a":"b"}}`:  "tokenizer_config.json: chat_template is neither",
	} {
		cfg := prompt.DefaultModelConfig()
		cfg.Tokenizer = folder(t, text)
		if _, err := prompt.LoadModel(cfg); errors.Is(err, native.ErrNotBuilt) {
			t.Skip("this build has no native tokenizer")
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	cfg := prompt.DefaultModelConfig()
	cfg.Tokenizer, cfg.AddBOS = folder(t, `{}`), "always"
	if _, err := prompt.LoadModel(cfg); err == nil || !strings.Contains(err.Error(), "add_bos") {
		t.Errorf("no bos_token: %v", err)
	}
}
