package prompt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// checkTools is the schema of the tools field.
func checkTools(r *reader, tools value) {
	if !tools.present() {
		return
	}
	if tools.kind() != kindArray {
		r.fail(misfit(".tools", "list_type", "Input should be a valid list", tools))
		return
	}
	i := 0
	for tool := range tools.elements() {
		checkTool(r, fmt.Sprintf(".tools.%d", i), tool)
		i++
	}
}

func checkTool(r *reader, at string, tool value) {
	f := tool.get("function")
	switch typ := tool.get("type"); {
	case tool.kind() != kindObject:
		r.fail(misfit(at, "model_attributes_type", "Input should be a valid dictionary or object to extract fields from", tool))
	case typ.kind() != kindNone && !typ.is("function"):
		r.fail(misfit(at+".type", "literal_error", "Input should be 'function'", typ))
	case f.kind() == kindNone:
		r.fail(missing(at+".function", tool))
	case f.kind() != kindObject:
		r.fail(misfit(at+".function", "model_attributes_type", "Input should be a valid dictionary or object to extract fields from", f))
	case f.get("name").kind() == kindNone:
		r.fail(missing(at+".function.name", f))
	case f.get("name").kind() != kindString:
		r.fail(misfit(at+".function.name", "string_type", "Input should be a valid string", f.get("name")))
	}
	if d := f.get("description"); d.present() && d.kind() != kindString {
		r.fail(misfit(at+".function.description", "string_type", "Input should be a valid string", d))
	}
	if p := f.get("parameters"); p.present() && p.kind() != kindObject {
		r.fail(misfit(at+".function.parameters", "dict_type", "Input should be a valid dictionary", p))
	}
	for _, flag := range []struct {
		at string
		v  value
	}{{".function.strict", f.get("strict")}, {".function.defer_loading", f.get("defer_loading")}, {".defer_loading", tool.get("defer_loading")}} {
		if _, ok := flag.v.boolean(); flag.v.present() && !ok {
			r.fail(misfit(at+flag.at, "bool_type", "Input should be a valid boolean", flag.v))
		}
	}
}

// checkToolChoice are the rules between tools and tool_choice. choice is what
// counts afterwards: none, auto, required, named, or empty where it is null.
func checkToolChoice(f *fields) (choice string, fault *RequestError) {
	v := f.toolChoice
	if f.tools.kind() == kindArray && !f.tools.truthy() {
		return "", refuseValue("tools", nil, "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.")
	}
	switch {
	case v.kind() == kindNone && f.tools.truthy():
		return "auto", nil
	case v.kind() == kindNone || v.is("none"):
		return "none", nil
	case v.kind() == kindNull:
		return "", nil
	case !f.tools.present():
		return "", refuseValue("tool_choice", nil, "When using `tool_choice`, `tools` must be set.")
	case v.is("auto"), v.is("required"):
		return v.str(), nil
	case v.kind() != kindObject:
		return "", refuseValue("tool_choice", nil, "Invalid value for `tool_choice`: %s! Only named tools, \"none\", \"auto\" or \"required\" are supported.", describe(v))
	}
	const usage = "Correct usage: `{\"type\": \"function\", \"function\": {\"name\": \"my_function\"}}`"
	function := v.get("function")
	if function.kind() != kindObject {
		return "", refuseValue("tool_choice.function", nil, "Invalid value for `function`: `%s` in `tool_choice`! %s", describe(function), usage)
	}
	name := function.get("name")
	if name.kind() == kindNone {
		return "", refuseValue("tool_choice.function.name", nil, "Expected field `name` in `function` in `tool_choice`! %s", usage)
	}
	if name.kind() != kindString || name.str() == "" {
		return "", refuseValue("tool_choice.function.name", nil, "Invalid `name` in `function`: `%s` in `tool_choice`! %s", describe(name), usage)
	}
	for tool := range f.tools.elements() {
		if tool.get("function").get("name").is(name.str()) {
			return "named", nil
		}
	}
	return "", refuseValue("tool_choice", nil, "The tool specified in `tool_choice` does not match any of the specified `tools`")
}

