package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"golang.org/x/sync/semaphore"
)

// renderer asks engines for the token ids of prompts that this process cannot
// encode. It is safe for concurrent use.
type renderer struct {
	client   *http.Client
	endpoint func(model string) (baseURL string, ok bool)
	key      string
	slots    *semaphore.Weighted
}

func newRenderer(o Options, concurrent int) *renderer {
	return &renderer{
		client: &http.Client{
			Transport: &http.Transport{MaxIdleConns: 4 * concurrent, MaxIdleConnsPerHost: concurrent, ForceAttemptHTTP2: false},
			// An engine does not redirect; the key must not follow one either.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		endpoint: o.Endpoint,
		key:      o.APIKey,
		slots:    semaphore.NewWeighted(int64(concurrent)),
	}
}

var (
	errNoEndpoint = errors.New("no ready engine to ask")
	errBusy       = errors.New("too many render calls at once")
)

// maxRenderBytes bounds an engine's answer: a million ids have at most 8 MB.
const maxRenderBytes = 32 << 20

// render sends the body to an engine's render endpoint, and where an older engine
// has none to /tokenize, which takes the same body, where tokenizable says that
// it gives the same ids: for a single prompt without truncation.
func (r *renderer) render(ctx context.Context, model, path string, body []byte, tokenizable bool) ([]EncodedPrompt, error) {
	base, ok := r.endpoint(model)
	if !ok {
		return nil, errNoEndpoint
	}
	if !r.slots.TryAcquire(1) {
		return nil, errBusy
	}
	defer r.slots.Release(1)
	base = strings.TrimSuffix(base, "/")
	answer, status, err := r.post(ctx, base+path+"/render", body)
	if err == nil && status == http.StatusNotFound && tokenizable {
		answer, status, err = r.post(ctx, base+"/tokenize", body)
	}
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s: render: status %d", base, status)
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
