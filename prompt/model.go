package prompt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// Model encodes requests for one model exactly as its engine does. It is safe
// for concurrent use. All fields are set once by LoadModel.
type Model struct {
	cfg           ModelConfig
	tokenizer     *native.Tokenizer
	templates     map[string]*chatTemplate // by name; "default" and perhaps "tool_use"
	wrap          wrapping
	specialTokens []specialToken
	kwargs        []kwarg
	remote        Remote // why chats are the engine's to render
	multimodal    bool
}

// chatTemplate is a compiled template with what vLLM reads out of its text.
type chatTemplate struct {
	compiled       *native.Template
	source         string
	knowsDeveloper bool
}

func compileTemplate(source string) (*chatTemplate, error) {
	compiled, err := native.CompileTemplate(source)
	if err != nil {
		return nil, err
	}
	knows := strings.Contains(source, `"developer"`) || strings.Contains(source, `'developer'`)
	return &chatTemplate{compiled, source, knows}, nil
}

// specialToken is a variable that every template gets.
type specialToken struct{ name, text string }

// kwarg is one of the server's default template arguments, ready to append.
type kwarg struct {
	name  string
	value *native.Value
}

// LoadModel reads the tokenizer folder and the template and warms both up: it
// takes up to a second. The caller closes the model. The error names the file.
func LoadModel(cfg ModelConfig) (*Model, error) { return loadModel(cfg, native.Options{}) }

func loadModel(cfg ModelConfig, o native.Options) (*Model, error) {
	m := &Model{cfg: cfg.withDefaults(), templates: map[string]*chatTemplate{}}
	if err := m.load(o); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Model) load(o native.Options) error {
	cfg := m.cfg
	files, err := readFolder(cfg)
	if err != nil {
		return err
	}
	m.specialTokens, m.multimodal, m.remote = files.specialTokens(), files.multimodal(), files.remote()
	if m.kwargs, err = defaultKwargs(cfg.ChatTemplateKwargs); err != nil {
		return err
	}
	if m.remote == RemoteMistral && !files.hasTokenizer {
		return nil // everything is the engine's
	}
	o.Engine = native.Engine(cfg.Engine)
	if m.tokenizer, err = native.LoadTokenizer(cfg.Tokenizer, o); err != nil {
		return err
	}
	if m.remote == RemoteNone && cfg.ChatTemplate == "" && files.config.ModelType == "" && m.speaksHarmony() {
		m.remote = RemoteHarmony
	}
	for name, source := range files.templates {
		if m.templates[name], err = compileTemplate(source); err != nil {
			delete(m.templates, name)
			return fmt.Errorf("%s: %w", files.templatePath, err)
		}
	}
	if err = m.findWrapping(); err != nil {
		return err
	}
	return m.warmUp()
}

// speaksHarmony recognises gpt-oss by its tokens where no config.json tells.
func (m *Model) speaksHarmony() bool {
	for _, token := range []string{"<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|return|>"} {
		if _, ok := m.tokenizer.TokenID(token); !ok {
			return false
		}
	}
	return true
}

// findWrapping asks the tokenizer what it puts around a text.
func (m *Model) findWrapping() error {
	ctx := context.Background()
	bare, err := m.tokenizer.Encode(ctx, "a", false)
	if err != nil {
		return err
	}
	whole, err := m.tokenizer.Encode(ctx, "a", true)
	if err != nil {
		return err
	}
	m.wrap.text = true
	for at := range len(whole) - len(bare) + 1 {
		if slices.Equal(whole[at:at+len(bare)], bare) {
			m.wrap.before, m.wrap.after = whole[:at], whole[at+len(bare):]
			break
		}
	}
	switch m.cfg.AddBOS {
	case "never":
		m.wrap.before, m.wrap.after = nil, nil
	case "always":
		if len(m.wrap.before) > 0 {
			return nil
		}
		for _, token := range m.specialTokens {
			if token.name != "bos_token" {
				continue
			}
			if id, ok := m.tokenizer.TokenID(token.text); ok {
				m.wrap.before = []uint32{id}
				return nil
			}
		}
		return fmt.Errorf("model %s: add_bos is always, and %s names no bos_token that tokenizer.json has; write auto or never",
			m.cfg.Name, filepath.Join(m.cfg.Tokenizer, "tokenizer_config.json"))
	}
	return nil
}

