package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An alias of a model that is nowhere is worth a word, and no fault: its engine
// may come later.
func TestAliasOfNoModelIsWarnedOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.yml")
	text := "aliases: {fast: m, gone: other}\nendpoints: [{address: '10.0.0.1:8000', models: [m]}, {address: '10.0.0.2:8000', models: [n]}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := checkFile(t, "--config", file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, `warning: aliases.gone: stands for "other", which no endpoint serves`) || strings.Contains(out, "aliases.fast") {
		t.Errorf("says\n%s", out)
	}
}