// needParser is the fault of an engine that runs without a tool call parser.
func needParser(choice string, f *fields) *RequestError {
	switch choice {
	case "", "none":
		return nil
	case "auto":
		return refuse("", `"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set`)
	case "named":
		return refuse("", `tool_choice=function "%s" requires --tool-call-parser to be set`, f.toolChoice.get("function").get("name").str())
	default:
		return refuse("", `tool_choice="%s" requires --tool-call-parser to be set`, choice)
	}
}

// writeTools appends the tools as pydantic dumps them: the schema's own key
// order, null for what is missing, nothing that the schema does not know.
func writeTools(out *native.Value, tools value) error {
	out.List()
	for tool := range tools.elements() {
		f := tool.get("function")
		out.Map()
		out.Key("type")
		out.String("function")
		out.Key("function")
		out.Map()
		for _, key := range []string{"name", "description", "parameters"} {
			out.Key(key)
			if err := f.get(key).write(out, 3); err != nil {
				return err
			}
		}
		writeFlag(out, "strict", f.get("strict"))
		deferred := tool.get("defer_loading")
		if inner := f.get("defer_loading"); inner.present() {
			writeFlag(out, "defer_loading", inner)
		} else {
			writeFlag(out, "defer_loading", deferred)
		}
		out.EndMap()
		writeFlag(out, "defer_loading", deferred)
		out.EndMap()
	}
	out.EndList()
	return nil
}

// writeFlag appends a boolean that is left out where it is not given.
func writeFlag(out *native.Value, key string, v value) {
	if v.present() {
		on, _ := v.boolean()
		out.Key(key)
		out.Bool(on)
	}
}

// writeDeveloperTools appends the tools of a developer message, which go through
// another schema: its own key order, nothing for what is missing.
func writeDeveloperTools(out *native.Value, tools value) error {
	if !tools.present() {
		out.Nil()
		return nil
	}
	out.List()
	for tool := range tools.elements() {
		f := tool.get("function")
		out.Map()
		out.Key("function")
		out.Map()
		for _, key := range []string{"name", "description", "parameters"} {
			if v := f.get(key); v.kind() != kindNone {
				out.Key(key)
				if err := v.write(out, 3); err != nil {
					return err
				}
			}
		}
		if strict := f.get("strict"); strict.present() {
			writeFlag(out, "strict", strict)
		} else if strict.kind() == kindNull {
			out.Key("strict")
			out.Nil()
		}
		if err := writeExtra(out, f, "name", "description", "parameters", "strict"); err != nil {
			return err
		}
		out.EndMap()
		out.Key("type")
		out.String("function")
		if err := writeExtra(out, tool, "function", "type"); err != nil {
			return err
		}
		out.EndMap()
	}
	out.EndList()
	return nil
}

// writeToolCall appends a call that an assistant made. Its arguments are JSON
// text; what is no JSON object becomes an empty one.
func writeToolCall(out *native.Value, call value) error {
	f := call.get("function")
	out.Map()
	out.Key("id")
	if err := call.get("id").write(out, 0); err != nil {
		return err
	}
	out.Key("function")
	out.Map()
	out.Key("arguments")
	arguments := f.get("arguments")
	if arguments.doc.surrogates && hasSurrogate(arguments) {
		return errSurrogate
	}
	if err := writeArguments(out, arguments.str()); err != nil {
		return err
	}
	out.Key("name")
	if err := f.get("name").write(out, 0); err != nil {
		return err
	}
	if err := writeExtra(out, f, "arguments", "name"); err != nil {
		return err
	}
	out.EndMap()
	out.Key("type")
	out.String("function")
	if err := writeExtra(out, call, "id", "function", "type"); err != nil {
		return err
	}
	out.EndMap()
	return nil
}

// writeExtra appends the members that the schema does not know.
func writeExtra(out *native.Value, object value, known ...string) error {
	for key, v := range object.members() {
		if name := key.str(); !slices.Contains(known, name) {
			out.Key(name)
			if err := v.write(out, 3); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeArguments(out *native.Value, text string) error {
	d := documents.Get().(*document) //nolint:forcetypeassert // the pool holds nothing else
	defer d.release()
	if strings.TrimSpace(text) == "" || d.parse([]byte(text)) != nil || d.root().kind() != kindObject {
		out.Map()
		out.EndMap()
		return nil
	}
	return d.root().write(out, 4)
}
