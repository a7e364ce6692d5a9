package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/tmaxmax/go-sse"
)

// maxEvent bounds one event of an answer, in bytes. vLLM's are some hundred
// bytes; with log probabilities some thousand.
const maxEvent = 1 << 20

// chunk is what matters of one event of a streamed chat.
type chunk struct {
	Choices []struct {
		Delta struct {
			Content          string `json:"content"`
			Reasoning        string `json:"reasoning"`
			ReasoningContent string `json:"reasoning_content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		Details          *struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
	Error json.RawMessage `json:"error"`
}

// read takes the events of a streamed chat up to [DONE]. It calls content for
// each event that brings text, thoughts included, and returns what was gathered
// and why it is not whole, if so; never more than one event is held.
func read(ctx context.Context, body io.Reader, content func(text string)) (usage Usage, fault *Error) {
	some := false
	from := &source{Reader: body}
	for event, err := range sse.Read(from, &sse.ReadConfig{MaxEventSize: maxEvent}) {
		if err != nil {
			return usage, connectionFault(ctx, Cut, cmp.Or(from.err, err))
		}
		if event.Data == "[DONE]" {
			if !some {
				return usage, faultf(NoContent, "the stream came to its end without any content")
			}
			return usage, nil
		}
		if event.Data == "" {
			continue // some servers keep the connection alive so
		}
		var c chunk
		if err := json.Unmarshal([]byte(event.Data), &c); err != nil {
			return usage, faultf(BadEvent, "%.100q: %v", event.Data, err)
		}
		if len(c.Error) > 0 && string(c.Error) != "null" {
			return usage, faultf(ErrorEvent, "%.300s", c.Error)
		}
		if u := c.Usage; u != nil {
			usage.Prompt, usage.Completion = u.PromptTokens, u.CompletionTokens
			if u.Details != nil {
				usage.Cached, usage.CachedKnown = u.Details.CachedTokens, true
			}
		}
		var text strings.Builder
		for i := range c.Choices {
			d := &c.Choices[i].Delta
			text.WriteString(d.Reasoning)
			text.WriteString(d.ReasoningContent)
			text.WriteString(d.Content)
		}
		if text.Len() > 0 {
			some = true
			content(text.String())
		}
	}
	return usage, connectionFault(ctx, Cut, io.ErrUnexpectedEOF)
}

// source remembers why reading ended: the events' reader says only that it did,
// where that was in the middle of one.
type source struct {
	io.Reader
	err error // nil at the regular end
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// Usage is the server's own count of tokens.
type Usage struct {
	Prompt, Completion int
	// Cached are the prompt's tokens that were not computed. Not every server
	// tells: CachedKnown.
	Cached      int
	CachedKnown bool
}
