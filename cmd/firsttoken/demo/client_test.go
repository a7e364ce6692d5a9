package demo

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const goodStream = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}

data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}

data: {"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"length"}]}

data: {"choices":[],"usage":{"prompt_tokens":12,"total_tokens":14,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}

data: [DONE]

`

func TestChat(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if want := `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":2,"stream":true,"stream_options":{"include_usage":true}}`; string(body) != want {
			t.Errorf("%s body %s, want %s", r.URL.Path, body, want)
		}
		w.Header().Set("x-firsttoken-id", "7")
		fmt.Fprint(w, goodStream)
	}))
	defer server.Close()
	c := newClient(server.URL, "m", 1)
	defer c.close()
	got, err := c.chat(t.Context(), []message{{"user", "hi"}}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if got.ttft <= 0 {
		t.Errorf("ttft %v", got.ttft)
	}
	got.ttft = 0
	if want := (answer{text: "Hello", promptTokens: 12, cachedTokens: 8, id: "7"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestChatNamesStatusAndBodyOfAFailure(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error":{"message":"no ready endpoint"}}`, http.StatusServiceUnavailable)
	}))
	defer server.Close()
	c := newClient(server.URL, "m", 1)
	defer c.close()
	_, err := c.chat(t.Context(), nil, 2)
	if err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "no ready endpoint") {
		t.Errorf("error %v", err)
	}
}

func TestCutStreamIsAnError(t *testing.T) {
	var a answer
	firsts := 0
	cut, _, _ := strings.Cut(goodStream, "data: [DONE]")
	err := a.read(strings.NewReader(cut), func() { firsts++ })
	if !errors.Is(err, io.ErrUnexpectedEOF) || firsts != 1 {
		t.Errorf("error %v with %d first events, want ErrUnexpectedEOF with 1", err, firsts)
	}
}
