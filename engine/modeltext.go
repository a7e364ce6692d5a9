package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
)

// modelText uses the model's own tokenizer and chat template.
type modelText struct {
	dir   string
	model *prompt.Model
	zone  *time.Location // in which templates print the date
	words []word

	mu sync.Mutex // guards the following
	// decoder is loaded when first needed: it doubles the memory and few ask
	// for text of ids.
	decoder *native.Tokenizer
}

// loadText loads the tokenizer, or does without.
func loadText(cfg Config) (text, error) {
	if cfg.Tokenizer == "" {
		return byteText{}, nil
	}
	model := prompt.DefaultModelConfig()
	model.Name, model.Aliases, model.Tokenizer, model.MaxModelLen = cfg.Models[0], slices.Clone(cfg.Models[1:]), cfg.Tokenizer, cfg.MaxModelLen
	model.ChatTemplate = cfg.ChatTemplate
	for _, a := range cfg.Adapters {
		model.Aliases = append(model.Aliases, a.Name)
	}
	zone := time.Local
	if cfg.TimeZone != "" {
		var err error
		if zone, err = time.LoadLocation(cfg.TimeZone); err != nil {
			return nil, err
		}
	}
	m, err := prompt.LoadModel(model)
	if err != nil {
		return nil, err
	}
	t := &modelText{dir: cfg.Tokenizer, model: m, zone: zone}
	if t.words, err = t.findWords(); err != nil {
		m.Close()
		return nil, err
	}
	return t, nil
}

// nouns become answers, where the tokenizer has them as one token each. Joined
// again they give the same tokens, so a conversation that contains an answer
// finds it cached, as with a real model.
var nouns = []string{
	"Yes", " time", " water", " house", " night", " light", " world", " hand", " room", " city", " river", " road", " name", " word", " line",
	" year", " day", " way", " life", " work", " story", " music", " paper", " table", " stone", " summer", " winter", " garden", " window", " door",
}

func (t *modelText) findWords() ([]word, error) {
	var words []word
	for _, noun := range nouns {
		body, err := json.Marshal(map[string]any{"prompt": noun, "add_special_tokens": false})
		if err != nil {
			return nil, err
		}
		encoded, err := t.model.Encode(context.Background(), prompt.Request{Path: pathCompletions, Body: body}, time.Now())
		if err != nil {
			return nil, fmt.Errorf("tokenizer %s: %w", t.dir, err)
		}
		if len(encoded.Prompts) == 1 && len(encoded.Prompts[0].TokenIDs) == 1 {
			words = append(words, word{encoded.Prompts[0].TokenIDs[0], noun})
		}
	}
	if len(words) < 2 {
		return nil, fmt.Errorf("tokenizer %s: too few everyday words are one token to make answers of", t.dir)
	}
	return words, nil
}

// encode falls back to bytes for what only the real engine's Python can render.
func (t *modelText) encode(ctx context.Context, r prompt.Request) ([]prompt.EncodedPrompt, error) {
	encoded, err := t.model.Encode(ctx, r, time.Now().In(t.zone))
	switch {
	case err != nil:
		return nil, err
	case encoded.Remote != prompt.RemoteNone:
		return byteText{}.encode(ctx, r)
	}
	return encoded.Prompts, nil
}

func (t *modelText) decode(ctx context.Context, ids []uint32) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.decoder == nil {
		var err error
		if t.decoder, err = native.LoadTokenizer(t.dir, native.Options{}); err != nil {
			return "", err
		}
	}
	return t.decoder.Decode(ctx, ids)
}

func (t *modelText) vocabulary() []word { return t.words }

func (t *modelText) close() {
	t.model.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.decoder != nil {
		t.decoder.Close()
	}
}
