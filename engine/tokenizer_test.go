package engine_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/test/shared"
)

// qwen is the folder of Qwen2.5's tokenizer. The test is skipped where it is
// missing, or the native library.
func qwen(t *testing.T) string {
	t.Helper()
	return loadable(t, shared.File(t, "tokenizers", "qwen2.5"))
}

// loadable skips where this build has no tokenizer.
func loadable(t *testing.T, dir string) string {
	t.Helper()
	m, err := prompt.LoadModel(prompt.ModelConfig{Tokenizer: dir})
	if errors.Is(err, native.ErrNotBuilt) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	return dir
}

func TestTokensAreTheModelsOwn(t *testing.T) {
	cfg := config()
	cfg.Tokenizer = qwen(t)
	r := start(t, cfg)

	// The ids are those of the trace, computed by vLLM.
	const hello = "[151644 8948 198 2610 525 1207 16948 11 3465 553 54364 14817 13 1446 525 264 10950 17847 13 151645 198 151644 872 198 9707 11 879 525 498 30 151645 198 151644 77091 198]"
	messages := []object{{"role": "user", "content": "Hello, who are you?"}}
	chat := r.post("/v1/chat/completions", object{"messages": messages, "max_tokens": 2, "return_token_ids": true})
	rendered := r.post("/v1/chat/completions/render", object{"messages": messages})
	tokenized := r.post("/tokenize", object{"messages": messages})
	for name, got := range map[string]any{
		"chat":     chat.field(t, "prompt_token_ids"),
		"render":   rendered.field(t, "token_ids"),
		"tokenize": tokenized.field(t, "tokens"),
	} {
		if fmt.Sprint(got) != hello {
			t.Errorf("%s gives %v, want %s", name, got, hello)
		}
	}
	if got := r.post("/v1/completions/render", object{"prompt": []string{"Hello", "Hello, who"}}).field(t, "1.token_ids"); fmt.Sprint(got) != "[9707 11 879]" {
		t.Errorf("completions/render gives %v", got)
	}
	if got := r.post("/tokenize", object{"prompt": "Hello, who"}).body; got != `{"count":3,"max_model_len":32768,"tokens":[9707,11,879],"token_strs":null}` {
		t.Errorf("tokenize gives %s", got)
	}
	if got := r.post("/detokenize", object{"tokens": []int{9707, 11, 879}}).body; got != `{"prompt":"Hello, who"}` {
		t.Errorf("detokenize gives %s", got)
	}
	if got := r.post("/v1/completions", object{"prompt": []int{9707, 11, 879}, "max_tokens": 1, "echo": true}).field(t, "choices.0.text"); got != "Hello, whoYes" {
		t.Errorf("echo gives %q", got)
	}
}

func TestAConversationFindsItsAnswersCached(t *testing.T) {
	cfg := config()
	cfg.Tokenizer = qwen(t)
	r := start(t, cfg)
	messages := []object{{"role": "user", "content": "Tell me a story of a river and a garden, please, and make it a long one."}}
	first := r.post("/v1/chat/completions", object{"messages": messages, "max_tokens": 200})
	before := first.field(t, "usage.total_tokens").(float64)
	answer := first.field(t, "choices.0.message.content")
	messages = append(messages, object{"role": "assistant", "content": answer}, object{"role": "user", "content": "Go on."})
	second := r.post("/v1/chat/completions", object{"messages": messages, "max_tokens": 1})
	// All of prompt and answer but the answer's last token, in blocks of 16.
	want := float64(int(before-1) / 16 * 16)
	if got := second.field(t, "usage.prompt_tokens_details.cached_tokens"); got != want {
		t.Errorf("%v tokens cached, want %v", got, want)
	}
}

// TestErrorsAreWordedAsByTheModelsEngine: the prompt package finds what vLLM
// finds, and the engine passes it on.
func TestErrorsAreWordedAsByTheModelsEngine(t *testing.T) {
	cfg := config()
	cfg.Tokenizer = qwen(t)
	r := start(t, cfg)
	for _, c := range []struct {
		body, want string
	}{
		{
			`{"messages":[]}`,
			`{"error":{"message":"Cannot apply chat template to an empty conversation. Provide at least one message.","type":"BadRequestError","param":null,"code":400}}`,
		},
		{
			`{"model": "x", `,
			`{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.15', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}","type":"Bad Request","param":"body.15","code":400}}`,
		},
	} {
		got := r.do(http.MethodPost, "/v1/chat/completions", c.body)
		if got.StatusCode != http.StatusBadRequest || got.body != c.want {
			t.Errorf("%s: status %d\n got %s\nwant %s", c.body, got.StatusCode, got.body, c.want)
		}
	}
}
