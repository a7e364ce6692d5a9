package discovery

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// engineClient makes our own calls to one address of one engine. Every call
// opens its own connection: a probe that rode on an old one would not notice
// that the engine accepts no more, and none is shared with other traffic.
type engineClient struct {
	base   string // scheme://host:port, the host as the operator wrote it
	apiKey string // never logged; sent as bearer where not empty
	http   *http.Client
}

// newEngineClient dials address (ip:port) whatever the target's name says now;
// the name remains what TLS verifies and the Host header tells.
func newEngineClient(t target, address string, tlsConfig *tls.Config, apiKey string) *engineClient {
	dialer := &net.Dialer{}
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   tlsConfig,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		},
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &engineClient{
		base:   t.scheme + "://" + t.hostPort(),
		apiKey: apiKey,
		http: &http.Client{
			Transport: transport,
			// A redirect is no sign of health, and must not carry the key away.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// statusError is an answer other than 2xx.
type statusError struct {
	method, path string
	status       int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s %s: status %d", e.method, e.path, e.status)
}

// health is nil where the engine says that it can serve.
func (c *engineClient) health(ctx context.Context, path string) error {
	_, err := c.get(ctx, path, 0)
	return err
}

// maxModelsBody bounds the answer of /v1/models: a model card is below 1 KiB,
// and an engine with a thousand adapters lists a thousand.
const maxModelsBody = 4 << 20

// served is what an engine says that it serves.
type served struct {
	// names are in its order: its own, aliases, adapters.
	names []string
	// adapters are those of names that have another as parent.
	adapters []string
	// cards are the engine's own words on each of names. They have the time of the
	// answer in them, so others are no news.
	cards []json.RawMessage
}

// models is what the engine serves. Never without names but with an error.
func (c *engineClient) models(ctx context.Context) (served, error) {
	body, err := c.get(ctx, "/v1/models", maxModelsBody)
	if err != nil {
		return served{}, err
	}
	return parseModels(body)
}

var errNoModels = errors.New("GET /v1/models: the answer lists no model")

func parseModels(body []byte) (s served, err error) {
	var cards struct {
		Data []json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &cards); err != nil {
		return served{}, fmt.Errorf("GET /v1/models: %w", err)
	}
	seen := make(map[string]bool, len(cards.Data))
	for _, raw := range cards.Data {
		var card struct {
			ID string `json:"id"`
			// Parent is null but for adapters, which have the model's name here.
			Parent *string `json:"parent"`
		}
		if err := json.Unmarshal(raw, &card); err != nil {
			return served{}, fmt.Errorf("GET /v1/models: %w", err)
		}
		if card.ID != "" && !seen[card.ID] {
			seen[card.ID] = true
			s.names = append(s.names, card.ID)
			s.cards = append(s.cards, raw)
			if card.Parent != nil {
				s.adapters = append(s.adapters, card.ID)
			}
		}
	}
	if s.names == nil {
		return served{}, errNoModels
	}
	return s, nil
}

// maxTrialBody bounds the answer of a trial: some hundred bytes with one token.
const maxTrialBody = 1 << 20

// try asks for the shortest answer there is. An engine without such a path, or
// that does not take the request, cannot be tried: it is an error as well.
func (c *engineClient) try(ctx context.Context, model string) error {
	body, err := json.Marshal(struct {
		Model     string `json:"model,omitempty"`
		Prompt    string `json:"prompt"`
		MaxTokens int    `json:"max_tokens"`
	}{model, "a", 1})
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, http.MethodPost, "/v1/completions", bytes.NewReader(body), maxTrialBody)
	return err
}

// get reads at most limit bytes of the answer's body; more is an error.
func (c *engineClient) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	return c.ask(ctx, http.MethodGet, path, nil, limit)
}

// ask is get with any method; content, where there is some, is JSON.
func (c *engineClient) ask(ctx context.Context, method, path string, content io.Reader, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return nil, err
	}
	if content != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.apiKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.apiKey)
	}
	req.Header.Set("User-Agent", "firsttoken")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, &statusError{method, path, resp.StatusCode}
	}
	if limit == 0 {
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("%s %s: the answer is longer than %d bytes", method, path, limit)
	}
	return body, nil
}

// result is the metrics label of a call's outcome.
func result(err error) string {
	var (
		status  *statusError
		network net.Error
		op      *net.OpError
	)
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &status):
		return "status"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.As(err, &op) && op.Op == "dial":
		return "connect"
	}
	return "other"
}

// ClientConfig is how a client of the engines verifies them; nil where nothing
// is configured: by the system's authorities. The error says what is wrong with
// the file.
func (c TLSConfig) ClientConfig() (*tls.Config, error) {
	switch {
	case c.SkipVerify:
		return &tls.Config{InsecureSkipVerify: true}, nil //nolint:gosec // The operator asks for it; engines in a cluster often sign themselves.
	case c.CAFile != "":
		pool, err := c.authorities()
		if err != nil {
			return nil, err
		}
		return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
	}
	return nil, nil
}

func (c TLSConfig) authorities() (*x509.CertPool, error) {
	pem, err := readable(c.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", c.CAFile)
	}
	return pool, nil
}

// within bounds a call by d.
func within[T any](ctx context.Context, d time.Duration, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return call(ctx)
}
