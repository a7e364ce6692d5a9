package engine_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/engine"
)

// TestAdaptersAreModelsOfTheirOwn: listed below the engine's own model, answered
// under their name, and never served from what another computed.
func TestAdaptersAreModelsOfTheirOwn(t *testing.T) {
	cfg := config()
	cfg.Adapters = []engine.Adapter{{Name: "sql", Path: "/adapters/sql"}, {Name: "law", Path: "/adapters/law"}}
	r := start(t, cfg)
	models := r.do(http.MethodGet, "/v1/models", "")
	for path, want := range map[string]any{
		"data.0.parent": nil, "data.2.id": "sql", "data.2.parent": "m", "data.2.root": "/adapters/sql", "data.2.max_model_len": nil, "data.3.id": "law",
	} {
		if got := models.field(t, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	for i, c := range []struct {
		model, salt string
		cached      float64
	}{
		{"m", "", 0},
		{"sql", "", 0},
		{"law", "", 0},
		{"sql", "s", 0},
		{"m", "sql", 0},
		{"alias", "", 96},
		{"sql", "", 96},
		{"law", "", 96},
		{"sql", "s", 96},
		{"m", "sql", 96},
	} {
		got := r.post("/v1/completions", object{"model": c.model, "cache_salt": c.salt, "prompt": ids(1, 100), "max_tokens": 1})
		if n := got.field(t, "usage.prompt_tokens_details.cached_tokens"); n != c.cached {
			t.Errorf("request %d, model %s, salt %q: %v cached, want %v", i, c.model, c.salt, n, c.cached)
		}
		if name := got.field(t, "model"); name != c.model && (c.model != "alias" || name != "m") {
			t.Errorf("the answer's model is %v, want %s", name, c.model)
		}
	}
}

// TestBlocksOfOddSizes: models with mixed attention have blocks that are no power
// of two.
func TestBlocksOfOddSizes(t *testing.T) {
	cfg := config()
	cfg.BlockTokens = 528
	r := start(t, cfg)
	for _, want := range []float64{0, 2 * 528} {
		got := r.post("/v1/completions", object{"prompt": ids(1, 3*528), "max_tokens": 1})
		if n := got.field(t, "usage.prompt_tokens_details.cached_tokens"); n != want {
			t.Errorf("%v cached, want %v", n, want)
		}
	}
	info := r.do(http.MethodGet, "/metrics", "").body
	if !strings.Contains(info, `block_size="528"`) || !strings.Contains(info, `num_gpu_blocks="121"`) || !strings.Contains(info, `kv_cache_size_tokens="63888"`) {
		t.Error("cache_config_info tells other sizes")
	}
}

// TestTemplateAndTimeZoneAreSettings: what a chat becomes follows from both.
func TestTemplateAndTimeZoneAreSettings(t *testing.T) {
	tokenizer := loadable(t, "../test/tokenizer")
	template := filepath.Join(t.TempDir(), "template.jinja")
	if err := os.WriteFile(template, []byte(`{{ strftime_now("%d %H") }} {{ messages[0]["content"] }}`), 0o600); err != nil {
		t.Fatal(err)
	}
	text := func(zone, template string) string {
		cfg := config()
		cfg.Tokenizer, cfg.TimeZone, cfg.ChatTemplate = tokenizer, zone, template
		r := start(t, cfg)
		tokens := r.post("/tokenize", object{"messages": []object{{"role": "user", "content": "hello"}}}).field(t, "tokens")
		return r.post("/detokenize", object{"tokens": tokens}).field(t, "prompt").(string)
	}
	own, east, west := text("UTC", ""), text("Pacific/Kiritimati", template), text("Pacific/Pago_Pago", template)
	if strings.HasSuffix(own, " hello") || !strings.HasSuffix(east, " hello") || !strings.HasSuffix(west, " hello") || east == west {
		t.Errorf("rendered %q, %q and %q", own, east, west)
	}
}