// warmUp renders and encodes once, so that no request pays for what is set up
// at first use. A template that refuses the greeting is none the worse.
func (m *Model) warmUp() error {
	if m.remote != RemoteNone {
		return nil
	}
	body := []byte(`{"messages":[{"role":"user","content":"Hello, who are you?"}]}`)
	var refused *RequestError
	if _, err := m.Encode(context.Background(), Request{Path: chatPath, Body: body}, time.Unix(0, 0)); err != nil && !errors.As(err, &refused) {
		return fmt.Errorf("model %s: warm-up: %w", m.cfg.Name, err)
	}
	return nil
}

// unloaded stands for a model whose tokenizer is not there: it encodes what needs
// none, and for all else says why.
func unloaded(cfg ModelConfig, why Remote) *Model { return &Model{cfg: cfg, remote: why} }

// Close frees the tokenizer, once the calls in progress are done. Later calls
// fail.
func (m *Model) Close() {
	for _, t := range m.templates {
		t.compiled.Close()
	}
	if m.tokenizer != nil {
		m.tokenizer.Close()
	}
}

const (
	chatPath       = "/v1/chat/completions"
	completionPath = "/v1/completions"
)

// Paths of OpenAI's Responses and of Anthropic's Messages. The engine makes chats
// of their bodies by rules of its own, so only it can tell their token ids.
const (
	ResponsesPath = "/v1/responses"
	MessagesPath  = "/v1/messages"
)

// foreign says why requests to a generation path are the engine's to render;
// RemoteNone where they need not be.
func foreign(path string) Remote {
	switch path {
	case ResponsesPath:
		return RemoteResponses
	case MessagesPath:
		return RemoteMessages
	}
	return RemoteNone
}

// endpoint is the generation path that a request path stands for, with the
// render path that only prepares it; empty for all others.
func endpoint(path string) string {
	path, _, _ = strings.Cut(path, "?")
	switch strings.TrimSuffix(path, "/render") {
	case chatPath:
		return chatPath
	case completionPath:
		return completionPath
	}
	return ""
}

// Encode is the request's prompt. The error is a *RequestError for what the
// engine refuses because of the prompt; another one says that this process
// could not do it (too large, too deep, ctx ended while waiting). Faults of
// sampling parameters are the engine's to find. Templates that name the date
// print now, in now's location.
func (m *Model) Encode(ctx context.Context, r Request, now time.Time) (Encoded, error) {
	path := endpoint(r.Path)
	if path == "" {
		return Encoded{}, &RequestError{
			Status: http.StatusNotFound, Type: typeUnknown, Param: "path",
			Message: fmt.Sprintf("%q has no prompt; %s and %s have, and their /render", r.Path, chatPath, completionPath),
		}
	}
	if !isJSON(r.ContentType) {
		return Encoded{}, wrongMediaType()
	}
	d := documents.Get().(*document) //nolint:forcetypeassert // the pool holds nothing else
	defer d.release()
	if err := parseBody(d, r.Body); err != nil {
		return Encoded{}, err
	}
	f := readFields(d.root())
	encoded, err := m.encode(ctx, path, &f, now, false)
	for i := range encoded.Prompts {
		// A completion's text is still part of the body, a chat's the library's.
		encoded.Prompts[i].Text = strings.Clone(encoded.Prompts[i].Text)
	}
	encoded.rendered.Free()
	encoded.rendered = nil
	return encoded, err
}

// encode is Encode of a body that was read. path is a generation path. The texts
// are views of the body, or of what the caller frees: rendered.
func (m *Model) encode(ctx context.Context, path string, f *fields, now time.Time, lenient bool) (Encoded, error) {
	if path == chatPath {
		return m.chat(ctx, f, now, lenient)
	}
	return m.completion(ctx, f)
}

