package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/prompt"
)

// The generation paths.
const (
	pathChat        = "/v1/chat/completions"
	pathCompletions = "/v1/completions"
)

// generationRequest is what the engine itself reads of a body; the rest of it
// decides the prompt or nothing.
type generationRequest struct {
	chat   bool
	model  string
	stream bool
	n      int
	// maxTokens is the limit of an answer; 0: none given.
	maxTokens      int
	minTokens      int
	ignoreEOS      bool
	echo           bool
	returnTokenIDs bool
	// noCache: every position is computed anew, because its logprobs are wanted.
	noCache   bool
	cacheSalt string
	// includeUsage asks for a last event with the usage, continuousUsage for
	// the usage in every event.
	includeUsage, continuousUsage bool
}

// readRequest is the request as the prompt package takes it, with its body read
// whole.
func readRequest(r *http.Request) (prompt.Request, *requestError) {
	if media := r.Header.Get("Content-Type"); media != "" {
		if t, _, err := mime.ParseMediaType(media); err != nil || t != "application/json" {
			return prompt.Request{}, &requestError{
				Status: http.StatusBadRequest, Type: typeSchema,
				Message: "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
			}
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return prompt.Request{}, &requestError{Status: http.StatusRequestEntityTooLarge, Type: typeBad, Message: "the body is larger than " + strconv.FormatInt(large.Limit, 10) + " bytes"}
		}
		return prompt.Request{}, badRequest("", "reading the body: %v", err)
	}
	return prompt.Request{Method: r.Method, Path: r.URL.Path, ContentType: r.Header.Get("Content-Type"), Body: body}, nil
}

// object is a JSON object whose values are read one by one: of doubled keys the
// last wins, unknown ones do not matter, and case does.
type object map[string]json.RawMessage

var byteOrderMark = []byte("\xef\xbb\xbf")

func parseObject(body []byte) (object, *requestError) {
	body = bytes.TrimPrefix(body, byteOrderMark)
	var fields object
	err := json.Unmarshal(body, &fields)
	var wrongType *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case len(body) == 0 || err == nil && fields == nil:
		return nil, badSchema("body", "missing", "Field required", "None")
	case errors.As(err, &wrongType):
		return nil, badSchema("body", "model_attributes_type", "Input should be a valid dictionary or object to extract fields from", wrongType.Value)
	case errors.As(err, &syntax):
		return nil, badSchema("body."+strconv.FormatInt(max(0, syntax.Offset-1), 10), "json_invalid", "JSON decode error", "{}")
	case err != nil:
		return nil, badSchema("body", "json_invalid", "JSON decode error", "{}")
	}
	return fields, nil
}

// reader reads fields of an object and remembers the first fault.
type reader struct {
	fields object
	fault  *requestError
}

// value is the field's JSON; false where it is missing or null.
func (r *reader) value(name string) (json.RawMessage, bool) {
	v, ok := r.fields[name]
	return v, ok && string(v) != "null"
}

func (r *reader) fail(name, kind, message string, v json.RawMessage) {
	if r.fault == nil {
		input := strings.Trim(string(v), `"`)
		if len(input) > 64 {
			input = input[:64]
		}
		r.fault = badSchema("body."+name, kind, message, strings.ToValidUTF8(input, "?"))
	}
}

func (r *reader) string(name string) string {
	v, ok := r.value(name)
	var s string
	if ok && json.Unmarshal(v, &s) != nil {
		r.fail(name, "string_type", "Input should be a valid string", v)
	}
	return s
}

// bool takes the strings and numbers for a boolean that vLLM takes.
func (r *reader) bool(name string) bool {
	v, ok := r.value(name)
	if !ok {
		return false
	}
	switch strings.ToLower(strings.Trim(string(v), `"`)) {
	case "true", "1", "1.0", "on", "t", "y", "yes":
		return true
	case "false", "0", "0.0", "off", "f", "n", "no":
		return false
	}
	r.fail(name, "bool_parsing", "Input should be a valid boolean, unable to interpret input", v)
	return false
}

// int takes whole numbers, also as 3.0 or as a string.
func (r *reader) int(name string, otherwise int) int {
	v, ok := r.value(name)
	if !ok {
		return otherwise
	}
	switch string(v) {
	case "true":
		return 1
	case "false":
		return 0
	}
	f, err := strconv.ParseFloat(strings.Trim(string(v), `"`), 64)
	if err != nil || f != float64(int(f)) || f > 1<<53 || f < -1<<53 {
		r.fail(name, "int_type", "Input should be a valid integer", v)
		return otherwise
	}
	return int(f)
}

// parseGeneration reads the parameters of a generation request.
func parseGeneration(path string, body []byte) (generationRequest, *requestError) {
	fields, fault := parseObject(body)
	if fault != nil {
		return generationRequest{}, fault
	}
	r := &reader{fields: fields}
	g := generationRequest{
		chat:           strings.HasPrefix(path, pathChat),
		model:          r.string("model"),
		stream:         r.bool("stream"),
		n:              r.int("n", 1),
		minTokens:      r.int("min_tokens", 0),
		ignoreEOS:      r.bool("ignore_eos"),
		returnTokenIDs: r.bool("return_token_ids"),
		cacheSalt:      r.string("cache_salt"),
	}
	_, wantsPromptLogprobs := r.value("prompt_logprobs")
	g.noCache = wantsPromptLogprobs
	limit, given := r.value("max_tokens")
	param, otherwise := "max_tokens", 16 // what a completion without max_tokens gets
	if g.chat {
		otherwise = 0
		if v, ok := r.value("max_completion_tokens"); ok {
			param, limit, given = "max_completion_tokens", v, true
		}
	} else {
		g.echo = r.bool("echo")
		_, logprobs := r.value("logprobs")
		g.noCache = g.noCache || g.echo && logprobs
		if _, there := fields["max_tokens"]; there && !given {
			otherwise = 0 // null: as much as fits
		}
	}
	g.maxTokens = r.int(param, otherwise)
	g.streamOptions(r)
	if r.fault != nil {
		return g, r.fault
	}
	switch {
	case g.n < 1:
		return g, badRequest("n", "n must be at least 1, got %d. (parameter=n, value=%d)", g.n, g.n)
	case given && g.maxTokens < 1:
		return g, badRequest("max_tokens", "max_tokens must be at least 1, got %s. (parameter=max_tokens, value=%s)", limit, limit)
	case g.minTokens < 0:
		return g, badRequest("min_tokens", "min_tokens must be greater than or equal to 0, got %d. (parameter=min_tokens, value=%d)", g.minTokens, g.minTokens)
	case g.maxTokens > 0 && g.minTokens > g.maxTokens:
		return g, badRequest("", "min_tokens must be less than or equal to max_tokens=%d, got %d.", g.maxTokens, g.minTokens)
	}
	return g, nil
}

func (g *generationRequest) streamOptions(r *reader) {
	v, ok := r.value("stream_options")
	if !ok {
		return
	}
	var fields object
	if json.Unmarshal(v, &fields) != nil {
		r.fail("stream_options", "model_attributes_type", "Input should be a valid dictionary or object to extract fields from", v)
		return
	}
	if !g.stream {
		if r.fault == nil {
			r.fault = badRequest("stream_options", "Stream options can only be defined when `stream=True`. (parameter=stream_options)")
		}
		return
	}
	options := &reader{fields: fields}
	g.includeUsage = options.bool("include_usage")
	g.continuousUsage = g.includeUsage && options.bool("continuous_usage_stats")
	if options.fault != nil && r.fault == nil {
		r.fault = options.fault
	}
}
