package prompt

import "strings"

// fields are the members of a body that decide its prompt or how it is answered.
// A member that is absent is the zero value; a repeated one has its last value.
type fields struct {
	model, messages, prompt, promptEmbeds                                value
	tools, toolChoice                                                    value
	reasoningEffort, documents, chatTemplate, templateKwargs             value
	addGenerationPrompt, continueFinalMessage, addSpecialTokens          value
	truncatePromptTokens, truncationSide, maxTokens, maxCompletionTokens value
	suffix, echo, logprobs, topLogprobs, promptLogprobs                  value
	input, instructions, system                                          value
	n, stream, cacheSalt                                                 value
}

func (f *fields) member(key string) *value {
	switch key {
	case "model":
		return &f.model
	case "messages":
		return &f.messages
	case "prompt":
		return &f.prompt
	case "prompt_embeds":
		return &f.promptEmbeds
	case "tools":
		return &f.tools
	case "tool_choice":
		return &f.toolChoice
	case "reasoning_effort":
		return &f.reasoningEffort
	case "documents":
		return &f.documents
	case "chat_template":
		return &f.chatTemplate
	case "chat_template_kwargs":
		return &f.templateKwargs
	case "add_generation_prompt":
		return &f.addGenerationPrompt
	case "continue_final_message":
		return &f.continueFinalMessage
	case "add_special_tokens":
		return &f.addSpecialTokens
	case "truncate_prompt_tokens":
		return &f.truncatePromptTokens
	case "truncation_side":
		return &f.truncationSide
	case "max_tokens":
		return &f.maxTokens
	case "max_completion_tokens":
		return &f.maxCompletionTokens
	case "suffix":
		return &f.suffix
	case "echo":
		return &f.echo
	case "logprobs":
		return &f.logprobs
	case "top_logprobs":
		return &f.topLogprobs
	case "prompt_logprobs":
		return &f.promptLogprobs
	case "input":
		return &f.input
	case "instructions":
		return &f.instructions
	case "system":
		return &f.system
	case "n":
		return &f.n
	case "stream":
		return &f.stream
	case "cache_salt":
		return &f.cacheSalt
	}
	return nil
}

// readFields looks once at each member of the body, which is an object.
func readFields(body value) (f fields) {
	for key, member := range body.members() {
		if slot := f.member(key.str()); slot != nil {
			*slot = member
		}
	}
	return f
}

// copies is the number of answers wanted, at least 1.
func (f *fields) copies() int {
	if n, ok := f.n.integer(); ok && n > 1 {
		return int(min(n, maxCopies))
	}
	return 1
}

// maxCopies bounds what a client can make of n; vLLM's own limit
// (VLLM_MAX_N_SEQUENCES) is of this order.
const maxCopies = 16384

func (f *fields) streamed() bool {
	on, _ := f.stream.boolean()
	return on
}

// salt is the cache_salt; empty where there is none. What an engine refuses (no
// string, an empty one, from vLLM 0.32 on also one of more than 128 characters
// or with @, /, \ or NUL in it) is its own to answer.
func (f *fields) salt() string {
	if f.cacheSalt.kind() != kindString {
		return ""
	}
	return strings.Clone(f.cacheSalt.str())
}

// uncached: the engine has to compute every position to tell its probability,
// so that nothing it holds is of use. An echo asks for that too, where the
// answer's logprobs are asked for; in chats they are by default.
func (f *fields) uncached(path string) bool {
	if f.promptLogprobs.present() {
		return true
	}
	if echo, _ := f.echo.boolean(); !echo {
		return false
	}
	if path == chatPath {
		return f.topLogprobs.kind() != kindNull
	}
	return f.logprobs.present()
}

// tokenizable: an engine's /tokenize, which takes one prompt and knows neither
// truncation, reasoning effort nor documents, gives the same ids as its render.
func (f *fields) tokenizable(path string) bool {
	if f.truncatePromptTokens.present() || foreign(path) != RemoteNone {
		return false
	}
	if path == chatPath {
		return !f.reasoningEffort.present() && !f.documents.present()
	}
	return f.prompt.kind() == kindString
}

