package engine

import (
	"context"
	"net/http"
	"testing"

	"github.com/firsttoken/firsttoken/prompt"
)

// FuzzGenerationRequest: whatever a client sends, the answer is a request within
// its limits or a fault with a status; and what is accepted has prompts.
func FuzzGenerationRequest(f *testing.F) {
	for _, body := range []string{
		`{"prompt":"x"}`, `{"prompt":[1,2]}`, `{"prompt":["a","b"],"n":3}`, `{"prompt":[[1],[2]]}`,
		`{"messages":[{"role":"user","content":"q"}],"max_completion_tokens":3}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"q"}]}],"max_tokens":"7"}`,
		`{"prompt":"x","stream":"true","stream_options":{"include_usage":1},"min_tokens":2.0}`,
		`{"prompt":"x","max_tokens":1e400}`, `{"prompt":"x","n":-9223372036854775808}`, `{"prompt":"\ud83d"}`,
		"\xef\xbb\xbfnull", `[`, ``, `{"prompt":1.5}`, `{} {}`,
	} {
		f.Add(true, []byte(body))
		f.Add(false, []byte(body))
	}
	f.Fuzz(func(t *testing.T, chat bool, body []byte) {
		path := pathCompletions
		if chat {
			path = pathChat
		}
		req, fault := parseGeneration(path, body)
		if fault != nil {
			if fault.Status < http.StatusBadRequest || fault.Message == "" || len(appendJSON(nil, fault)) == 0 {
				t.Errorf("fault %+v", fault)
			}
			return
		}
		if req.n < 1 || req.maxTokens < 0 || req.minTokens < 0 || req.maxTokens > 0 && req.minTokens > req.maxTokens {
			t.Errorf("request %+v", req)
		}
		prompts, err := byteText{}.encode(context.Background(), prompt.Request{Path: path, Body: body})
		if err != nil {
			return
		}
		for _, p := range prompts {
			if len(p.TokenIDs) == 0 {
				t.Errorf("an empty prompt from %s", body)
			}
		}
		if len(prompts) == 0 {
			t.Errorf("no prompt and no fault from %s", body)
		}
	})
}
