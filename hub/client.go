package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Client fetches models' files. Safe for concurrent use, also by several
// processes with the same cache.
type Client struct {
	settings Settings
	cache    cache
	// http follows redirects, probe does not: the hub tells a file's checksum
	// before it sends the client to where the content is.
	http, probe *http.Client
	retryAfter  time.Duration
	// stall is how long content may stay away before its transfer is tried anew.
	stall time.Duration
}

// Progress says how far a file is.
type Progress struct {
	Model Model
	File  string
	// Done and Size are bytes; Size is 0 where the hub does not tell it.
	Done, Size int64
}

// New makes a client. It opens no connection.
func New(s Settings) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 30 * time.Second
	follow := &http.Client{Transport: bearer{transport, s}}
	stay := &http.Client{Transport: follow.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &Client{settings: s, cache: cache{s.Cache}, http: follow, probe: stay, retryAfter: time.Second, stall: time.Minute}
}

// bearer adds the token to requests to the hub itself. Where the hub redirects
// to is another's host, which must not see it.
type bearer struct {
	next     http.RoundTripper
	settings Settings
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.settings.Token != "" && strings.HasPrefix(r.URL.String(), b.settings.Endpoint+"/") {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.settings.Token)
	}
	return b.next.RoundTrip(r)
}

// Cached is the folder that has files of m from an earlier fetch, by whichever
// program, without asking anybody; false where there is none.
func (c *Client) Cached(m Model) (dir string, ok bool) {
	if !IsID(m.ID) || validRevision(m.revision()) != nil {
		return "", false
	}
	commit, ok := c.cache.commit(m)
	if !ok {
		return "", false
	}
	dir = c.cache.snapshot(m, commit)
	return dir, exists(dir)
}

// Fetch brings those of the files names that m has into the cache and returns
// the folder that they are in. Files that are there already are not fetched
// again; one that was interrupted goes on where it stopped. report is told how
// far each file is, from one goroutine; nil: nobody is told.
//
// Errors are *Error where the hub refused. What may pass (no connection, a
// status of 500 or above, 429) is tried a few times; if the hub is still out of
// reach then, what an earlier fetch left in the cache is good enough.
func (c *Client) Fetch(ctx context.Context, m Model, names []string, report func(Progress)) (dir string, err error) {
	if !IsID(m.ID) {
		return "", fmt.Errorf("%q is neither a folder nor a model's id such as Qwen/Qwen2.5-7B-Instruct", m.ID)
	}
	if err := validRevision(m.revision()); err != nil {
		return "", err
	}
	if c.settings.Offline {
		if dir, ok := c.Cached(m); ok {
			return dir, nil
		}
		return "", fmt.Errorf("model %s is not in %s, and HF_HUB_OFFLINE forbids to fetch it; fetch it once without, or name a folder", m, c.settings.Cache)
	}
	if report == nil {
		report = func(Progress) {}
	}
	commit, files, err := c.list(ctx, m)
	if err != nil {
		var refused *Error
		if dir, ok := c.Cached(m); ok && ctx.Err() == nil && (!errors.As(err, &refused) || refused.MayPass()) {
			return dir, nil
		}
		return "", err
	}
	for _, name := range files {
		if slices.Contains(names, name) {
			if err := c.file(ctx, m, commit, name, report); err != nil {
				return "", fmt.Errorf("model %s: %s: %w", m, name, err)
			}
		}
	}
	dir = c.cache.snapshot(m, commit)
	if !exists(dir) {
		return "", fmt.Errorf("model %s has none of the files %s", m, strings.Join(names, ", "))
	}
	// Last, so that a revision never points to a folder without its files.
	return dir, c.cache.setCommit(m, commit)
}

// maxListing bounds what is read of a model's description: some have thousands
// of files.
const maxListing = 32 << 20

// list asks at which commit m is, and which files it has.
func (c *Client) list(ctx context.Context, m Model) (commit string, files []string, err error) {
	address := c.settings.Endpoint + "/api/models/" + m.ID + "/revision/" + url.PathEscape(m.revision())
	text, err := retry(ctx, c, func() ([]byte, error) {
		resp, err := c.get(ctx, c.http, http.MethodGet, address, nil)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, refusal(m, resp)
		}
		return io.ReadAll(io.LimitReader(resp.Body, maxListing))
	})
	if err != nil {
		return "", nil, fmt.Errorf("model %s: %w", m, err)
	}
	var listing struct {
		SHA      string
		Siblings []struct{ RFilename string }
	}
	if err := json.Unmarshal(text, &listing); err != nil {
		return "", nil, fmt.Errorf("model %s: %s answered with something else than a description: %w", m, address, err)
	}
	if !commitName.MatchString(listing.SHA) {
		return "", nil, fmt.Errorf("model %s: %s told the commit %q, which is none", m, address, listing.SHA)
	}
	for _, s := range listing.Siblings {
		files = append(files, s.RFilename)
	}
	return listing.SHA, files, nil
}

// blob is what the hub tells of a file before its content.
type blob struct {
	etag    string
	size    int64
	content string // URL
}

// file brings one file into the cache.
func (c *Client) file(ctx context.Context, m Model, commit, name string, report func(Progress)) error {
	if exists(filepath.Join(c.cache.snapshot(m, commit), filepath.FromSlash(name))) {
		return nil
	}
	b, err := retry(ctx, c, func() (blob, error) { return c.describe(ctx, m, commit, name) })
	if err != nil {
		return err
	}
	unlock, err := c.cache.lock(ctx, m, b.etag)
	if err != nil {
		return err
	}
	defer unlock()
	if !exists(c.cache.blob(m, b.etag)) {
		tell := func(done int64) { report(Progress{m, name, done, b.size}) }
		if _, err := retry(ctx, c, func() (struct{}, error) { return struct{}{}, c.content(ctx, m, b, tell) }); err != nil {
			return err
		}
	}
	return c.cache.link(m, commit, name, b.etag)
}

