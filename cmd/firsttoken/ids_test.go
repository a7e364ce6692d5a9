package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/test/shared"
)

// TestStatusNamesWrongTemplate: an engine with another chat template is noticed
// before the first request, and /status and the endpoint's findings say so.
func TestStatusNamesWrongTemplate(t *testing.T) {
	folder := filepath.Join(shared.Dir(t), "tokenizers", "qwen2.5")
	other := filepath.Join(t.TempDir(), "other.jinja")
	if err := os.WriteFile(other, []byte(`{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}`), 0o600); err != nil {
		t.Fatal(err)
	}
	about := engine.DefaultConfig()
	about.Models, about.Tokenizer, about.ChatTemplate = []string{"m"}, folder, other
	simulated, err := engine.New(about)
	switch {
	case errors.Is(err, native.ErrNotBuilt):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(simulated.Close)
	if err := simulated.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}

	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{{Address: simulated.Address()}}
	cfg.Prompt.Models = []prompt.ModelConfig{{Name: "m", Tokenizer: folder}}
	cfg.Prompt.CheckInterval = 10 * time.Millisecond
	b := startService(t, cfg)
	var view status
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text := get(t, b, "/status", &view)
		if len(view.Models) == 1 && view.Models[0].IDs != nil && view.Models[0].IDs.RemoteSince != nil && len(view.Fleet) == 1 && len(view.Fleet[0].Findings) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the difference is not in the status:\n%s", text)
		}
	}
	d := view.Models[0].IDs.Difference
	if !strings.Contains(d.Cause, "chat template") || !strings.Contains(d.Theirs, "[system]") || !strings.Contains(d.Ours, "<|im_start|>") {
		t.Errorf("%+v", d)
	}
	if f := view.Fleet[0].Findings[0]; !strings.Contains(f.Fault, "chat template") || !strings.Contains(f.Fix, "chat_template") {
		t.Errorf("%+v", f)
	}
	if metrics := get(t, b, "/metrics", nil); !strings.Contains(metrics, `firsttoken_prompt_ids_differ{model="m"} 1`) {
		t.Error("no metric of it")
	}
}
