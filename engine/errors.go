package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/firsttoken/firsttoken/prompt"
)

// requestError is an answer in the shape of vLLM's errors.
type requestError = prompt.RequestError

const (
	typeSchema = "Bad Request"
	typeBad    = "BadRequestError"
)

func badRequest(param, format string, args ...any) *requestError {
	return &requestError{Status: http.StatusBadRequest, Type: typeBad, Param: param, Message: fmt.Sprintf(format, args...)}
}

// badSchema is a body that does not fit the schema. Of several faults vLLM
// lists all; we list one.
func badSchema(param, kind, message, input string) *requestError {
	return &requestError{
		Status: http.StatusBadRequest, Type: typeSchema, Param: param,
		Message: fmt.Sprintf("1 validation error:\n  {'type': '%s', 'loc': '%s', 'msg': '%s', 'input': '%s'}", kind, param, message, input),
	}
}

func writeError(w http.ResponseWriter, e *requestError) {
	var body struct {
		Error struct {
			Message string  `json:"message"`
			Type    string  `json:"type"`
			Param   *string `json:"param"`
			Code    int     `json:"code"`
		} `json:"error"`
	}
	body.Error.Message, body.Error.Type, body.Error.Code = e.Message, e.Type, e.Status
	if e.Param != "" {
		body.Error.Param = &e.Param
	}
	writeJSON(w, e.Status, body)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body := appendJSON(nil, v)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away is not our fault
}

// appendJSON writes compactly and leaves < > & as they are, as vLLM does.
func appendJSON(b []byte, v any) []byte {
	buf := bytes.NewBuffer(b)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // our own types
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})
}
