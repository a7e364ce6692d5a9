package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/firsttoken/firsttoken/hub"
	"github.com/firsttoken/firsttoken/prompt"
)

// fetchTokenizer fetches tokenizers from the hub that the environment names.
func fetchTokenizer() (prompt.Fetch, error) {
	settings, err := hub.FromEnvironment()
	if err != nil {
		return nil, err
	}
	client := hub.New(settings)
	return func(ctx context.Context, tokenizer, revision string, report func(string, int64, int64)) (string, error) {
		return client.Fetch(ctx, hub.Model{ID: tokenizer, Revision: revision}, prompt.TokenizerFiles, func(p hub.Progress) {
			report(p.File, p.Done, p.Size)
		})
	}, nil
}

// onHub reports whether a tokenizer is to be fetched: an existing folder wins.
func onHub(tokenizer string) bool { return hub.IsID(tokenizer) && !isFolder(tokenizer) }

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// tokenizerFolder is the folder of a tokenizer that a command needs now, fetched
// where it has to be. It says so on progress.
func tokenizerFolder(ctx context.Context, tokenizer, revision string, progress io.Writer) (string, error) {
	if !onHub(tokenizer) {
		return tokenizer, nil
	}
	fetch, err := fetchTokenizer()
	if err != nil {
		return "", err
	}
	last := ""
	return fetch(ctx, tokenizer, revision, func(file string, _, size int64) {
		if file != last {
			last = file
			fmt.Fprintf(progress, "fetching %s: %s, %d bytes\n", tokenizer, file, size)
		}
	})
}

// tokenizerSummary says for people where a tokenizer is.
func tokenizerSummary(m prompt.ModelConfig) string {
	if m.Tokenizer == "" {
		return "the engines are asked for its tokens"
	}
	if onHub(m.Tokenizer) {
		return fmt.Sprintf("tokenizer %s of the hub (there is no such folder on this machine)", hub.Model{ID: m.Tokenizer, Revision: m.TokenizerRevision})
	}
	return "tokenizer in " + m.Tokenizer
}
