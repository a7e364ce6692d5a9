package trace_test

import (
	"errors"
	"testing"

	"github.com/firsttoken/firsttoken/simulator/trace"
)

// checked reads foreign bytes; whatever comes out is fit to be replayed, and
// whatever is wrong is said of the file.
func checked(t *testing.T, format trace.Format, text string) {
	t.Helper()
	got, err := read(trace.Options{Format: format}, text)
	if err != nil {
		fault, ok := errors.AsType[*trace.Error](err)
		if !ok || fault.File != "a" || fault.Fault == "" || fault.Line < 0 {
			t.Fatalf("error %#v, want one that names the file", err)
		}
		return
	}
	for i, r := range got.Requests {
		switch {
		case r.At < 0 || i > 0 && r.At < got.Requests[i-1].At:
			t.Fatalf("request %d comes at %s", i, r.At)
		case r.Prompt < 1 || r.Output < 1:
			t.Fatalf("request %d has %d and %d tokens", i, r.Prompt, r.Output)
		case len(r.Blocks) > 0 && (got.BlockTokens < 1 || (len(r.Blocks)-1)*got.BlockTokens >= r.Prompt):
			t.Fatalf("request %d has %d blocks of %d for %d tokens", i, len(r.Blocks), got.BlockTokens, r.Prompt)
		}
	}
}

func FuzzMooncake(f *testing.F) {
	f.Add(mooncake1 + "\n" + mooncake2)
	f.Add(`{"timestamp": 1e400}`)
	f.Fuzz(func(t *testing.T, text string) { checked(t, trace.Mooncake, text) })
}

func FuzzAzure(f *testing.F) {
	f.Add(azureHead + "2023-11-16 18:17:03.9799600,4808,10\n")
	f.Add(azureHead + "\"2023-11-16 18:17:03\",4808,10\n\n")
	f.Fuzz(func(t *testing.T, text string) { checked(t, trace.Azure, text) })
}

func FuzzDecisions(f *testing.F) {
	f.Add(`{"decisions":[{"id":"b","time":"2026-11-21T10:00:02Z","prompt_tokens":130,"prefix_blocks":["5","6"],"block_tokens":64}]}`)
	f.Add(`{"id":"a","time":"2026-11-21T10:00:00Z","prompt_tokens":64,"ttft_seconds":0.5,"ended":"2026-11-21T10:00:02.500Z"}`)
	f.Fuzz(func(t *testing.T, text string) { checked(t, trace.Decisions, text) })
}

func FuzzRecognise(f *testing.F) {
	f.Add(mooncake1)
	f.Add(azureHead)
	f.Add(`{"decisions":[`)
	f.Fuzz(func(t *testing.T, text string) { checked(t, trace.Auto, text) })
}