// isJSON: vLLM takes application/json, in any case and with any parameters, and
// a body without a type.
func isJSON(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.TrimSpace(media)
	return media == "" || strings.EqualFold(media, "application/json")
}

// parseBody reads the body into d. The error is a *RequestError: the body is no
// JSON object.
func parseBody(d *document, body []byte) error {
	if len(body) == 0 {
		return notObject(value{})
	}
	body = trimBOM(body)
	if !utf8.Valid(body) {
		return notText()
	}
	if err := d.parse(body); err != nil {
		if syntax, ok := errors.AsType[*syntaxError](err); ok {
			return notJSON(syntax)
		}
		return err
	}
	if root := d.root(); root.kind() != kindObject {
		return notObject(root)
	}
	return nil
}

func trimBOM(body []byte) []byte {
	if len(body) >= 3 && body[0] == 0xEF && body[1] == 0xBB && body[2] == 0xBF {
		return body[3:]
	}
	return body
}

// serves is the fault of a request for another model.
func (m *Model) serves(name string) *RequestError {
	if name == "" || m.cfg.Name == "" || name == m.cfg.Name || slices.Contains(m.cfg.Aliases, name) {
		return nil
	}
	return unknownModel(name, append([]string{m.cfg.Name}, m.cfg.Aliases...))
}

// pickTemplate is the template for a request with or without tools; nil where
// the model has none.
func (m *Model) pickTemplate(tools bool) *chatTemplate {
	if t := m.templates["tool_use"]; tools && t != nil {
		return t
	}
	return m.templates["default"]
}

// tokenize encodes one text.
func (m *Model) tokenize(ctx context.Context, text string, c cut) (EncodedPrompt, error) {
	ids, err := m.tokenizer.Encode(ctx, text, false)
	if err != nil {
		return EncodedPrompt{}, err
	}
	wrap := wrapping{text: true}
	if c.addSpecial {
		wrap = m.wrap
	}
	ids, fault := c.apply(ids, wrap)
	if fault != nil {
		return EncodedPrompt{}, fault
	}
	return EncodedPrompt{TokenIDs: ids, Text: text, UsablePrefix: len(ids)}, nil
}

// defaultKwargs encodes the server's template arguments.
func defaultKwargs(kwargs map[string]any) ([]kwarg, error) {
	if len(kwargs) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(kwargs)
	if err != nil {
		return nil, fmt.Errorf("default_chat_template_kwargs: %w", err)
	}
	var d document
	if err := d.parse(text); err != nil {
		return nil, fmt.Errorf("default_chat_template_kwargs: %w", err)
	}
	var list []kwarg
	for key, v := range d.root().members() {
		if v.is("auto") || !v.present() {
			continue
		}
		out := native.NewValue(64)
		if err := v.write(out, 0); err != nil {
			return nil, fmt.Errorf("default_chat_template_kwargs: %s: %w", key.str(), err)
		}
		list = append(list, kwarg{key.str(), out})
	}
	return list, nil
}

// segmentCache says for the log that there is a segment cache, or why not.
func (m *Model) segmentCache(bytes int) string {
	if m.tokenizer == nil {
		return "none: the engine encodes"
	}
	if _, on := m.tokenizer.CacheStats(); on {
		return "on"
	}
	switch {
	case bytes == 0:
		return "none: segment_cache_bytes is 0"
	case m.cfg.Engine != string(native.Fastokens):
		return "none: the engine " + m.cfg.Engine + " has none"
	}
	return "none: tokenizer.json asks for BPE dropout, which makes ids random"
}

// Decode is the text of ids, special tokens included, for people: it is not
// always the text that was tokenized.
func (m *Model) Decode(ctx context.Context, ids []uint32) (string, error) {
	return m.tokenizer.Decode(ctx, ids)
}

// ContentFormat is what the template gets as content: string or openai. It is
// empty for a model without a template.
func (m *Model) ContentFormat() string {
	if m.cfg.ContentFormat != "auto" {
		return m.cfg.ContentFormat
	}
	if t := m.templates["default"]; t != nil {
		return t.compiled.ContentFormat()
	}
	return ""
}
