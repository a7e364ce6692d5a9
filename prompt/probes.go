package prompt

import "encoding/json"

// probe is a prompt of our own that is compared when a model is loaded.
type probe struct {
	name    string
	request Request
}

// probesOf are requests whose ids show each part of encoding by itself: the
// template with and without a system prompt, several turns, what is put around
// a plain text, and text outside of ASCII.
func probesOf(model string) []probe {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	chat := func(name string, messages ...message) probe {
		return newProbe(name, chatPath, map[string]any{"model": model, "messages": messages})
	}
	text := func(name, prompt string) probe {
		return newProbe(name, completionPath, map[string]any{"model": model, "prompt": prompt})
	}
	return []probe{
		chat("system and user", message{"system", "You are a careful assistant."}, message{"user", "What is the capital of France?"}),
		chat("user alone", message{"user", "Hello, who are you?"}),
		chat("several turns", message{"system", "Answer briefly."}, message{"user", "Name a prime."},
			message{"assistant", "Seven."}, message{"user", "Another one,\nplease."}),
		text("plain text", "Once upon a time, there were 1024 engines."),
		text("unicode", "Grüezi mitenand \u2014 \u6771\u4eac 2026\u5e74, na\u0069\u0308ve caf\u00e9 \U0001f642\u200d\n\t  x = [1, 2];"),
	}
}

func newProbe(name, path string, body map[string]any) probe {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and maps of strings
	}
	return probe{name, Request{Path: path, Body: text}}
}
