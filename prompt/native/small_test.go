//go:build cgo && !nonative

package native_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// smallGolden is what Python's tokenizers and Jinja2 give for the small
// tokenizer; train.py beside it writes it.
type smallGolden struct {
	Texts []struct {
		Text string   `json:"text"`
		IDs  []uint32 `json:"ids"`
	} `json:"texts"`
	Chats []struct {
		Variables json.RawMessage `json:"variables"`
		goldenChat
	} `json:"chats"`
}

func TestSmallGolden(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(small, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden smallGolden
	if err := json.Unmarshal(text, &golden); err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(small, "chat_template.jinja"))
	if err != nil {
		t.Fatal(err)
	}
	template, err := native.CompileTemplate(string(source))
	if err != nil {
		t.Fatal(err)
	}
	defer template.Close()
	if got := template.ContentFormat(); got != native.ContentString {
		t.Errorf("content format %q, want %q", got, native.ContentString)
	}
	if len(golden.Texts) == 0 || len(golden.Chats) == 0 {
		t.Fatal("the golden file is empty")
	}
	for _, engine := range engines {
		t.Run(string(engine), func(t *testing.T) {
			tokenizer := load(t, small, engine)
			for _, want := range golden.Texts {
				checkIDs(t, tokenizer, want.Text, false, want.IDs)
				checkIDs(t, tokenizer, want.Text, true, want.IDs) // it adds none
			}
			for i, want := range golden.Chats {
				var variables native.Value
				writeJSON(&variables, json.NewDecoder(bytes.NewReader(want.Variables)))
				text, err := textOf(template.Render(t.Context(), &variables, time.Time{}))
				var refusal *native.TemplateError
				switch {
				case want.Error != "":
					if !errors.As(err, &refusal) || refusal.Message != want.Error {
						t.Errorf("chat %d: error %v, want %q", i, err, want.Error)
					}
				case err != nil || text != want.Text:
					t.Errorf("chat %d: error %v,\n got %q\nwant %q", i, err, text, want.Text)
				default:
					checkIDs(t, tokenizer, text, false, want.IDs)
				}
			}
		})
	}
}
