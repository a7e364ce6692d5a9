package prompt

import (
	"context"
	"time"
)

// Model encodes requests for one model exactly as its engine does. It is safe
// for concurrent use.
type Model struct {
	cfg ModelConfig
}

// LoadModel reads the tokenizer folder and the template and warms both up: it
// takes a second. The caller closes it.
func LoadModel(cfg ModelConfig) (*Model, error) {
	return &Model{cfg: cfg.withDefaults()}, nil
}

// Encode is the request's prompt, or a *RequestError for what the engine would
// refuse because of the prompt. Faults of sampling parameters are the engine's
// to find. now is printed by templates that name the date.
func (m *Model) Encode(ctx context.Context, r Request, now time.Time) (Encoded, error) {
	return Encoded{}, nil
}

// Close frees the tokenizer. Encode must not be called after it.
func (m *Model) Close() {}
