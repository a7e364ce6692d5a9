package native

import "errors"

// ErrNotBuilt is returned by LoadTokenizer and CompileTemplate of a program that
// was built without the library (tag nonative, or no cgo).
var ErrNotBuilt = errors.New("built without the native tokenizer library: build with cgo and without the tag nonative, or let the engine tokenize")

// ErrClosed is returned by calls on a Tokenizer or Template after Close.
var ErrClosed = errors.New("closed")

// ErrInputTooLarge is wrapped by errors for texts and variables above the limit.
var ErrInputTooLarge = errors.New("input too large")

// TemplateError is a refusal by the chat template itself, by its call of
// raise_exception: the messages do not fit the template. Engines answer such a
// request with status 400 and this message.
type TemplateError struct {
	// Message is the argument of raise_exception, unchanged.
	Message string
}

// Error is the template's message, named as such.
func (e *TemplateError) Error() string { return "chat template refused the messages: " + e.Message }
