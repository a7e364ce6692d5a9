package prompt

import (
	"slices"
	"sync"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// variablePool keeps the memory of template variables.
var variablePool = sync.Pool{New: func() any { return native.NewValue(8 << 10) }}

// maxPooledVariables is the largest buffer kept in the pool, in bytes.
const maxPooledVariables = 4 << 20

func releaseVariables(v *native.Value) {
	if v.Len() <= maxPooledVariables {
		v.Reset()
		variablePool.Put(v)
	}
}

// standardParameters are the arguments of transformers' apply_chat_template that
// a request may set by chat_template_kwargs and that no template sees.
var standardParameters = []string{
	"chat_template", "continue_final_message", "conversation", "max_length", "padding", "return_assistant_tokens_mask",
	"return_dict", "return_tensors", "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "truncation",
}

// writeVariables appends all that the template gets, as far as it asks for it.
func (c *chat) writeVariables(out *native.Value, t *chatTemplate, turns []turn, tail string) error {
	if err := c.checkKwargs(t); err != nil {
		return err
	}
	out.Map()
	for _, token := range c.model.specialTokens {
		if t.compiled.Uses(token.name) {
			out.Key(token.name)
			out.String(token.text)
		}
	}
	if err := c.writeKwargs(out, t); err != nil {
		return err
	}
	out.Key("messages")
	out.List()
	for i := range turns {
		end := ""
		if i == len(turns)-1 {
			end = tail
		}
		if err := turns[i].write(out, end); err != nil {
			return writeFault(err)
		}
	}
	out.EndList()
	if t.compiled.Uses("tools") {
		out.Key("tools")
		if err := c.writeToolList(out); err != nil {
			return writeFault(err)
		}
	}
	if t.compiled.Uses("documents") {
		documents := c.fields.documents
		if kwarg := c.fields.templateKwargs.get("documents"); !documents.present() && kwarg.present() && !kwarg.is("auto") {
			documents = kwarg
		}
		out.Key("documents")
		if err := documents.write(out, 0); err != nil {
			return writeFault(err)
		}
	}
	out.Key("add_generation_prompt")
	out.Bool(c.addGenerationPrompt)
	out.EndMap()
	return nil
}

func writeFault(err error) error {
	if err == errSurrogate { //nolint:errorlint // never wrapped
		return notEncodable()
	}
	return err
}

// notEncodable is the tokenizer's fault of a text with half a surrogate pair.
func notEncodable() *RequestError {
	return refuse("", "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]")
}

func (c *chat) writeToolList(out *native.Value) error {
	tools := c.tools()
	switch {
	case tools.kind() == kindNone:
		out.Nil()
		return nil
	case tools == c.fields.tools:
		return writeTools(out, tools)
	}
	if tools.kind() != kindArray && tools.truthy() {
		return badTools()
	}
	out.List()
	for tool := range tools.elements() {
		if tool.kind() != kindObject {
			return badTools()
		}
		if err := tool.write(out, 1); err != nil {
			return err
		}
	}
	out.EndList()
	return nil
}

func badTools() *RequestError {
	return refuse("", "Tools should either be a JSON schema, or a callable function with type hints and a docstring suitable for auto-conversion to a schema.")
}

// checkKwargs are the faults that chat_template_kwargs can have.
func (c *chat) checkKwargs(t *chatTemplate) error {
	kwargs := c.fields.templateKwargs
	given := func(name string) (value, bool) {
		v := kwargs.get(name)
		return v, v.present() && !v.is("auto")
	}
	if _, ok := given("messages"); ok && t.compiled.Uses("messages") {
		return refuse("", "jinja2.environment.Template.render() got multiple values for keyword argument 'messages'")
	}
	if _, ok := given("conversation"); ok {
		return refuse("", "apply_chat_template() got multiple values for keyword argument 'conversation'")
	}
	if v, ok := given("sanitize_control_tokens"); ok && v.truthy() {
		return refuse("", "`sanitize_control_tokens=True` requires `tokenize=True` and is not compatible with `return_assistant_tokens_mask=True`.")
	}
	if v, ok := given("documents"); ok && !c.fields.documents.present() {
		for document := range v.elements() {
			if document.kind() != kindObject {
				return refuse("", "Documents should be a list of dicts with 'title' and 'text' keys!")
			}
		}
	}
	return nil
}

// writeKwargs appends the server's kwargs, the request's, and what the request's
// fields make of them, the later over the earlier. Null and "auto" do not count.
func (c *chat) writeKwargs(out *native.Value, t *chatTemplate) error {
	kwargs := c.fields.templateKwargs
	wanted := func(name string) bool {
		switch name {
		case "messages", "tools", "documents", "add_generation_prompt":
			return false
		}
		return t.compiled.Uses(name) && !slices.Contains(standardParameters, name)
	}
	for _, kwarg := range c.model.kwargs {
		if wanted(kwarg.name) {
			out.Key(kwarg.name)
			out.Append(kwarg.value)
		}
	}
	for key, v := range kwargs.members() {
		if name := key.str(); wanted(name) && v.present() && !v.is("auto") {
			out.Key(name)
			if err := v.write(out, 0); err != nil {
				return writeFault(err)
			}
		}
	}
	if c.effort == "" {
		return nil
	}
	if wanted("reasoning_effort") {
		out.Key("reasoning_effort")
		out.String(c.effort)
	}
	if wanted("enable_thinking") && kwargs.get("enable_thinking").kind() == kindNone {
		out.Key("enable_thinking")
		out.Bool(c.effort != "none")
	}
	return nil
}
