package prompt

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// folder is what the files beside tokenizer.json say.
type folder struct {
	config struct {
		ModelType     string          `json:"model_type"`
		VisionConfig  json.RawMessage `json:"vision_config"`
		AudioConfig   json.RawMessage `json:"audio_config"`
		ThinkerConfig json.RawMessage `json:"thinker_config"`
	}
	tokenizer    map[string]json.RawMessage // tokenizer_config.json
	special      map[string]json.RawMessage // special_tokens_map.json
	templates    map[string]string
	templatePath string
	hasTokenizer bool
	hasMistral   bool
	hasProcessor bool
}

func readFolder(cfg ModelConfig) (*folder, error) {
	dir := cfg.Tokenizer
	f := &folder{templates: map[string]string{}}
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
	f.hasTokenizer = exists("tokenizer.json") || exists("tokenizer.json.gz")
	f.hasMistral = exists("tekken.json")
	f.hasProcessor = exists("preprocessor_config.json") || exists("processor_config.json")
	for name, into := range map[string]any{
		"config.json": &f.config, "tokenizer_config.json": &f.tokenizer, "special_tokens_map.json": &f.special,
	} {
		if err := readJSON(dir, name, into); err != nil {
			return nil, err
		}
	}
	return f, f.readTemplates(cfg)
}

// readTemplates takes the configured template, else chat_template.jinja, else
// that of tokenizer_config.json, which may be a list of named ones.
func (f *folder) readTemplates(cfg ModelConfig) error {
	f.templatePath = cfg.ChatTemplate
	if f.templatePath == "" {
		f.templatePath = filepath.Join(cfg.Tokenizer, "chat_template.jinja")
	}
	source, err := os.ReadFile(f.templatePath)
	switch {
	case err == nil:
		f.templates["default"] = string(source)
		return nil
	case cfg.ChatTemplate != "" || !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("chat template: %w", err)
	}
	f.templatePath = filepath.Join(cfg.Tokenizer, "tokenizer_config.json")
	raw := f.tokenizer["chat_template"]
	if len(raw) == 0 || string(raw) == "null" {
		return nil // chats cannot be rendered, completions can be encoded
	}
	var single string
	if json.Unmarshal(raw, &single) == nil {
		f.templates["default"] = single
		return nil
	}
	var named []struct{ Name, Template string }
	if err := json.Unmarshal(raw, &named); err != nil {
		return fmt.Errorf("%s: chat_template is neither a string nor a list of named templates: %w", f.templatePath, err)
	}
	for _, t := range named {
		f.templates[t.Name] = t.Template
	}
	return nil
}

// specialTokens are the named tokens of the tokenizer, as strings.
func (f *folder) specialTokens() (tokens []specialToken) {
	for _, name := range []string{"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"} {
		for _, from := range []map[string]json.RawMessage{f.tokenizer, f.special} {
			var text string
			var object struct{ Content string }
			if raw := from[name]; json.Unmarshal(raw, &text) != nil && json.Unmarshal(raw, &object) == nil {
				text = object.Content
			}
			if text != "" {
				tokens = append(tokens, specialToken{name, text})
				break
			}
		}
	}
	return tokens
}

func (f *folder) multimodal() bool {
	return f.hasProcessor || len(f.config.VisionConfig) > 0 || len(f.config.AudioConfig) > 0 || len(f.config.ThinkerConfig) > 0
}

// remote names the models whose chats vLLM does not render with Jinja.
func (f *folder) remote() Remote {
	switch {
	case f.config.ModelType == "gpt_oss":
		return RemoteHarmony
	case f.hasMistral:
		return RemoteMistral
	case slices.Contains([]string{"deepseek_v32", "deepseek_v4", "deepseek_v41", "kimi_k3", "inkling"}, f.config.ModelType):
		return RemoteTokenizerMode
	}
	return RemoteNone
}

// readJSON reads a file of the folder, or its .gz; a missing file is no error.
func readJSON(dir, name string, into any) error {
	path := filepath.Join(dir, name)
	text, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	if errors.Is(err, fs.ErrNotExist) {
		path += ".gz"
		text, err = readPacked(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// maxConfigBytes bounds what a packed configuration file may unpack to.
const maxConfigBytes = 64 << 20

func readPacked(path string) ([]byte, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return nil, err
	}
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(unpacked, maxConfigBytes))
}
