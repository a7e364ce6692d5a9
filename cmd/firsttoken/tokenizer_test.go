package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// hubWith serves the files of a folder as the model org/small.
func hubWith(t *testing.T, folder string) string {
	t.Helper()
	const commit = "0123456789012345678901234567890123456789"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/models/org/small/revision/main", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"sha": %q, "siblings": [{"rfilename": "tokenizer.json"}, {"rfilename": "tokenizer_config.json"}, {"rfilename": "chat_template.jinja"}]}`, commit)
	})
	mux.HandleFunc("GET /org/small/resolve/"+commit+"/{file}", func(w http.ResponseWriter, r *http.Request) {
		text, err := os.ReadFile(filepath.Join(folder, r.PathValue("file")))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Etag", fmt.Sprintf(`"%x"`, sha256.Sum256(text)))
		_, _ = w.Write(text)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// TestEncodeWithATokenizerOfTheHub: the model's id gives the ids that its folder
// gives.
func TestEncodeWithATokenizerOfTheHub(t *testing.T) {
	const folder = "../../test/tokenizer"
	t.Setenv("HF_ENDPOINT", hubWith(t, folder))
	t.Setenv("HF_HOME", t.TempDir())
	encode := func(tokenizer string) (string, error) {
		var out bytes.Buffer
		cmd := newEncodeCommand()
		cmd.SetArgs([]string{"--tokenizer", tokenizer})
		cmd.SetIn(strings.NewReader(`{"path":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"Hello world"}]}}` + "\n"))
		cmd.SetOut(&out)
		cmd.SetErr(&bytes.Buffer{})
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	want, err := encode(folder)
	switch {
	case errors.Is(err, native.ErrNotBuilt):
		t.Skip("this build has no native tokenizer")
	case err != nil || !strings.Contains(want, "token_ids"):
		t.Fatalf("by folder: %s (%v)", want, err)
	}
	if got, err := encode("org/small"); err != nil || got != want {
		t.Errorf("by id: %s (%v), want %s", got, err, want)
	}
	if _, err := encode("org/other"); err == nil || !strings.Contains(err.Error(), "--tokenizer: model org/other: ") || !strings.Contains(err.Error(), "404") {
		t.Errorf("error %v, want one that names the flag, the model and the status", err)
	}
}

// TestAFolderWinsOverTheHub: whether a name is an id depends on what is there.
func TestAFolderWinsOverTheHub(t *testing.T) {
	t.Chdir(t.TempDir())
	if !onHub("org/small") {
		t.Error("org/small is no id")
	}
	if err := os.MkdirAll("org/small", 0o755); err != nil {
		t.Fatal(err)
	}
	if onHub("org/small") {
		t.Error("the folder org/small does not win")
	}
	for _, path := range []string{"./org/small", "/models/org/small", "a/b/c", ""} {
		if onHub(path) {
			t.Errorf("the path %q is an id", path)
		}
	}
}
