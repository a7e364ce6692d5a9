package prompt

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Config says which models are tokenized, how, and within which limits.
type Config struct {
	// Models are the models whose prompts are tokenized. For a request to another
	// model the render endpoint of an engine that serves it is asked.
	Models []ModelConfig `yaml:"models"`
	// MaxConcurrent is the number of prompts rendered and tokenized at once; 0
	// means one per CPU, but at most 8. Others wait, within their deadline. Each
	// costs up to 64 MB of memory per model.
	MaxConcurrent int `yaml:"max_concurrent"`
	// MaxInputBytes is the size of the largest request body that is tokenized;
	// the length of larger ones is estimated.
	MaxInputBytes int `yaml:"max_input_bytes"`
	// SegmentCacheBytes bounds, for each model, the memory of the segment cache:
	// the token ids of the pieces of text between special tokens, so that a
	// conversation that goes on costs only its new turn. A piece needs about
	// twice the length of its text and at most a 64th of the cache. 0: none.
	// Only the engine fastokens has one.
	SegmentCacheBytes int `yaml:"segment_cache_bytes"`
	// RemoteTimeout bounds one call to an engine's render endpoint, where this
	// process cannot tokenize itself: /v1/responses, /v1/messages, chats of gpt-oss
	// and models without a tokenizer folder. Such a call costs the engine's web
	// layer what the request itself does before it is scheduled (for 80 KB some
	// 30 ms with its default tokenizer), and the request that time. An engine that
	// fails five calls in a row is not asked for ten seconds.
	RemoteTimeout time.Duration `yaml:"remote_timeout"`
	// RemoteMaxConcurrent bounds the calls to render endpoints at once; further
	// requests are estimated instead of waiting.
	RemoteMaxConcurrent int `yaml:"remote_max_concurrent"`
	// CheckInterval is the least time between two comparisons of a model's token
	// ids with those of one of its engines, by its render or tokenize endpoint.
	// A few prompts of our own are compared at the start, then a sample of the
	// requests; the longer one takes the engine, the later the next comes (50
	// times that). Where ids differ, engines are asked for all of them. 0: never.
	CheckInterval time.Duration `yaml:"check_interval"`
}

// ModelConfig tells how one model's engines tokenize. The keys follow vLLM's
// flags: what is set there must be set here.
type ModelConfig struct {
	// Name is the model's name, as in vLLM's --served-model-name.
	Name string `yaml:"name"`
	// Aliases are further names of the same model.
	Aliases []string `yaml:"aliases"`
	// Tokenizer is the folder with tokenizer.json, tokenizer_config.json and,
	// where the model has them, chat_template.jinja and config.json; or, where
	// there is no such folder, the model's id on a Hugging Face hub, such as
	// Qwen/Qwen2.5-7B-Instruct, whose files are fetched in the background (HF_HOME,
	// HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count as everywhere). Empty: the
	// engine's render endpoint is asked.
	Tokenizer string `yaml:"tokenizer"`
	// TokenizerRevision is the branch, tag or commit on the hub, as vLLM's
	// --tokenizer-revision; empty: main.
	TokenizerRevision string `yaml:"tokenizer_revision"`
	// Engine is the tokenizer implementation: fastokens, or tokenizers (the
	// slower reference of Hugging Face).
	Engine string `yaml:"engine"`
	// Mode is auto (tokenize here, ask the engine where that is impossible),
	// native (never ask) or remote (always ask).
	Mode string `yaml:"mode"`
	// ChatTemplate is a file with the chat template that replaces the
	// folder's, as vLLM's --chat-template.
	ChatTemplate string `yaml:"chat_template"`
	// ContentFormat is auto, string or openai, as vLLM's
	// --chat-template-content-format.
	ContentFormat string `yaml:"content_format"`
	// AddBOS says whether a completion's text gets a begin-of-sequence token:
	// auto (as tokenizer.json says), always or never. It has to be set for
	// models whose tokenizer class in vLLM differs from tokenizer.json.
	AddBOS string `yaml:"add_bos"`
	// MaxModelLen is vLLM's --max-model-len in tokens; 0 means unknown, lengths
	// are then not checked.
	MaxModelLen int `yaml:"max_model_len"`
	// ChatTemplateKwargs are vLLM's --default-chat-template-kwargs.
	ChatTemplateKwargs map[string]any `yaml:"default_chat_template_kwargs"`
	// ToolParser is vLLM's --tool-call-parser, none where the engine runs
	// without --enable-auto-tool-choice. Requests with tools are then refused
	// by the engine, so they are not tokenized here.
	ToolParser string `yaml:"tool_call_parser"`
	// ExcludeToolsWhenToolChoiceNone is the vLLM flag of that name.
	ExcludeToolsWhenToolChoiceNone bool `yaml:"exclude_tools_when_tool_choice_none"`
	// TrustRequestChatTemplate is the vLLM flag of that name.
	TrustRequestChatTemplate bool `yaml:"trust_request_chat_template"`
	// TimeZone is the engine's time zone (such as UTC or Europe/Zurich) for
	// templates that print the date; empty means this process's own.
	TimeZone string `yaml:"time_zone"`
}