// etagName is what a checksum looks like; it becomes a file's name.
func etagName(etag string) bool {
	return etag != "" && len(etag) <= 128 && !strings.ContainsAny(etag, "/\\\x00") && etag != "." && etag != ".."
}

// describe asks for a file's checksum, size and place.
func (c *Client) describe(ctx context.Context, m Model, commit, name string) (blob, error) {
	segments := strings.Split(name, "/")
	for i := range segments {
		segments[i] = url.PathEscape(segments[i])
	}
	address := c.settings.Endpoint + "/" + m.ID + "/resolve/" + commit + "/" + strings.Join(segments, "/")
	const renames = 3
	for range renames {
		resp, err := c.get(ctx, c.probe, http.MethodHead, address, nil)
		if err != nil {
			return blob{}, err
		}
		_ = resp.Body.Close() // an answer to HEAD has none
		location, err := resp.Location()
		switch {
		case resp.StatusCode >= http.StatusBadRequest:
			return blob{}, refusal(m, resp)
		case err == nil && !strings.Contains(resp.Header.Get("Location"), "://"):
			address = location.String() // the model was renamed: the same hub knows it elsewhere
			continue
		}
		b := blob{
			etag:    strings.Trim(strings.TrimPrefix(cmp.Or(resp.Header.Get("X-Linked-Etag"), resp.Header.Get("Etag")), "W/"), `"`),
			content: address,
		}
		b.size, _ = strconv.ParseInt(cmp.Or(resp.Header.Get("X-Linked-Size"), resp.Header.Get("Content-Length")), 10, 64)
		if err == nil {
			b.content = location.String()
		}
		if !etagName(b.etag) {
			return blob{}, backoff.Permanent(fmt.Errorf("%s told the checksum %q, which cannot be kept", address, b.etag))
		}
		return b, nil
	}
	return blob{}, backoff.Permanent(fmt.Errorf("%s redirects in circles", address))
}

// content fetches what is missing of a blob and puts it in its place.
func (c *Client) content(ctx context.Context, m Model, b blob, tell func(done int64)) error {
	whole := c.cache.blob(m, b.etag)
	if err := os.MkdirAll(filepath.Dir(whole), 0o755); err != nil { //nolint:gosec // others on the machine share the cache
		return backoff.Permanent(err)
	}
	part := whole + ".incomplete"
	out, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644) //nolint:gosec // others on the machine share the cache
	if err != nil {
		return backoff.Permanent(err)
	}
	defer out.Close()
	have, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return backoff.Permanent(err)
	}
	if b.size == 0 || have > b.size {
		have = 0
		if err := out.Truncate(0); err != nil {
			return backoff.Permanent(err)
		}
	}
	if have == 0 || have < b.size {
		if err := c.rest(ctx, m, b, out, have, tell); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return backoff.Permanent(err)
	}
	if err := verify(part, b.etag); err != nil {
		_ = os.Remove(part)
		return err
	}
	if err := os.Rename(part, whole); err != nil {
		return backoff.Permanent(err)
	}
	return nil
}

// rest appends what comes after the first have bytes.
func (c *Client) rest(ctx context.Context, m Model, b blob, out *os.File, have int64, tell func(done int64)) error {
	header := http.Header{}
	if have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	// A connection may die without anybody telling.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(c.stall, func() { cancel(fmt.Errorf("%s: nothing came for %s", b.content, c.stall)) })
	defer stalled.Stop()
	resp, err := c.get(ctx, c.http, http.MethodGet, b.content, header)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusPartialContent:
	case http.StatusOK, http.StatusRequestedRangeNotSatisfiable:
		have = 0
		if err := out.Truncate(0); err != nil {
			return backoff.Permanent(err)
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: status %s for what is missing", b.content, resp.Status)
		}
	default:
		return refusal(m, resp)
	}
	tell(have)
	in := io.Reader(resp.Body)
	if b.size > 0 {
		in = io.LimitReader(in, b.size-have+1)
	}
	n, err := io.Copy(&counted{out, have, func(done int64) { stalled.Reset(c.stall); tell(done) }}, in)
	switch {
	case err != nil:
		return cmp.Or(context.Cause(ctx), err)
	case b.size > 0 && have+n != b.size:
		return fmt.Errorf("%w: %d of %d bytes came", io.ErrUnexpectedEOF, have+n, b.size)
	}
	return nil
}

// counted tells how much was written.
type counted struct {
	out  io.Writer
	done int64
	tell func(int64)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	c.done += int64(n)
	c.tell(c.done)
	return n, err
}

func (c *Client) get(ctx context.Context, client *http.Client, method, address string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, http.NoBody)
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("User-Agent", "firsttoken")
	// Sizes and ranges are those of the file, not of what a proxy makes of it.
	req.Header.Set("Accept-Encoding", "identity")
	return client.Do(req)
}

// tries is how often a call is made before its error counts.
const tries = 5

// retry makes a call again after errors that may pass, later each time.
func retry[T any](ctx context.Context, c *Client, call func() (T, error)) (T, error) {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval = c.retryAfter
	return backoff.Retry(ctx, func() (T, error) {
		v, err := call()
		var refused *Error
		if errors.As(err, &refused) && !refused.MayPass() {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithBackOff(waits), backoff.WithMaxTries(tries))
}
