package prompt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// chat is one request to /v1/chat/completions on its way to a text.
type chat struct {
	model    *Model
	fields   *fields
	messages []message
	cut      cut

	toolChoice           string
	effort               string
	addGenerationPrompt  bool
	continueFinalMessage bool
	requestTemplate      string
}

// readChat applies the schema of the request. The error is a *RequestError.
func (m *Model) readChat(f *fields) (*chat, error) {
	c := &chat{model: m, fields: f}
	if f.continueFinalMessage.truthy() && f.addGenerationPrompt.truthy() {
		return nil, refuse("", "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
	}
	var fault *RequestError
	if c.toolChoice, fault = checkToolChoice(f); fault != nil {
		return nil, fault
	}
	var r reader
	c.readMessages(&r)
	name := r.text("model", f.model)
	checkTools(&r, f.tools)
	c.effort = r.choice("reasoning_effort", f.reasoningEffort, "none", "minimal", "low", "medium", "high", "xhigh", "max")
	c.addGenerationPrompt = r.boolean("add_generation_prompt", f.addGenerationPrompt, true)
	c.continueFinalMessage = r.boolean("continue_final_message", f.continueFinalMessage, false)
	checkDocuments(&r, f.documents)
	c.requestTemplate = r.text("chat_template", f.chatTemplate)
	if f.templateKwargs.present() && f.templateKwargs.kind() != kindObject {
		r.fail(misfit(".chat_template_kwargs", "dict_type", "Input should be a valid dictionary", f.templateKwargs))
	}
	c.cut = r.cut(f, false, m.cfg.MaxModelLen)
	if r.fault != nil {
		return nil, r.fault
	}
	if fault := m.serves(name); fault != nil {
		return nil, fault
	}
	return c, nil
}

func (c *chat) readMessages(r *reader) {
	list := c.fields.messages
	switch list.kind() {
	case kindArray:
	case kindNone:
		r.fail(missing(".messages", list))
		return
	default:
		r.fail(misfit(".messages", "list_type", "Input should be a valid list", list))
		return
	}
	c.messages = make([]message, 0, list.len())
	for v := range list.elements() {
		m, fault := readMessage(v, len(c.messages))
		if fault != nil {
			r.fail(fault)
			return
		}
		c.messages = append(c.messages, m)
	}
}

func checkDocuments(r *reader, documents value) {
	if !documents.present() {
		return
	}
	if documents.kind() != kindArray {
		r.fail(misfit(".documents", "list_type", "Input should be a valid list", documents))
		return
	}
	i := 0
	for document := range documents.elements() {
		if document.kind() != kindObject {
			r.fail(misfit(fmt.Sprintf(".documents.%d", i), "dict_type", "Input should be a valid dictionary", document))
		}
		for key, v := range document.members() {
			if v.kind() != kindString {
				r.fail(misfit(fmt.Sprintf(".documents.%d.%s", i, key.str()), "string_type", "Input should be a valid string", v))
			}
		}
		i++
	}
}

// chat encodes the body of /v1/chat/completions. lenient takes media for granted
// where it is not known whether the model reads any.
func (m *Model) chat(ctx context.Context, f *fields, now time.Time, lenient bool) (Encoded, error) {
	c, err := m.readChat(f)
	if err != nil {
		return Encoded{}, err
	}
	if m.cfg.ToolParser == "none" && m.remote == RemoteNone {
		if fault := needParser(c.toolChoice, f); fault != nil {
			return Encoded{}, fault
		}
	}
	if m.remote != RemoteNone {
		return Encoded{Remote: m.remote}, nil
	}
	template, free, err := c.template()
	if err != nil {
		return Encoded{}, err
	}
	defer free()
	if fault := c.cut.check(); fault != nil {
		return Encoded{}, fault
	}
	format := m.cfg.ContentFormat
	if format == "auto" {
		format = template.compiled.ContentFormat()
	}
	turns, media, err := converse(c.messages, format, m.multimodal || lenient, cmp.Or(m.cfg.Name, m.cfg.Tokenizer))
	if err != nil {
		return Encoded{}, err
	}
	if !template.knowsDeveloper {
		turns = foldDevelopers(turns)
	}
	text, rendered, err := c.render(ctx, template, turns, now)
	if err != nil {
		return Encoded{}, err
	}
	p, err := m.tokenize(ctx, text, c.cut)
	if err == nil && media {
		err = c.findMedia(ctx, &p, template, turns, now)
	}
	if err != nil {
		rendered.Free()
		return Encoded{}, err
	}
	for i := range turns {
		for _, part := range turns[i].parts {
			if part.kind == partMedia {
				p.media++
			}
		}
	}
	return Encoded{Prompts: []EncodedPrompt{p}, rendered: rendered}, nil
}

// findMedia sets the usable prefix of a prompt with media: rendered again with
// another mark in the media's place, the text differs from there on.
func (c *chat) findMedia(ctx context.Context, p *EncodedPrompt, template *chatTemplate, turns []turn, now time.Time) error {
	for i := range turns {
		for j := range turns[i].parts {
			if part := &turns[i].parts[j]; part.kind == partMedia {
				part.media = markTwo
			}
		}
	}
	other, rendered, err := c.render(ctx, template, turns, now)
	if err != nil {
		return err
	}
	defer rendered.Free()
	same := 0
	for same < len(p.Text) && same < len(other) && p.Text[same] == other[same] {
		same++
	}
	certain, err := c.model.tokenizer.Encode(ctx, p.Text[:same], false)
	if err != nil {
		return err
	}
	if c.cut.truncate {
		// The cut depends on the number of tokens of the media.
		p.UsablePrefix = 0
		return nil
	}
	if c.cut.addSpecial {
		certain = wrapping{before: c.model.wrap.before}.around(certain)
	}
	p.UsablePrefix = 0
	for p.UsablePrefix < len(certain) && p.UsablePrefix < len(p.TokenIDs) && certain[p.UsablePrefix] == p.TokenIDs[p.UsablePrefix] {
		p.UsablePrefix++
	}
	return nil
}

// template picks the template, and compiles the request's own where the engine
// trusts those. free has to be called when it is not used any more.
func (c *chat) template() (t *chatTemplate, free func(), err error) {
	source := c.requestTemplate
	kwarg := c.fields.templateKwargs.get("chat_template")
	if source == "" && kwarg.kind() == kindString {
		source = kwarg.str()
	}
	if c.fields.chatTemplate.present() || kwarg.present() {
		if !c.model.cfg.TrustRequestChatTemplate {
			return nil, nil, refuse("", "Chat template is passed with request, but --trust-request-chat-template is not set. "+
				"Refused request with untrusted chat template.")
		}
	}
	if source != "" {
		if t, err = compileTemplate(source); err != nil {
			return nil, nil, refuse("", "%v", err)
		}
		return t, t.compiled.Close, nil
	}
	if t = c.model.pickTemplate(c.tools().kind() != kindNone); t == nil {
		return nil, nil, refuse("", "As of transformers v4.44, default chat template is no longer allowed, "+
			"so you must provide a chat template if the tokenizer does not define one.")
	}
	return t, func() {}, nil
}

// tools are the tools that the template gets; those of chat_template_kwargs
// replace those of the field, and are not brought into any order.
func (c *chat) tools() value {
	if kwarg := c.fields.templateKwargs.get("tools"); kwarg.present() && !kwarg.is("auto") {
		return kwarg
	}
	if c.excludesTools() || !c.fields.tools.present() {
		return value{}
	}
	return c.fields.tools
}

func (c *chat) excludesTools() bool {
	return c.toolChoice == "none" && c.model.cfg.ExcludeToolsWhenToolChoiceNone
}

// continueTag is what transformers appends to the last message to find its end
// again in the rendered text.
const continueTag = "CONTINUE_FINAL_MESSAGE_TAG "

// render is the text of the conversation, which lies in rendered: the caller frees
// that.
func (c *chat) render(ctx context.Context, t *chatTemplate, turns []turn, now time.Time) (text string, rendered *native.Text, err error) {
	if len(turns) == 0 {
		return "", nil, refuse("", "Cannot apply chat template to an empty conversation. Provide at least one message.")
	}
	tail := ""
	if c.continueFinalMessage {
		if c.addGenerationPrompt {
			return "", nil, refuse("", "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you want the model "+
				"to continue the final message, and add_generation_prompt when you want to add a header that will prompt it to start a new assistant message instead.")
		}
		if !strings.Contains(t.source, "content") {
			return "", nil, refuse("", `continue_final_message is set to "content" but this is not an accepted field in the chat_template`)
		}
		if last := &turns[len(turns)-1]; last.list && last.merged == nil && last.lastText() < 0 {
			return "", nil, refuse("", "continue_final_message is set but we could not find any text to continue in the final message!")
		}
		tail = continueTag
	}
	variables := variablePool.Get().(*native.Value) //nolint:forcetypeassert // the pool holds nothing else
	defer releaseVariables(variables)
	if err := c.writeVariables(variables, t, turns, tail); err != nil {
		return "", nil, err
	}
	if rendered, err = t.compiled.Render(ctx, variables, now); err != nil {
		return "", nil, renderFault(err)
	}
	text = rendered.View()
	if c.continueFinalMessage {
		if text, err = cutContinued(text, turns[len(turns)-1].lastString()); err != nil {
			rendered.Free()
			return "", nil, err
		}
	}
	return text, rendered, nil
}

// lastString is the last text of the turn, which an answer goes on from.
func (t *turn) lastString() string {
	if t.list && t.merged == nil {
		return t.parts[t.lastText()].str()
	}
	return t.text()
}

// renderFault tells the template's refusals, which the engine's template makes
// too, from what went wrong here.
func renderFault(err error) error {
	var raised *native.TemplateError
	switch {
	case errors.As(err, &raised):
		return refuse("", "%s", raised.Message)
	case errors.Is(err, native.ErrClosed), errors.Is(err, native.ErrInputTooLarge), errors.Is(err, native.ErrNotBuilt),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	default:
		return refuse("", "%v", err)
	}
}

// cutContinued ends the text where the last message's content ends.
func cutContinued(text, final string) (string, error) {
	tag := strings.TrimSpace(continueTag)
	at := strings.LastIndex(text, tag)
	if at < 0 || !strings.Contains(text, strings.TrimFunc(final, isSpace)) {
		return "", refuse("", "continue_final_message is set but the final message does not appear in the chat after applying the chat template! "+
			"This can happen if the chat template deletes portions of the final message. Please verify the chat template and final message in your chat "+
			"to ensure they are compatible.Final message to continue: %s\nRendered chat:\n%s", strings.TrimFunc(final, isSpace), text)
	}
	if strings.HasPrefix(text[at:], continueTag) {
		return text[:at], nil
	}
	// The template trims the content, and the tag's own blank with it.
	return strings.TrimRightFunc(text[:at], isSpace), nil
}

// isSpace is what Python's str.strip removes.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1C && r <= 0x1F }