// DefaultConfig is a Config without models.
func DefaultConfig() Config {
	return Config{
		MaxInputBytes:       8 << 20,
		SegmentCacheBytes:   128 << 20,
		RemoteTimeout:       200 * time.Millisecond,
		RemoteMaxConcurrent: 64,
		CheckInterval:       5 * time.Second,
	}
}

// DefaultModelConfig is what holds for a model where its configuration says
// nothing.
func DefaultModelConfig() ModelConfig {
	return ModelConfig{Engine: "fastokens", Mode: "auto", ContentFormat: "auto", AddBOS: "auto", ToolParser: "any"}
}

// withDefaults fills what is empty: a model in a YAML list has no defaults
// under it.
func (m ModelConfig) withDefaults() ModelConfig {
	d := DefaultModelConfig()
	for _, f := range []struct {
		field *string
		value string
	}{
		{&m.Engine, d.Engine},
		{&m.Mode, d.Mode},
		{&m.ContentFormat, d.ContentFormat},
		{&m.AddBOS, d.AddBOS},
		{&m.ToolParser, d.ToolParser},
	} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	return m
}

// Validate reports every fault, each line beginning with the key's full path.
// It reads no files.
func (c Config) Validate(path string) error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if c.MaxConcurrent < 0 {
		fault("max_concurrent", "%d is negative; write 0 for one per CPU", c.MaxConcurrent)
	}
	if c.MaxInputBytes < 1 {
		fault("max_input_bytes", "%d is below 1; write a number of bytes such as 8388608", c.MaxInputBytes)
	}
	if c.SegmentCacheBytes < 0 {
		fault("segment_cache_bytes", "%d is negative; write a number of bytes such as 134217728, or 0 for no cache", c.SegmentCacheBytes)
	}
	if c.RemoteTimeout <= 0 {
		fault("remote_timeout", "%s is not positive; write a duration such as 200ms", c.RemoteTimeout)
	}
	if c.RemoteMaxConcurrent < 1 {
		fault("remote_max_concurrent", "%d is below 1; write a number such as 64", c.RemoteMaxConcurrent)
	}
	if c.CheckInterval < 0 {
		fault("check_interval", "%s is negative; write 0 to compare no ids, or a duration such as 5s", c.CheckInterval)
	}
	names := map[string]string{}
	for i, m := range c.Models {
		m, key := m.withDefaults(), fmt.Sprintf("models[%d]", i)
		if m.Name == "" {
			fault(key+".name", "is empty; write the name that clients ask for")
		}
		for _, name := range append([]string{m.Name}, m.Aliases...) {
			if other, ok := names[name]; ok && name != "" {
				fault(key+".name", "%q is already a name of %s; give each model its own", name, other)
			}
			names[name] = key
		}
		m.validate(func(k, format string, args ...any) { fault(key+"."+k, format, args...) })
	}
	return errors.Join(errs...)
}

func (m ModelConfig) validate(fault func(key, format string, args ...any)) {
	for _, f := range []struct {
		key, value string
		allowed    []string
	}{
		{"engine", m.Engine, []string{"fastokens", "tokenizers"}},
		{"mode", m.Mode, []string{"auto", "native", "remote"}},
		{"content_format", m.ContentFormat, []string{"auto", "string", "openai"}},
		{"add_bos", m.AddBOS, []string{"auto", "always", "never"}},
	} {
		if !slices.Contains(f.allowed, f.value) {
			fault(f.key, "%q is unknown; write one of %q", f.value, f.allowed)
		}
	}
	if m.Mode == "native" && m.Tokenizer == "" {
		fault("tokenizer", "is empty, and mode is native; name the folder that holds tokenizer.json, or the model's id on a hub")
	}
	if m.TokenizerRevision != "" && m.Tokenizer == "" {
		fault("tokenizer_revision", "is %q, but tokenizer is empty; write the model's id on a hub there, or leave this out", m.TokenizerRevision)
	}
	if m.MaxModelLen < 0 {
		fault("max_model_len", "%d is negative; write 0 where it is not known", m.MaxModelLen)
	}
	if m.TimeZone != "" {
		if _, err := time.LoadLocation(m.TimeZone); err != nil {
			fault("time_zone", "%q is unknown: %v; write an IANA name such as UTC", m.TimeZone, err)
		}
	}
}
