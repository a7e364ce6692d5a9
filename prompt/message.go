package prompt

import "fmt"

// message is one of a request's messages.
type message struct {
	role                                  value
	content, name, toolCallID, toolCalls  value
	reasoning, tools, task                value
	index                                 int
	open                                  bool // vLLM's own schema read it, not OpenAI's
	refusal, audio, functionCall, thought value
}

// The roles that OpenAI's own schema knows. Each has a schema of its own; any
// other role is read by vLLM's open schema only.
var knownRoles = map[string]bool{"developer": true, "system": true, "user": true, "assistant": true, "tool": true, "function": true}

// readMessage applies the schema. pydantic tries OpenAI's schema of the role and
// vLLM's open one, and takes the one that finds more fields, OpenAI's where both
// find as many. OpenAI's reads content parts and tool calls only later, so that
// they add nothing to its count; it is the stricter one about parts. Fields that
// a schema does not know stay in the message.
func readMessage(v value, index int) (message, *RequestError) {
	m := message{index: index}
	at := fmt.Sprintf(".messages.%d.ChatCompletionDeveloperMessageParam", index)
	if v.kind() != kindObject {
		return m, misfit(at, "dict_type", "Input should be a valid dictionary", v)
	}
	for key, member := range v.members() {
		if slot := m.field(key.str()); slot != nil {
			*slot = member
		}
	}
	// The old name counts where the new one says nothing.
	if !m.reasoning.present() && m.thought.present() {
		m.reasoning = m.thought
	}
	switch {
	case m.role.kind() == kindNone:
		return m, missing(at+".role", v)
	case m.role.kind() != kindString:
		return m, misfit(at+".role", "literal_error", "Input should be 'developer'", m.role)
	}
	strict, strictOK := m.countStrict()
	open, openOK := m.countOpen()
	switch {
	case !strictOK && !openOK:
		if !m.contentFits() {
			return m, misfit(at+".content", "string_type", "Input should be a valid string", m.content)
		}
		return m, misfit(at+".role", "literal_error", "Input should be 'developer'", m.role)
	case openOK && (!strictOK || open > strict):
		m.open = true
		return m, nil
	}
	if m.role.is("assistant") {
		if fault := m.checkToolCalls(); fault != nil {
			return m, fault
		}
	}
	return m, nil
}

func (m *message) field(key string) *value {
	switch key {
	case "role":
		return &m.role
	case "content":
		return &m.content
	case "name":
		return &m.name
	case "tool_call_id":
		return &m.toolCallID
	case "tool_calls":
		return &m.toolCalls
	case "reasoning":
		return &m.reasoning
	case "reasoning_content":
		return &m.thought
	case "tools":
		return &m.tools
	case "task":
		return &m.task
	case "refusal":
		return &m.refusal
	case "audio":
		return &m.audio
	case "function_call":
		return &m.functionCall
	}
	return nil
}

// absentOr reports whether v is absent or of kind k, and counts it.
func absentOr(v value, k kind, count *int) bool {
	if v.kind() == kindNone {
		return true
	}
	*count++
	return v.kind() == k
}

// nullOr is absentOr that takes null too.
func nullOr(v value, k kind, count *int) bool {
	return absentOr(v, k, count) || v.kind() == kindNull
}

