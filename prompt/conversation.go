package prompt

import (
	"cmp"
	"slices"
	"strings"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// turn is one entry of the conversation that the template gets.
type turn struct {
	message
	role  string
	parts []part
	// list: the content is a list of parts, else their texts joined by line
	// breaks.
	list bool
	// merged is the text that replaced the parts of several system messages.
	merged *string
}

// converse applies vLLM's message rules. media reports whether some part is not
// text. The error is a *RequestError.
func converse(messages []message, format string, multimodal bool, model string) (turns []turn, media bool, err error) {
	turns = make([]turn, len(messages))
	for i, m := range messages {
		t := &turns[i]
		t.message, t.role, t.list = m, m.role.str(), format == native.ContentOpenAI
		hasMedia, err := t.addContent()
		if err != nil {
			return nil, false, err
		}
		if media = media || hasMedia; hasMedia && !multimodal {
			return nil, false, refuse("", "%s is not a multimodal model", model)
		}
		if t.role == "tool" {
			t.list = t.list && t.hasOther()
		}
	}
	for i := range turns {
		if err := turns[i].checkToolCalls(); err != nil {
			return nil, false, err
		}
	}
	return turns, media, nil
}

// addContent reads the message's content into parts.
func (t *turn) addContent() (media bool, err error) {
	add := func(p part) {
		if t.role == "system" && p.kind == partText && strings.HasPrefix(p.text.str(), billingHeader) {
			// A header that changes with every request: its line goes, and the
			// part with it where nothing else is in it.
			if p.rest = true; p.str() == "" {
				return
			}
		}
		// A text that is joined to others is dropped where it is empty.
		if t.list || p.kind == partMedia || len(p.text.raw()) > 0 {
			t.parts = append(t.parts, p)
		}
	}
	if t.content.kind() == kindString {
		add(part{text: t.content, kind: partText})
		return false, nil
	}
	for v := range t.content.elements() {
		if v.kind() == kindString && t.open {
			add(part{text: v, kind: partText})
			continue
		}
		if k, _ := classify(v); !t.open && !t.allows(k) {
			return false, refuse("", "1 validation error for ValidatorIterator: a content part of a %s message is not of a type that it may have", t.role)
		}
		p, fault := readPart(v)
		if fault != nil {
			return false, fault
		}
		if p.kind != partNone {
			add(p)
		}
		media = media || p.kind == partMedia
	}
	if media && !t.list {
		// In a joined text vLLM puts the placeholders before everything else.
		slices.SortStableFunc(t.parts, func(a, b part) int { return cmp.Compare(a.textOrder(), b.textOrder()) })
	}
	return media, nil
}

const billingHeader = "x-anthropic-billing-header"

// hasOther: some part is not text.
func (t *turn) hasOther() bool {
	for _, p := range t.parts {
		if p.kind == partMedia || p.kind == partTool {
			return true
		}
	}
	return false
}

func (t *turn) checkToolCalls() *RequestError {
	if t.role != "assistant" {
		return nil
	}
	for call := range t.toolCalls.elements() {
		if !isFunctionCall(call) {
			return refuseValue("tool_calls", nil, "chat completions only support assistant tool_calls of type 'function'.")
		}
	}
	return nil
}

// text is the content as one string.
func (t *turn) text() string {
	switch {
	case t.merged != nil:
		return *t.merged
	case len(t.parts) == 1:
		return t.parts[0].str()
	}
	texts := make([]string, len(t.parts))
	for i, p := range t.parts {
		texts[i] = p.str()
	}
	return strings.Join(texts, "\n")
}

// foldDevelopers serves templates that know no developer role: these messages
// become system messages, and then all system messages become one at the front
// where any stands elsewhere.
func foldDevelopers(turns []turn) []turn {
	found := false
	for i := range turns {
		if turns[i].role == "developer" {
			turns[i].role, found = "system", true
		}
	}
	if !found {
		return turns
	}
	fold := false
	var texts []string
	rest := []turn{{role: "system"}}
	for i := range turns {
		if turns[i].role != "system" {
			rest = append(rest, turns[i])
			continue
		}
		fold = fold || i > 0
		if text := turns[i].text(); text != "" {
			texts = append(texts, text)
		}
	}
	if !fold {
		return turns
	}
	merged := strings.Join(texts, "\n\n")
	rest[0].merged = &merged
	return rest
}

// write appends the turn as the template sees it. tail is appended to its last
// text.
func (t *turn) write(out *native.Value, tail string) error {
	out.Map()
	out.Key("role")
	if t.message.role.kind() == kindString && t.message.role.doc.surrogates && hasSurrogate(t.message.role) {
		return errSurrogate
	}
	out.String(t.role)
	out.Key("content")
	if err := t.writeContent(out, tail); err != nil {
		return err
	}
	if t.merged != nil {
		out.EndMap()
		return nil
	}
	if err := t.writeRest(out); err != nil {
		return err
	}
	out.EndMap()
	return nil
}

func (t *turn) writeContent(out *native.Value, tail string) error {
	if t.merged == nil {
		for _, p := range t.parts {
			if p.kind != partMedia && p.text.doc.surrogates && hasSurrogate(p.text) {
				return errSurrogate
			}
		}
	}
	switch {
	case t.merged == nil && !t.list && len(t.parts) == 1:
		t.parts[0].writeText(out, tail)
		return nil
	case t.merged != nil || !t.list:
		out.String(t.text() + tail)
		return nil
	}
	last := t.lastText()
	out.List()
	for i, p := range t.parts {
		end := ""
		if i == last {
			end = tail
		}
		if err := p.write(out, end); err != nil {
			return err
		}
	}
	out.EndList()
	return nil
}

// lastText is the index of the last part with a text; -1 where there is none.
func (t *turn) lastText() int {
	for i, p := range slices.Backward(t.parts) {
		if p.kind != partTool && p.kind != partMedia {
			return i
		}
	}
	return -1
}

// writeRest appends what a turn has beside role and content.
func (t *turn) writeRest(out *native.Value) error {
	var err error
	text := func(key string, v value) {
		if err == nil {
			out.Key(key)
			err = v.write(out, 0)
		}
	}
	switch t.message.role.str() {
	case "assistant":
		if t.toolCalls.truthy() {
			out.Key("tool_calls")
			out.List()
			for call := range t.toolCalls.elements() {
				if err = writeToolCall(out, call); err != nil {
					return err
				}
			}
			out.EndList()
		}
		if t.reasoning.present() {
			text("reasoning", t.reasoning)
			text("reasoning_content", t.reasoning)
		}
	case "tool":
		if t.toolCallID.kind() != kindNone {
			text("tool_call_id", t.toolCallID)
		}
	}
	if t.name.kind() == kindString {
		text("name", t.name)
	}
	if t.task.kind() == kindString {
		text("task", t.task)
	}
	if t.role == "developer" && err == nil {
		out.Key("tools")
		err = writeDeveloperTools(out, t.tools)
	}
	return err
}
