package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds an answer: the coordinator's for a million tokens, with the
// tokens.
const maxAnswer = 64 << 20

// maxSequences is how many prompts of one request are asked about; the others
// are not known.
const maxSequences = 8

// caller calls a registry over connections that are kept.
type caller struct {
	base   string
	client *http.Client
}

func newCaller(base string, cfg Config) caller {
	return caller{strings.TrimSuffix(base, "/"), &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			MaxIdleConnsPerHost: cfg.Concurrency,
			// One for the question for members.
			MaxConnsPerHost: cfg.Concurrency + 1,
			IdleConnTimeout: 90 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// call sends body, nil for none, and decodes the answer.
func (c caller) call(ctx context.Context, method, path string, body []byte, to any) error {
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
		// A question may be asked twice: net/http then tries again where the
		// registry has closed an idle connection. An empty list is not sent.
		r.Header["Idempotency-Key"] = []string{}
	}
	response, err := c.client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	limited := &io.LimitedReader{R: response.Body, N: maxAnswer}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(limited, 200))
		return fmt.Errorf("%s %s: %s: %q", method, path, response.Status, text)
	}
	if err := json.NewDecoder(limited).Decode(to); err != nil {
		if limited.N <= 0 {
			return fmt.Errorf("%s %s: the answer has more than %d bytes", method, path, maxAnswer)
		}
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	// Read to the end, the connection can be used again.
	_, err = io.Copy(io.Discard, limited)
	return err
}

// appendTokens is token ids as a JSON array.
func appendTokens(b []byte, tokens []uint32) []byte {
	b = append(b, '[')
	for i, id := range tokens {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(id), 10)
	}
	return append(b, ']')
}

var errNoInstance = errors.New("an instance without id")
