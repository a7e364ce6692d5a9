package prompt

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// The types of error that vLLM's web layer answers with.
const (
	typeSchema  = "Bad Request"     // the body does not fit the schema
	typeRequest = "BadRequestError" // it fits and cannot be served
	typeUnknown = "NotFoundError"
)

// refuse is a fault that the engine finds itself. param is empty where none is
// to blame.
func refuse(param, format string, args ...any) *RequestError {
	return &RequestError{http.StatusBadRequest, fmt.Sprintf(format, args...), typeRequest, param}
}

// refuseValue is refuse with the parameter, and its value where there is one,
// appended to the message.
func refuseValue(param string, value any, format string, args ...any) *RequestError {
	e := refuse(param, format, args...)
	if value == nil {
		e.Message += fmt.Sprintf(" (parameter=%s)", param)
	} else {
		e.Message += fmt.Sprintf(" (parameter=%s, value=%v)", param, value)
	}
	return e
}

// misfit is a fault that the schema finds, pydantic's first of possibly several.
// location is the path without its leading "body".
func misfit(location, kind, message string, input value) *RequestError {
	param := "body" + location
	return &RequestError{
		Status:  http.StatusBadRequest,
		Type:    typeSchema,
		Param:   param,
		Message: fmt.Sprintf("1 validation error:\n  {'type': '%s', 'loc': '%s', 'msg': '%s', 'input': '%s'}", kind, param, message, describe(input)),
	}
}

func missing(location string, input value) *RequestError {
	return misfit(location, "missing", "Field required", input)
}

// describe prints a value as vLLM does in its messages: containers by size only.
func describe(v value) string {
	switch v.kind() {
	case kindObject:
		return "<dict of " + strconv.Itoa(v.len()) + " items>"
	case kindArray:
		return "<list of " + strconv.Itoa(v.len()) + " items>"
	case kindTrue:
		return "True"
	case kindFalse:
		return "False"
	case kindNone, kindNull:
		return "None"
	case kindString:
		return strings.ToValidUTF8(v.str(), "�")
	default:
		return string(v.raw())
	}
}

// notJSON is the web layer's answer to a body that is not JSON.
func notJSON(err *syntaxError) *RequestError {
	param := "body." + strconv.Itoa(err.offset)
	return &RequestError{
		Status: http.StatusBadRequest,
		Type:   typeSchema,
		Param:  param,
		Message: fmt.Sprintf("1 validation error:\n  {'type': 'json_invalid', 'loc': '%s', 'msg': 'JSON decode error', "+
			"'input': '<dict of 0 items>', 'ctx': {'error': %s}}", param, quote(err.reason)),
	}
}

// quote is Python's repr of a short ASCII string.
func quote(s string) string {
	s = strings.ReplaceAll(s, `\`, `\\`)
	if strings.Contains(s, "'") {
		return `"` + s + `"`
	}
	return "'" + s + "'"
}

func notObject(root value) *RequestError {
	if root.kind() <= kindNull {
		return missing("", value{})
	}
	return misfit("", "model_attributes_type", "Input should be a valid dictionary or object to extract fields from", root)
}

func wrongMediaType() *RequestError {
	return &RequestError{
		Status:  http.StatusBadRequest,
		Type:    typeSchema,
		Message: "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
	}
}

func notText() *RequestError {
	return &RequestError{Status: http.StatusBadRequest, Type: typeSchema, Message: "There was an error parsing the body"}
}

func unknownModel(name string, served []string) *RequestError {
	return &RequestError{
		Status:  http.StatusNotFound,
		Type:    typeUnknown,
		Param:   "model",
		Message: fmt.Sprintf("The model `%s` does not exist. Valid aliases: %s.", name, strings.Join(served, ", ")),
	}
}

func tooLong(limit, length int) *RequestError {
	qualifier := ""
	if length == limit+1 {
		qualifier = "at least "
	}
	return refuseValue("input_tokens", length, "This model's maximum context length is %d tokens. However, your prompt contains %s%d input tokens, "+
		"which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.", limit, qualifier, length)
}
