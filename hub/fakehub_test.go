package hub

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeHub speaks the hub's protocol: a listing for each revision, checksums by
// HEAD, small files at once, large ones by redirect to another host.
type fakeHub struct {
	*httptest.Server
	content *httptest.Server // where large files are

	mu sync.Mutex // guards the following fields
	// models are by id, then revision.
	models map[string]map[string]*revision
	// renamed are old ids.
	renamed map[string]string
	token   string // wanted for everything; empty: none
	gated   bool
	// cut ends the next transfers after so many bytes each.
	cut []int
	// stall: what was cut goes silent instead of ending.
	stall bool
	// failures are statuses for the next calls.
	failures []int
	// corrupt changes content on its way.
	corrupt bool
	// calls counts requests by method and path, ranges lists those asked for.
	calls  map[string]int
	ranges []string
	leaked bool // the token came to where content is
}

type revision struct {
	commit string
	files  map[string]string
}

// large is the size from which a file is kept elsewhere.
const large = 1000

func newFakeHub(t *testing.T) *fakeHub {
	t.Helper()
	h := &fakeHub{models: map[string]map[string]*revision{}, renamed: map[string]string{}, calls: map[string]int{}}
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	h.content = httptest.NewServer(http.HandlerFunc(h.serveContent))
	t.Cleanup(h.Close)
	t.Cleanup(h.content.Close)
	return h
}

// put makes the branch main of a model point to a commit with these files.
func (h *fakeHub) put(id, commit string, files map[string]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.models[id] == nil {
		h.models[id] = map[string]*revision{}
	}
	r := &revision{commit, files}
	h.models[id]["main"], h.models[id][commit] = r, r
}

func etagOf(text string) string {
	if len(text) >= large {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	sum := sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(text), text))
	return hex.EncodeToString(sum[:])
}

func (h *fakeHub) fail(w http.ResponseWriter, status int, code string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
	}
	w.WriteHeader(status)
}

func (h *fakeHub) serve(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[r.Method+" "+r.URL.Path]++
	if len(h.failures) > 0 {
		status := h.failures[0]
		h.failures = h.failures[1:]
		h.fail(w, status, "")
		return
	}
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		h.fail(w, http.StatusUnauthorized, "RepoNotFound")
		return
	}
	if h.gated {
		h.fail(w, http.StatusForbidden, "GatedRepo")
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/api/models/"); ok {
		id, name, _ := strings.Cut(rest, "/revision/")
		h.list(w, r, id, name)
		return
	}
	id, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/resolve/")
	commit, file, ok2 := strings.Cut(rest, "/")
	if to := h.renamed[id]; to != "" {
		w.Header().Set("Location", "/"+to+"/resolve/"+rest)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	rev := h.models[id][commit]
	if !ok || !ok2 || rev == nil {
		h.fail(w, http.StatusNotFound, "RepoNotFound")
		return
	}
	text, ok := rev.files[file]
	if !ok {
		h.fail(w, http.StatusNotFound, "EntryNotFound")
		return
	}
	w.Header().Set("X-Repo-Commit", rev.commit)
	if len(text) >= large {
		w.Header().Set("X-Linked-Etag", `"`+etagOf(text)+`"`)
		w.Header().Set("X-Linked-Size", strconv.Itoa(len(text)))
		w.Header().Set("Etag", `"of-the-redirect"`)
		w.Header().Set("Location", h.content.URL+"/"+id+"/"+commit+"/"+file)
		w.WriteHeader(http.StatusFound)
		return
	}
	w.Header().Set("Etag", `W/"`+etagOf(text)+`"`)
	h.transfer(w, r, text)
}

func (h *fakeHub) list(w http.ResponseWriter, r *http.Request, id, name string) {
	if to := h.renamed[id]; to != "" {
		http.Redirect(w, r, "/api/models/"+to+"/revision/"+name, http.StatusTemporaryRedirect)
		return
	}
	switch {
	case h.models[id] == nil:
		h.fail(w, http.StatusNotFound, "RepoNotFound")
		return
	case h.models[id][name] == nil:
		h.fail(w, http.StatusNotFound, "RevisionNotFound")
		return
	}
	listing := struct {
		SHA      string              `json:"sha"`
		Siblings []map[string]string `json:"siblings"`
	}{SHA: h.models[id][name].commit}
	for file := range h.models[id][name].files {
		listing.Siblings = append(listing.Siblings, map[string]string{"rfilename": file})
	}
	_ = json.NewEncoder(w).Encode(listing)
}

func (h *fakeHub) serveContent(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls["content "+r.URL.Path]++
	h.leaked = h.leaked || r.Header.Get("Authorization") != ""
	for id, revisions := range h.models {
		for commit, rev := range revisions {
			if file, ok := strings.CutPrefix(r.URL.Path, "/"+id+"/"+commit+"/"); ok {
				h.transfer(w, r, rev.files[file])
				return
			}
		}
	}
	w.WriteHeader(http.StatusNotFound)
}

// transfer sends text, or what is asked for of it, as far as it is allowed to.
func (h *fakeHub) transfer(w http.ResponseWriter, r *http.Request, text string) {
	if h.corrupt {
		text = strings.ToUpper(text)
	}
	from := 0
	if asked := r.Header.Get("Range"); asked != "" {
		h.ranges = append(h.ranges, asked)
		from, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(asked, "bytes="), "-"))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(text)-from))
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(text)-1, len(text)))
		w.WriteHeader(http.StatusPartialContent)
	}
	if r.Method == http.MethodHead {
		return
	}
	text = text[from:]
	if len(h.cut) > 0 {
		text = text[:h.cut[0]]
		h.cut = h.cut[1:]
		if h.stall {
			_, _ = w.Write([]byte(text))
			w.(http.Flusher).Flush()
			<-r.Context().Done() // the client went
			return
		}
	}
	_, _ = w.Write([]byte(text)) // too little: the server ends the connection
}
