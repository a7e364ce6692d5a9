package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"
)

// Target is the endpoint that is driven.
type Target struct {
	// BaseURL is http://host:port, with or without /v1 at its end.
	BaseURL string
	// Model is the name that requests ask for.
	Model string
	// Key is sent as bearer token; empty: none.
	Key string
	// Timeout bounds each request, from sending to its end; 0: ten minutes.
	Timeout time.Duration
}

const defaultTimeout = 10 * time.Minute

// Message is one entry of a chat.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Answer is what a client sees of one request.
type Answer struct {
	// Text is the answer's text.
	Text string
	// Sent is when the request was sent. FirstToken, LastToken and End are since
	// then: the first and the last event with content, and the end of the stream.
	// FirstToken is 0 where none came.
	Sent                       time.Time
	FirstToken, LastToken, End time.Duration
	Usage                      Usage
	// ID, Endpoint and Reason are the headers that the service's Envoy
	// configuration adds for people; empty elsewhere.
	ID, Endpoint, Reason string
}

// Client sends chats. Safe for concurrent use.
type Client struct {
	target Target
	http   *http.Client
}

// idleConnections bounds the connections that are kept for use again. All that
// were ever needed at once are kept: an open loop must not dial in the middle
// of a measurement.
const idleConnections = 1 << 16

// idleTimeout is longer than any pause between the rounds of a user.
const idleTimeout = 10 * time.Minute

// NewClient makes a client with connections of its own; Close frees them.
func NewClient(t Target) *Client {
	t.BaseURL = strings.TrimSuffix(strings.TrimSuffix(t.BaseURL, "/"), "/v1")
	if t.Timeout <= 0 {
		t.Timeout = defaultTimeout
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = idleConnections, idleConnections
	transport.IdleConnTimeout = idleTimeout
	transport.DisableCompression = true // a compressed stream would come in lumps
	return &Client{target: t, http: &http.Client{Transport: transport}}
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is the body of a streamed chat completion.
type request struct {
	Model         string          `json:"model"`
	Messages      []Message       `json:"messages"`
	MaxTokens     int             `json:"max_tokens"`
	Temperature   int             `json:"temperature"`
	IgnoreEOS     bool            `json:"ignore_eos,omitempty"`
	Stream        bool            `json:"stream"`
	StreamOptions map[string]bool `json:"stream_options"`
}

// Chat is one chat to be sent.
type Chat struct {
	Messages []Message
	// MaxTokens is the answer's length; with IgnoreEOS the answer is never
	// shorter (an extension of vLLM's, which others ignore or refuse).
	MaxTokens int
	IgnoreEOS bool
	// Header is sent besides; nil: nothing.
	Header http.Header
}

// body is the request's body.
func (c *Client) body(q *Chat) ([]byte, error) {
	return json.Marshal(request{
		Model: c.target.Model, Messages: q.Messages, MaxTokens: q.MaxTokens, IgnoreEOS: q.IgnoreEOS, Stream: true,
		StreamOptions: map[string]bool{"include_usage": true},
	})
}

// Ask sends one chat and reads the streamed answer to its end. between, which
// may be nil, is told the time from each event with content to the next. Where
// the fault is not nil the answer has what came before it.
func (c *Client) Ask(ctx context.Context, q *Chat, between func(time.Duration)) (Answer, *Error) {
	body, err := c.body(q)
	if err != nil {
		return Answer{Sent: time.Now()}, &Error{Connect, err.Error()}
	}
	return c.send(ctx, body, q.Header, between)
}

func (c *Client) send(ctx context.Context, body []byte, header http.Header, between func(time.Duration)) (a Answer, fault *Error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.target.Timeout, errTimeout)
	defer cancel()
	a.Sent = time.Now()
	defer func() {
		if a.End == 0 {
			a.End = time.Since(a.Sent)
		}
	}()
	resp, err := c.post(ctx, "/v1/chat/completions", body, header)
	if err != nil {
		return a, connectionFault(ctx, Connect, err)
	}
	defer resp.Body.Close()
	a.ID, a.Endpoint, a.Reason = resp.Header.Get("x-firsttoken-id"), resp.Header.Get("x-firsttoken-endpoint"), resp.Header.Get("x-firsttoken-reason")
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return a, faultf(statusKind(resp.StatusCode), "%s", bytes.TrimSpace(text))
	}
	var text strings.Builder
	a.Usage, fault = read(ctx, resp.Body, func(s string) {
		at := time.Since(a.Sent)
		if a.FirstToken == 0 {
			a.FirstToken = at
		} else if between != nil {
			between(at - a.LastToken)
		}
		a.LastToken = at
		text.WriteString(s)
	})
	a.End, a.Text = time.Since(a.Sent), text.String()
	if fault == nil {
		drain(resp.Body, cancel)
	}
	return a, fault
}

// drain reads what is left behind the stream's end, so that the connection can
// be used again; a server that does not end is given up.
func drain(body io.Reader, cancel func()) {
	const limit, patience = 64 << 10, time.Second
	defer time.AfterFunc(patience, cancel).Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(body, limit))
}

func (c *Client) post(ctx context.Context, path string, body []byte, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.target.BaseURL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Content-Type", "application/json")
	if c.target.Key != "" {
		req.Header.Set("Authorization", "Bearer "+c.target.Key)
	}
	return c.http.Do(req)
}
