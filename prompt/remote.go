package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"
)

// renderer asks engines for the token ids of prompts that this process cannot
// encode. It is safe for concurrent use.
type renderer struct {
	client   *http.Client
	endpoint func(model string) (baseURL string, ok bool)
	key      string
	slots    *semaphore.Weighted
	// breakers are by the URL of a render endpoint: one engine may lack one that
	// another has. The least used are forgotten.
	breakers *lru.Cache[string, *breaker]
}

type breaker = gobreaker.CircuitBreaker[[]EncodedPrompt]

// maxBreakers is more than the render endpoints of most fleets; one that was
// forgotten costs some failing calls more.
const maxBreakers = 4096

// After tripAfter failures in a row an endpoint is spared for restFor, then asked
// once: some failures may be the requests', five are the engine's.
const (
	tripAfter = 5
	restFor   = 10 * time.Second
)

func newRenderer(o Options, concurrent int) *renderer {
	breakers, err := lru.New[string, *breaker](maxBreakers)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &renderer{
		client: &http.Client{
			Transport: &http.Transport{
				MaxIdleConns: 4 * concurrent, MaxIdleConnsPerHost: concurrent, IdleConnTimeout: time.Minute,
				TLSClientConfig: o.TLS, ForceAttemptHTTP2: false,
			},
			// An engine does not redirect; the key must not follow one either.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		endpoint: o.Endpoint,
		key:      o.APIKey,
		slots:    semaphore.NewWeighted(int64(concurrent)),
		breakers: breakers,
	}
}

var (
	errNoEndpoint = errors.New("no ready engine to ask")
	errBusy       = errors.New("too many render calls at once")
	errSpared     = errors.New("the engines failed such calls before")
)

// maxRenderBytes bounds an engine's answer: a million ids have at most 8 MB.
const maxRenderBytes = 32 << 20

// breaker is that of a render endpoint.
func (r *renderer) breaker(url string) *breaker {
	if b, ok := r.breakers.Get(url); ok {
		return b
	}
	fresh := gobreaker.NewCircuitBreaker[[]EncodedPrompt](gobreaker.Settings{
		Name:        url,
		Timeout:     restFor,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= tripAfter },
		// The engine works where it refuses a request; where it has no such
		// endpoint, asking is in vain.
		IsSuccessful: func(err error) bool {
			var status *statusError
			return err == nil || errors.As(err, &status) && status.code >= 400 && status.code < 500 &&
				status.code != http.StatusNotFound && status.code != http.StatusMethodNotAllowed
		},
		IsExcluded: func(err error) bool { return errors.Is(err, context.Canceled) }, // the client went
	})
	if b, found, _ := r.breakers.PeekOrAdd(url, fresh); found {
		return b
	}
	return fresh
}

// choices is how many engines are looked at for one that is not spared.
const choices = 3

// render sends the body to an engine's render endpoint, and where an older engine
// has none to /tokenize, which takes the same body, where tokenizable says that
// it gives the same ids: for a single prompt without truncation.
func (r *renderer) render(ctx context.Context, model, path string, body []byte, tokenizable bool) ([]EncodedPrompt, error) {
	if !r.slots.TryAcquire(1) {
		return nil, errBusy
	}
	defer r.slots.Release(1)
	for range choices {
		base, ok := r.endpoint(model)
		if !ok {
			return nil, errNoEndpoint
		}
		base = strings.TrimSuffix(base, "/")
		prompts, err := r.breaker(base + path + "/render").Execute(func() ([]EncodedPrompt, error) {
			return r.ask(ctx, base, path, body, tokenizable)
		})
		if !errors.Is(err, gobreaker.ErrOpenState) && !errors.Is(err, gobreaker.ErrTooManyRequests) {
			return prompts, err
		}
	}
	return nil, errSpared
}

// statusError is an answer other than 200.
type statusError struct {
	base string
	code int
}

func (e *statusError) Error() string { return fmt.Sprintf("%s: render: status %d", e.base, e.code) }

// ask is one call to one engine.
func (r *renderer) ask(ctx context.Context, base, path string, body []byte, tokenizable bool) ([]EncodedPrompt, error) {
	answer, status, err := r.post(ctx, base+path+"/render", body)
	if err == nil && status == http.StatusNotFound && tokenizable {
		answer, status, err = r.post(ctx, base+"/tokenize", body)
	}
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, &statusError{base, status}
	}
	prompts, err := readRendered(answer)
	if err != nil {
		return nil, fmt.Errorf("%s: render: %w", base, err)
	}
	return prompts, nil
}

func (r *renderer) post(ctx context.Context, url string, body []byte) ([]byte, int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	if r.key != "" {
		request.Header.Set("Authorization", "Bearer "+r.key)
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxRenderBytes+1))
	if err == nil && len(answer) > maxRenderBytes {
		err = fmt.Errorf("%s: answer of more than %d bytes", url, maxRenderBytes)
	}
	return answer, response.StatusCode, err
}

// readRendered reads an answer: an object, or a list of them, one per prompt.
func readRendered(answer []byte) ([]EncodedPrompt, error) {
	d := documents.Get().(*document) //nolint:forcetypeassert // the pool holds nothing else
	defer d.release()
	if err := d.parse(answer); err != nil {
		return nil, err
	}
	root := d.root()
	if root.kind() == kindObject {
		p, err := readRenderedPrompt(root)
		return []EncodedPrompt{p}, err
	}
	var prompts []EncodedPrompt
	for v := range root.elements() {
		p, err := readRenderedPrompt(v)
		if err != nil {
			return nil, err
		}
		prompts = append(prompts, p)
	}
	if len(prompts) == 0 {
		return nil, errors.New("answer without prompts")
	}
	return prompts, nil
}

// readRenderedPrompt takes the ids, which are certain up to the first placeholder
// of an image: its cache key is a hash of the image.
func readRenderedPrompt(v value) (EncodedPrompt, error) {
	list := v.get("token_ids")
	if !list.present() {
		list = v.get("tokens")
	}
	ids, bad := readIDs(list, list.len())
	if bad.kind() != kindNone || len(ids) == 0 {
		return EncodedPrompt{}, errors.New("answer without token ids")
	}
	p := EncodedPrompt{TokenIDs: ids, UsablePrefix: len(ids)}
	for _, ranges := range v.get("features").get("mm_placeholders").members() {
		for at := range ranges.elements() {
			if offset, ok := at.get("offset").integer(); ok && offset >= 0 {
				p.UsablePrefix = min(p.UsablePrefix, int(offset))
			}
		}
	}
	return p, nil
}
