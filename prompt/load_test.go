package prompt_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt"
)

// TestFetch: a tokenizer that is no folder is fetched in the background, and
// until it is there the model is served without.
func TestFetch(t *testing.T) {
	small := smallModel()
	fetching, goOn := make(chan struct{}), make(chan struct{})
	asked := ""
	fetch := func(_ context.Context, tokenizer, revision string, report func(string, int64, int64)) (string, error) {
		asked = tokenizer + "@" + revision
		report("tokenizer.json", 3_100_000, 7_000_000)
		close(fetching)
		<-goOn
		return small.Tokenizer, nil
	}
	remote := small
	remote.Tokenizer, remote.TokenizerRevision = "org/model", "v2"
	e, err := prompt.NewEncoder(config(remote), prompt.Options{Fetch: fetch})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	<-fetching
	if e.Ready() || e.Model(small.Name) != nil {
		t.Error("ready before the files are there")
	}
	if got := e.State(small.Name); got != "fetching org/model: tokenizer.json, 3.1 of 7.0 MB" {
		t.Errorf("state %q", got)
	}
	close(goOn)
	if err := e.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if asked != "org/model@v2" || e.Model(small.Name) == nil || e.State(small.Name) != "" {
		t.Errorf("asked for %s, loaded %t, state %q", asked, e.Model(small.Name) != nil, e.State(small.Name))
	}
}

// TestFetchFails: other models do not wait, and the state says why.
func TestFetchFails(t *testing.T) {
	small := smallModel()
	missing := prompt.ModelConfig{Name: "missing", Tokenizer: "org/missing"}
	fetch := func(context.Context, string, string, func(string, int64, int64)) (string, error) {
		return "", errors.New("no such model")
	}
	e, err := prompt.NewEncoder(config(missing, small), prompt.Options{Fetch: fetch})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close() // ends what would try again
	if err := e.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "model missing: no such model") {
		t.Errorf("error %v", err)
	}
	if e.Model(small.Name) == nil {
		t.Error("the model in a folder was not loaded")
	}
	if got := e.State("missing"); got != "failed: no such model" {
		t.Errorf("state %q", got)
	}
}