// reader takes the fields that both kinds of request share, and keeps the first
// fault.
type reader struct{ fault *RequestError }

func (r *reader) fail(e *RequestError) {
	if r.fault == nil {
		r.fault = e
	}
}

func (r *reader) boolean(name string, v value, absent bool) bool {
	if v.kind() == kindNone {
		return absent
	}
	b, ok := v.boolean()
	switch {
	case ok:
	case v.kind() == kindString || v.kind() == kindInt || v.kind() == kindFloat:
		r.fail(misfit("."+name, "bool_parsing", "Input should be a valid boolean, unable to interpret input", v))
	default:
		r.fail(misfit("."+name, "bool_type", "Input should be a valid boolean", v))
	}
	return b
}

// integer gives ok false where the field is absent or null.
func (r *reader) integer(name string, v value) (n int64, ok bool) {
	if !v.present() {
		return 0, false
	}
	n, ok = v.integer()
	switch {
	case ok:
	case v.kind() == kindString:
		r.fail(misfit("."+name, "int_parsing", "Input should be a valid integer, unable to parse string as an integer", v))
	case v.kind() == kindFloat:
		r.fail(misfit("."+name, "int_from_float", "Input should be a valid integer, got a number with a fractional part", v))
	default:
		r.fail(misfit("."+name, "int_type", "Input should be a valid integer", v))
	}
	return n, ok
}

// text gives the empty string where the field is absent or null.
func (r *reader) text(name string, v value) string {
	if !v.present() {
		return ""
	}
	if v.kind() != kindString {
		r.fail(misfit("."+name, "string_type", "Input should be a valid string", v))
		return ""
	}
	return v.str()
}

// choice is text that has to be one of a few.
func (r *reader) choice(name string, v value, allowed ...string) string {
	if !v.present() {
		return ""
	}
	for _, a := range allowed {
		if v.is(a) {
			return a
		}
	}
	list := "'" + strings.Join(allowed[:len(allowed)-1], "', '") + "' or '" + allowed[len(allowed)-1] + "'"
	r.fail(misfit("."+name, "literal_error", "Input should be "+list, v))
	return ""
}

// cut is how a prompt is shortened and checked.
type cut struct {
	addSpecial bool
	keep       int    // truncate_prompt_tokens; -1: as many as fit
	truncate   bool   // keep is set
	side       string // left, right; empty: the tokenizer's, which is left
	limit      int    // max_model_len; 0: unknown
	output     int64  // the requested output tokens; -1: not said
	outputName string // the field that said it
}

// cut reads the fields of truncation and length. max_tokens is read because it
// decides how many ids truncate_prompt_tokens -1 keeps.
func (r *reader) cut(f *fields, addSpecialDefault bool, limit int) cut {
	c := cut{
		addSpecial: r.boolean("add_special_tokens", f.addSpecialTokens, addSpecialDefault),
		side:       r.choice("truncation_side", f.truncationSide, "left", "right"),
		limit:      limit,
		output:     -1,
		outputName: "max_tokens",
	}
	if keep, ok := r.integer("truncate_prompt_tokens", f.truncatePromptTokens); ok {
		if keep < -1 {
			r.fail(misfit(".truncate_prompt_tokens", "greater_than_equal", "Input should be greater than or equal to -1", f.truncatePromptTokens))
		}
		c.keep, c.truncate = int(keep), true
	}
	if n, ok := r.integer("max_tokens", f.maxTokens); ok {
		c.output = n
	}
	if n, ok := r.integer("max_completion_tokens", f.maxCompletionTokens); ok {
		c.output, c.outputName = n, "max_completion_tokens"
	}
	return c
}

// hasText: the prompt is not given as token ids.
func (f *fields) hasText(path string) bool {
	if path == chatPath || f.prompt.kind() == kindString {
		return true
	}
	for first := range f.prompt.elements() {
		return first.kind() == kindString
	}
	return false
}
