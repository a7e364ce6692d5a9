package vllm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

const (
	// modelName is what clients ask for.
	modelName = "m"
	// idHeader of an answer names the service's decision; there is none where
	// Envoy chose alone.
	idHeader = "x-firsttoken-id"
)

// message is one entry of a chat.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// answer is what a client sees of one request.
type answer struct {
	id   string // of the service's decision
	path string
	body []byte // as sent
	text string
	ttft time.Duration // from sending to the first event
	// tokenIDs are the prompt's, promptTokens and cached their number and how
	// many of them were found in a cache, all as the engine says.
	tokenIDs             []uint32
	promptTokens, cached int
}

// client sends requests as any OpenAI client would, and asks the engine to say
// which token ids it saw.
type client struct {
	base string
	http *http.Client
}

func newClient(base string) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // everything is on this machine
	return &client{base, &http.Client{Transport: transport}}
}

func (c *client) chat(ctx context.Context, messages []message, maxTokens int) (*answer, error) {
	return c.send(ctx, "/v1/chat/completions", map[string]any{"messages": messages}, maxTokens)
}

func (c *client) complete(ctx context.Context, prompt string, maxTokens int) (*answer, error) {
	return c.send(ctx, "/v1/completions", map[string]any{"prompt": prompt}, maxTokens)
}

func (c *client) send(ctx context.Context, path string, request map[string]any, maxTokens int) (*answer, error) {
	request["model"], request["max_tokens"], request["ignore_eos"], request["temperature"] = modelName, maxTokens, true, 0
	request["stream"], request["stream_options"] = true, map[string]any{"include_usage": true}
	request["return_token_ids"] = true
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	sent := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s: status %d: %s", path, resp.StatusCode, bytes.TrimSpace(text))
	}
	a := &answer{id: resp.Header.Get(idHeader), path: path, body: body}
	if err := a.read(resp.Body, func() { a.ttft = time.Since(sent) }); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return a, nil
}

// event is what matters of one event of an answer: chat has the prompt's ids at
// the top, completions in the choice.
type event struct {
	PromptTokenIDs []uint32 `json:"prompt_token_ids"`
	Choices        []struct {
		Text  string `json:"text"`
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
		PromptTokenIDs []uint32 `json:"prompt_token_ids"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens int `json:"prompt_tokens"`
		Details      *struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

// read takes the events up to [DONE] and calls first at the first one.
func (a *answer) read(body io.Reader, first func()) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 4<<20)
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
		var e event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event %.100q: %w", data, err)
		}
		if a.tokenIDs == nil {
			a.tokenIDs = e.PromptTokenIDs
		}
		for _, choice := range e.Choices {
			text.WriteString(choice.Text + choice.Delta.Content)
			if a.tokenIDs == nil {
				a.tokenIDs = choice.PromptTokenIDs
			}
		}
		if e.Usage != nil && e.Usage.Details != nil {
			a.promptTokens, a.cached = e.Usage.PromptTokens, e.Usage.Details.CachedTokens
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// newRand is a generator that gives the same numbers for the same name.
func newRand(name string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return rand.New(rand.NewPCG(h.Sum64(), 1))
}

// words are n made-up words and numbers in several scripts.
func words(rng *rand.Rand, n int) string {
	parts := strings.Fields("ba de ki lo mu na pre sta tion ing er qu x über señ or 12 7 3.14 日本 мир , . ? ( ) \n")
	var text strings.Builder
	for range n {
		for range 1 + rng.IntN(3) {
			text.WriteString(parts[rng.IntN(len(parts))])
		}
		text.WriteByte(' ')
	}
	return text.String()
}
