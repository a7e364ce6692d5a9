package main

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

	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/test/shared"
)

// encode runs the command on lines and gives its answers, one per line.
func encode(t *testing.T, lines []string, args ...string) []encodeAnswer {
	t.Helper()
	cmd := newRootCommand()
	var out bytes.Buffer
	cmd.SetIn(strings.NewReader(strings.Join(lines, "\n") + "\n"))
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"encode"}, args...))
	if err := cmd.ExecuteContext(t.Context()); errors.Is(err, native.ErrNotBuilt) {
		t.Skip("this build has no native tokenizer")
	} else if err != nil {
		t.Fatal(err)
	}
	var answers []encodeAnswer
	for line := range strings.Lines(out.String()) {
		var a encodeAnswer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		answers = append(answers, a)
	}
	if len(answers) != len(lines) {
		t.Fatalf("%d answers to %d lines", len(answers), len(lines))
	}
	return answers
}

type encodeAnswer struct {
	Prompts []struct {
		TokenIDs     []uint32 `json:"token_ids"`
		Text         string
		UsablePrefix int `json:"usable_prefix"`
	}
	Remote string
	Error  *struct {
		Message, Type string
		Param         *string
		Code          int
	}
	Status int
}

func unpack(t *testing.T, name string, into any) {
	t.Helper()
	file, err := os.Open(shared.File(t, "golden", name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	text, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(text).Decode(into); err != nil {
		t.Fatal(err)
	}
}

// goldenTemplates are the chat templates beside a family's own.
var goldenTemplates = map[string]string{
	"llama3.1+3.2": "chat_template.llama3.2.jinja", "mistral-nemo+small3.2": "chat_template.mistral-small-3.2.jinja", "deepseek-v3+v3.1": "chat_template.v3.1.jinja",
}

var goldenFamilies = []string{"qwen2.5", "qwen3", "llama3.1", "mistral-nemo", "deepseek-v3", "gemma3", "gpt-oss"}

// TestEncodeGolden: texts and chats of all families, by the command.
func TestEncodeGolden(t *testing.T) {
	var inputs struct {
		Texts        []string
		ChatRequests []json.RawMessage `json:"chat_requests"`
	}
	unpack(t, "tokenizer-inputs.json.gz", &inputs)
	var texts, chats []string
	for _, text := range inputs.Texts {
		for _, special := range []bool{false, true} {
			line, err := json.Marshal(map[string]any{"path": "/v1/completions", "body": map[string]any{"prompt": text, "add_special_tokens": special}})
			if err != nil {
				t.Fatal(err)
			}
			texts = append(texts, string(line))
		}
	}
	for _, body := range inputs.ChatRequests {
		chats = append(chats, `{"path":"/v1/chat/completions","body":`+string(body)+`}`)
	}
	for _, family := range goldenFamilies {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			var golden struct {
				Wrap [2][]uint32
				Enc  [][]uint32
				Chat map[string]struct {
					ContentFormat string `json:"content_format"`
					Cases         []struct {
						Name, Text, Error string
						IDs               []uint32 `json:"ids"`
					}
				}
			}
			unpack(t, "tokenizer-"+family+".json.gz", &golden)
			dir := filepath.Join(shared.Dir(t), "tokenizers", family)
			for i, a := range encode(t, texts, "--tokenizer", dir) {
				text, want := inputs.Texts[i/2], golden.Enc[i/2]
				if i%2 == 1 {
					want = slices.Concat(golden.Wrap[0], want, golden.Wrap[1])
				}
				if len(want) == 0 || text == "" {
					if a.Status != 400 {
						t.Errorf("%q: %+v, want 400: it is empty", text, a)
					}
				} else if len(a.Prompts) != 1 || !slices.Equal(a.Prompts[0].TokenIDs, want) || a.Prompts[0].Text != text || a.Prompts[0].UsablePrefix != len(want) {
					t.Errorf("%q: %+v, want %d", text, a, want)
				}
			}
			for name, want := range golden.Chat {
				file := "chat_template.jinja"
				if extra, ok := goldenTemplates[name]; ok {
					file = extra
				}
				args := []string{"--tokenizer", dir, "--template", filepath.Join(dir, file), "--now", "2026-01-15T12:00:00Z"}
				for i, a := range encode(t, chats, args...) {
					c := want.Cases[i]
					if c.Error != "" {
						if a.Error == nil {
							t.Errorf("%s: %s: %+v, want an error", name, c.Name, a)
						}
					} else if len(a.Prompts) != 1 || a.Prompts[0].Text != c.Text || !slices.Equal(a.Prompts[0].TokenIDs, c.IDs) {
						t.Errorf("%s: %s: %+v, want %q", name, c.Name, a, c.Text)
					}
				}
			}
		})
	}
}

