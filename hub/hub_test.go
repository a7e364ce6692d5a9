package hub

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	id     = "org/model"
	first  = "1111111111111111111111111111111111111111"
	second = "2222222222222222222222222222222222222222"
)

var (
	wanted = []string{"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
	files  = map[string]string{
		"tokenizer.json":        strings.Repeat("large tokenizer ", 500),
		"tokenizer_config.json": `{"small": true}`,
		"model.safetensors":     strings.Repeat("weights", 1000),
	}
)

func client(t *testing.T, h *fakeHub, change ...func(*Settings)) *Client {
	t.Helper()
	s := Settings{Endpoint: h.URL, Cache: t.TempDir()}
	for _, c := range change {
		c(&s)
	}
	c := New(s)
	c.retryAfter = time.Microsecond
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func with(cache, token string, offline bool) func(*Settings) {
	return func(s *Settings) { s.Cache, s.Token, s.Offline = cache, token, offline }
}

func fetch(t *testing.T, c *Client, m Model) string {
	t.Helper()
	dir, err := c.Fetch(t.Context(), m, wanted, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFetchFillsTheCacheAsHuggingFaceDoes(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	c := client(t, h)
	last := map[string]Progress{}
	dir, err := c.Fetch(t.Context(), Model{ID: id}, wanted, func(p Progress) { last[p.File] = p })
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(c.settings.Cache, "models--org--model", "snapshots", first); dir != want {
		t.Errorf("folder %s, want %s", dir, want)
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		if read(t, dir, name) != files[name] {
			t.Errorf("%s is not what the hub has", name)
		}
		target, err := os.Readlink(filepath.Join(dir, name))
		if want := filepath.Join("..", "..", "blobs", etagOf(files[name])); err != nil || target != want {
			t.Errorf("%s links to %q (%v), want %q", name, target, err, want)
		}
		if p, n := last[name], int64(len(files[name])); p.Done != n || p.Size != n {
			t.Errorf("last progress of %s: %+v, want %d bytes", name, p, n)
		}
	}
	if got := read(t, c.settings.Cache, "models--org--model", "refs", "main"); got != first {
		t.Errorf("refs/main is %q", got)
	}
	if exists(filepath.Join(dir, "model.safetensors")) {
		t.Error("the weights were fetched")
	}
}

func TestNothingIsFetchedTwice(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	c := client(t, h)
	dir := fetch(t, c, Model{ID: id})
	again := fetch(t, client(t, h, with(c.settings.Cache, "", false)), Model{ID: id})
	if again != dir {
		t.Errorf("second fetch answered with %s, want %s", again, dir)
	}
	for call, n := range h.calls {
		if strings.HasPrefix(call, "content") && n != 1 || strings.HasPrefix(call, "HEAD") && n != 1 {
			t.Errorf("%d times %s", n, call)
		}
	}

	// A new commit with one changed file costs that file.
	changed := map[string]string{"tokenizer.json": files["tokenizer.json"], "tokenizer_config.json": `{"small": false}`}
	h.put(id, second, changed)
	dir = fetch(t, c, Model{ID: id})
	if got := read(t, dir, "tokenizer_config.json"); got != changed["tokenizer_config.json"] {
		t.Errorf("after a new commit the file is %s", got)
	}
	if n := h.calls["content /org/model/"+second+"/tokenizer.json"]; n != 0 {
		t.Errorf("the file that did not change was fetched %d times more", n)
	}
}

func TestATransferThatBreaksGoesOn(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, map[string]string{"tokenizer.json": files["tokenizer.json"]})
	h.cut = []int{1200, 300}
	c := client(t, h)
	dir := fetch(t, c, Model{ID: id})
	if read(t, dir, "tokenizer.json") != files["tokenizer.json"] {
		t.Error("the parts do not make the file")
	}
	if got := strings.Join(h.ranges, " "); got != "bytes=1200- bytes=1500-" {
		t.Errorf("asked for %q", got)
	}
}

// A connection that goes silent is given up, and the transfer goes on from
// where it was.
func TestATransferThatStallsGoesOn(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, map[string]string{"tokenizer.json": files["tokenizer.json"]})
	h.cut, h.stall = []int{1200, 300}, true
	c := client(t, h)
	c.stall = 300 * time.Millisecond
	if read(t, fetch(t, c, Model{ID: id}), "tokenizer.json") != files["tokenizer.json"] {
		t.Error("the parts do not make the file")
	}
	if got := strings.Join(h.ranges, " "); !strings.HasPrefix(got, "bytes=1200- bytes=1500-") {
		t.Errorf("asked for %q", got)
	}
}

func TestAnOlderPartIsGoneOnWith(t *testing.T) {
	h := newFakeHub(t)
	text := files["tokenizer.json"]
	h.put(id, first, map[string]string{"tokenizer.json": text})
	for name, part := range map[string]string{"right": text[:700], "wrong": strings.Repeat("?", 700), "too long": text + text} {
		t.Run(name, func(t *testing.T) {
			c := client(t, h)
			blob := c.cache.blob(Model{ID: id}, etagOf(text))
			if err := os.MkdirAll(filepath.Dir(blob), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(blob+".incomplete", []byte(part), 0o644); err != nil {
				t.Fatal(err)
			}
			if dir := fetch(t, c, Model{ID: id}); read(t, dir, "tokenizer.json") != text {
				t.Error("the file is not what the hub has")
			}
		})
	}
}

func TestContentIsVerified(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	h.corrupt = true
	c := client(t, h)
	if _, err := c.Fetch(t.Context(), Model{ID: id}, wanted, nil); !errors.Is(err, errContent) {
		t.Fatalf("error %v, want %v", err, errContent)
	}
	if _, ok := c.Cached(Model{ID: id}); ok {
		t.Error("a broken file counts as cached")
	}
}

func TestTheTokenGoesToTheHubAlone(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	h.token = "secret"
	c := client(t, h, func(s *Settings) { s.Token = "secret" })
	fetch(t, c, Model{ID: id})
	if h.leaked {
		t.Error("the token was sent to where content is kept")
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name    string
		model   Model
		change  func(*fakeHub)
		status  int
		mention string
	}{
		{"unknown model", Model{ID: "org/other"}, nil, http.StatusNotFound, "name and revision"},
		{"unknown revision", Model{ID: id, Revision: "v9"}, nil, http.StatusNotFound, `no revision "v9"`},
		{"private", Model{ID: id}, func(h *fakeHub) { h.token = "secret" }, http.StatusUnauthorized, "HF_TOKEN"},
		{"gated", Model{ID: id}, func(h *fakeHub) { h.gated = true }, http.StatusForbidden, "licence"},
		{"down", Model{ID: id}, func(h *fakeHub) { h.failures = []int{500, 502, 503, 504, 500} }, http.StatusInternalServerError, "later"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newFakeHub(t)
			h.put(id, first, files)
			if tt.change != nil {
				tt.change(h)
			}
			_, err := client(t, h).Fetch(t.Context(), tt.model, wanted, nil)
			var refused *Error
			if !errors.As(err, &refused) || refused.Status != tt.status || !strings.Contains(err.Error(), tt.mention) {
				t.Fatalf("error %v, want status %d and a word of %q", err, tt.status, tt.mention)
			}
			want := 1
			if refused.MayPass() {
				want = tries
			}
			if n := h.calls["GET /api/models/"+tt.model.ID+"/revision/"+tt.model.revision()]; n != want {
				t.Errorf("asked %d times, want %d", n, want)
			}
		})
	}
}

func TestWhatPassesIsTriedAgain(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	h.failures = []int{http.StatusTooManyRequests, http.StatusBadGateway}
	fetch(t, client(t, h), Model{ID: id})
}

func TestARenamedModelIsFound(t *testing.T) {
	h := newFakeHub(t)
	h.put("new-org/model", first, files)
	h.renamed[id] = "new-org/model"
	if dir := fetch(t, client(t, h), Model{ID: id}); read(t, dir, "tokenizer.json") != files["tokenizer.json"] {
		t.Error("the file is not what the hub has")
	}
}

func TestOffline(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	online := client(t, h)
	dir := fetch(t, online, Model{ID: id})
	h.Close()
	offline := client(t, h, with(online.settings.Cache, "", true))
	for _, m := range []Model{{ID: id}, {ID: id, Revision: first}} {
		if got := fetch(t, offline, m); got != dir {
			t.Errorf("offline %s is in %s, want %s", m, got, dir)
		}
	}
	if _, err := offline.Fetch(t.Context(), Model{ID: id, Revision: "v2"}, wanted, nil); err == nil || !strings.Contains(err.Error(), "HF_HUB_OFFLINE") {
		t.Errorf("error %v, want one that names HF_HUB_OFFLINE", err)
	}
}

func TestTheCacheStandsInForAHubOutOfReach(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	c := client(t, h)
	dir := fetch(t, c, Model{ID: id})
	h.gated = true
	if _, err := c.Fetch(t.Context(), Model{ID: id}, wanted, nil); err == nil {
		t.Error("a refusal was passed over")
	}
	h.Close()
	if got := fetch(t, c, Model{ID: id}); got != dir {
		t.Errorf("without a hub the folder is %s, want %s", got, dir)
	}
	if _, err := c.Fetch(t.Context(), Model{ID: "org/other"}, wanted, nil); err == nil {
		t.Error("what was never fetched is there")
	}
}

func TestSeveralClientsFetchOnce(t *testing.T) {
	h := newFakeHub(t)
	h.put(id, first, files)
	cache := t.TempDir()
	var all sync.WaitGroup
	for range 8 {
		c := client(t, h, with(cache, "", false))
		all.Go(func() {
			if _, err := c.Fetch(t.Context(), Model{ID: id}, wanted, nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := h.calls["content /org/model/"+first+"/tokenizer.json"]; n != 1 {
		t.Errorf("the large file was fetched %d times", n)
	}
}

func TestIsID(t *testing.T) {
	for text, want := range map[string]bool{
		"Qwen/Qwen2.5-7B-Instruct": true, "org/a_b.c": true,
		"": false, "gpt2": false, "./model": false, "/model": false, "~/model": false, "a/b/c": false, "a/": false, "/": false,
		"..": false, "a/..": false, "a--b/c": false, "-a/b": false, "a b/c": false, strings.Repeat("a", 97): false,
	} {
		if IsID(text) != want {
			t.Errorf("IsID(%q) is %t", text, !want)
		}
	}
}

func TestBadRevisionsNeverReachTheCache(t *testing.T) {
	h := newFakeHub(t)
	for _, revision := range []string{"../../x", "a/../b", "/etc", "a//b", `a\b`} {
		if _, err := client(t, h).Fetch(t.Context(), Model{ID: id, Revision: revision}, wanted, nil); err == nil {
			t.Errorf("revision %q was taken", revision)
		}
	}
	if len(h.calls) > 0 {
		t.Errorf("the hub was asked: %v", h.calls)
	}
}

func TestFromEnvironment(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "token"), []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		env  map[string]string
		want Settings
	}{
		{"home", map[string]string{"HF_HOME": home}, Settings{DefaultEndpoint, filepath.Join(home, "hub"), "from-file", false}},
		{"all", map[string]string{"HF_HOME": home, "HF_HUB_CACHE": "/c", "HF_TOKEN": "t", "HF_ENDPOINT": "http://127.0.0.1:1/", "HF_HUB_OFFLINE": "true"}, Settings{"http://127.0.0.1:1", "/c", "t", true}},
		{"cache folder", map[string]string{"XDG_CACHE_HOME": "/x"}, Settings{DefaultEndpoint, "/x/huggingface/hub", "", false}},
		{"token file", map[string]string{"HF_HOME": "/x", "HF_TOKEN_PATH": filepath.Join(home, "token")}, Settings{DefaultEndpoint, "/x/hub", "from-file", false}},
		{"user", map[string]string{"HOME": home}, Settings{DefaultEndpoint, filepath.Join(home, ".cache/huggingface/hub"), "", false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, v := range []string{"HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME", "HF_HUB_DISABLE_IMPLICIT_TOKEN"} {
				t.Setenv(v, tt.env[v])
			}
			if user, ok := tt.env["HOME"]; ok {
				t.Setenv("HOME", user)
			}
			got, err := FromEnvironment()
			if err != nil || got != tt.want {
				t.Errorf("got %+v (%v), want %+v", got, err, tt.want)
			}
		})
	}
	t.Setenv("HF_ENDPOINT", "huggingface.co")
	if _, err := FromEnvironment(); err == nil || !strings.Contains(err.Error(), "HF_ENDPOINT") {
		t.Errorf("error %v, want one that names HF_ENDPOINT", err)
	}
}