// countStrict is the number of fields that OpenAI's schema of the role finds.
func (m *message) countStrict() (count int, ok bool) {
	role := m.role.str()
	if !knownRoles[role] {
		return 0, false
	}
	count = 2 // role and content
	lazy := m.content.kind() == kindString || m.content.kind() == kindArray
	switch role {
	case "developer", "system", "user":
		ok = lazy && absentOr(m.name, kindString, &count)
	case "tool":
		ok = lazy && m.toolCallID.kind() == kindString
		count++
	case "function":
		ok = (m.content.kind() == kindString || m.content.kind() == kindNull) && m.name.kind() == kindString
		count++
	case "assistant":
		if m.content.kind() == kindNone {
			count--
		}
		ok = (lazy || m.content.kind() <= kindNull) && absentOr(m.name, kindString, &count) &&
			nullOr(m.refusal, kindString, &count) && nullOr(m.audio, kindObject, &count) &&
			nullOr(m.functionCall, kindObject, &count) && absentOr(m.toolCalls, kindArray, &count)
		if m.audio.kind() == kindObject {
			ok = ok && m.audio.get("id").kind() == kindString
			count++
		}
		if m.functionCall.kind() == kindObject {
			ok = ok && m.functionCall.get("name").kind() == kindString && m.functionCall.get("arguments").kind() == kindString
			count += 2
		}
	}
	return count, ok
}

// countOpen is the number of fields, nested ones included, that the open schema
// finds.
func (m *message) countOpen() (count int, ok bool) {
	count = 1 // role
	ok = absentOr(m.content, kindString, &count) || m.content.kind() == kindArray
	for part := range m.content.elements() {
		switch part.kind() {
		case kindString:
		case kindObject:
			_, n := classify(part)
			count += n
		default:
			ok = false
		}
	}
	ok = ok && absentOr(m.name, kindString, &count) && nullOr(m.toolCallID, kindString, &count) &&
		nullOr(m.toolCalls, kindArray, &count) && nullOr(m.tools, kindArray, &count) && nullOr(m.task, kindString, &count)
	for call := range m.toolCalls.elements() {
		ok = ok && isFunctionCall(call)
		count += 5
	}
	for tool := range m.tools.elements() {
		n, fits := countFunctionTool(tool)
		ok, count = ok && fits, count+n
	}
	if m.reasoning.kind() == kindObject {
		// An embedding instead of text.
		count += 3
		return count, ok && m.reasoning.get("type").is("prompt_embeds") && m.reasoning.get("data").kind() == kindString
	}
	return count, ok && nullOr(m.reasoning, kindString, &count)
}

func (m *message) contentFits() bool {
	_, strict := (&message{role: m.role, content: m.content, toolCallID: m.role, name: m.role}).countStrict()
	_, open := (&message{role: m.role, content: m.content}).countOpen()
	return strict || open
}

// isFunctionCall reports whether v is a complete tool call of type function.
func isFunctionCall(v value) bool {
	f := v.get("function")
	return v.get("id").kind() == kindString && v.get("type").is("function") &&
		f.get("name").kind() == kindString && f.get("arguments").kind() == kindString
}

// isCustomCall reports whether v is a complete tool call of type custom.
func isCustomCall(v value) bool {
	c := v.get("custom")
	return v.get("id").kind() == kindString && v.get("type").is("custom") &&
		c.get("name").kind() == kindString && c.get("input").kind() == kindString
}

// countFunctionTool reads a tool that a developer message brings along.
func countFunctionTool(v value) (count int, ok bool) {
	f := v.get("function")
	count = 3 // type, function, its name
	ok = v.get("type").is("function") && f.get("name").kind() == kindString &&
		absentOr(f.get("description"), kindString, &count) && absentOr(f.get("parameters"), kindObject, &count)
	if strict := f.get("strict"); strict.kind() != kindNone {
		_, isBool := strict.boolean()
		ok = ok && (isBool || strict.kind() == kindNull)
		count++
	}
	return count, ok
}

// checkToolCalls is the check that OpenAI's schema puts off.
func (m *message) checkToolCalls() *RequestError {
	i := 0
	for call := range m.toolCalls.elements() {
		if !isFunctionCall(call) && !isCustomCall(call) {
			at := fmt.Sprintf(".%d.ChatCompletionMessageFunctionToolCallParam", i)
			arguments := call.get("function").get("arguments")
			if arguments.kind() != kindNone && arguments.kind() != kindString {
				return misfit(at+".function", "string_type", "Input should be a valid string", arguments)
			}
			return missing(at+".function", call)
		}
		i++
	}
	return nil
}