// TestEncodeRenderGolden: ids and statuses of a real vLLM, by the command. The
// names are the requests whose fault is the engine's to find.
func TestEncodeRenderGolden(t *testing.T) {
	enginesOwn := []string{
		"json_nan", "k_maxtok0", "maxtok0", "min_gt_max", "response_format_bad", "stream_options_only", "temp_bad", "temp_str", "top_logprobs_alone",
	}
	var golden struct {
		Requests []struct {
			Name, Path string
			Body       json.RawMessage   `json:"body,omitempty"`
			Raw        *string           `json:"raw,omitempty"`
			Headers    map[string]string `json:"headers,omitempty"`
		}
		Families map[string][]struct {
			Name     string
			Status   int
			TokenIDs json.RawMessage `json:"token_ids"`
		}
	}
	unpack(t, "vllm-render.json.gz", &golden)
	for name, answers := range golden.Families {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			family, _, _ := strings.Cut(name, "+")
			var lines []string
			for _, r := range golden.Requests {
				line, err := json.Marshal(map[string]any{"path": r.Path, "body": r.Body, "raw": r.Raw, "headers": r.Headers})
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, strings.ReplaceAll(string(line), "$MODEL", family))
			}
			dir := filepath.Join(shared.Dir(t), "tokenizers", family)
			args := []string{"--tokenizer", dir, "--now", "2026-01-15T12:00:00Z", "--max-model-len", "8192", "--served-model-name", family, "--tool-parser", "hermes"}
			if extra, ok := goldenTemplates[name]; ok {
				args = append(args, "--template", filepath.Join(dir, extra))
			}
			for i, a := range encode(t, lines, args...) {
				want := answers[i]
				chat := strings.Contains(golden.Requests[i].Path, "chat")
				switch {
				case family == "gpt-oss" && chat && a.Remote == "harmony":
				case want.Status != 200:
					if a.Status != want.Status && !slices.Contains(enginesOwn, want.Name) {
						t.Errorf("%s: %+v, want status %d", want.Name, a, want.Status)
					}
				case chat:
					var ids []uint32
					if err := json.Unmarshal(want.TokenIDs, &ids); err != nil {
						t.Fatal(err)
					}
					if len(a.Prompts) != 1 || !slices.Equal(a.Prompts[0].TokenIDs, ids) {
						t.Errorf("%s: %+v, want %d", want.Name, a, ids)
					}
				default:
					var lists [][]uint32
					if err := json.Unmarshal(want.TokenIDs, &lists); err != nil {
						t.Fatal(err)
					}
					if len(a.Prompts) != len(lists) {
						t.Fatalf("%s: %+v, want %d", want.Name, a, lists)
					}
					for i, ids := range lists {
						if !slices.Equal(a.Prompts[i].TokenIDs, ids) {
							t.Errorf("%s: %+v, want %d", want.Name, a, ids)
						}
					}
				}
			}
		})
	}
}

// TestEncodeBadLines: whatever comes in, each line has its answer.
func TestEncodeBadLines(t *testing.T) {
	small := filepath.Join("..", "..", "test", "tokenizer")
	lines := []string{
		`no JSON`,
		``,
		`{"path":"/v1/models","body":{}}`,
		`{"path":"/v1/completions"}`,
		`{"path":"/v1/completions","raw":"{\"prompt\":\"x\"} y","headers":{"Content-Type":"application/json"}}`,
		`{"path":"/v1/completions","raw":"{}","headers":{"content-type":"text/plain"}}`,
		`{"path":"/v1/completions","body":{"prompt":"` + strings.Repeat("x", maxLineBytes) + `"}}`,
		`{"path":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}]}}`,
		`{"path":"/v1/completions","body":{"prompt":"fine"}}`,
	}
	answers := encode(t, lines, "--tokenizer", small, "--tool-parser", "none")
	for i, want := range []int{400, 400, 404, 400, 400, 400, 413, 400, 0} {
		if a := answers[i]; a.Status != want || want != 0 && (a.Error == nil || a.Error.Code != want) {
			t.Errorf("line %d: %+v, want status %d", i+1, a, want)
		}
	}
	if a := answers[len(answers)-1]; len(a.Prompts) != 1 || a.Prompts[0].Text != "fine" {
		t.Errorf("the line after the bad ones: %+v", a)
	}
}

func TestEncodeFlags(t *testing.T) {
	for flag, args := range map[string][]string{
		"--engine":         {"--tokenizer", "x", "--engine", "no"},
		"--content-format": {"--tokenizer", "x", "--content-format", "no"},
		"--max-model-len":  {"--tokenizer", "x", "--max-model-len", "-1"},
		"--now":            {"--tokenizer", "x", "--now", "today"},
		`"tokenizer"`:      {},
	} {
		cmd := newRootCommand()
		cmd.SetArgs(append([]string{"encode"}, args...))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%q: %v, want a word about %s", args, err, flag)
		}
	}
}
