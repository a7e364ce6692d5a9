package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// message is one entry of a chat.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// answer is what a client sees of one request.
type answer struct {
	text string
	// ttft is from sending to the first event of the body.
	ttft time.Duration
	// promptTokens and cachedTokens are the engine's own count, from usage.
	promptTokens, cachedTokens int
	// id, endpoint and reason are the response headers that the Envoy
	// configuration adds for people.
	id, endpoint, reason string
}

// client sends chats to the gateway as any OpenAI client would.
type client struct {
	gateway string // http://host:port
	model   string
	http    *http.Client
}

// newClient makes a client that keeps up to conns connections for use again.
func newClient(gateway, model string, conns int) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // everything is on this machine
	transport.MaxIdleConnsPerHost = conns
	return &client{gateway: gateway, model: model, http: &http.Client{Transport: transport}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// chatRequest is the body of a streamed chat completion.
type chatRequest struct {
	Model         string         `json:"model"`
	Messages      []message      `json:"messages"`
	MaxTokens     int            `json:"max_tokens"`
	Stream        bool           `json:"stream"`
	StreamOptions map[string]any `json:"stream_options,omitempty"`
}

// chatEvent is what matters of one event of the answer's stream.
type chatEvent struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens int `json:"prompt_tokens"`
		Details      struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

// chat sends one chat and reads the streamed answer to its end.
func (c *client) chat(ctx context.Context, messages []message, maxTokens int) (answer, error) {
	body, err := json.Marshal(chatRequest{
		Model: c.model, Messages: messages, MaxTokens: maxTokens, Stream: true,
		StreamOptions: map[string]any{"include_usage": true},
	})
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.gateway+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	sent := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return answer{}, fmt.Errorf("chat: status %d: %s", resp.StatusCode, bytes.TrimSpace(text))
	}
	a := answer{
		id:       resp.Header.Get("x-firsttoken-id"),
		endpoint: resp.Header.Get("x-firsttoken-endpoint"),
		reason:   resp.Header.Get("x-firsttoken-reason"),
	}
	err = a.read(resp.Body, func() { a.ttft = time.Since(sent) })
	if err != nil {
		return answer{}, fmt.Errorf("chat: %w", err)
	}
	return a, nil
}

// read takes the events of a stream up to [DONE] and calls first at the first
// one. A stream that ends before [DONE] was cut: io.ErrUnexpectedEOF.
func (a *answer) read(body io.Reader, first func()) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	var text strings.Builder
	seen := false
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if !seen {
			seen = true
			first()
		}
		if data == "[DONE]" {
			a.text = text.String()
			return nil
		}
		var event chatEvent
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return fmt.Errorf("event %.100q: %w", data, err)
		}
		for _, choice := range event.Choices {
			text.WriteString(choice.Delta.Content)
		}
		if u := event.Usage; u != nil {
			a.promptTokens, a.cachedTokens = u.PromptTokens, u.Details.CachedTokens
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
