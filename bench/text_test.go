package bench

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
)

// quarters counts as the simulated engine does without a tokenizer.
func quarters(_ context.Context, text string) (int, error) { return (len(text) + 3) / 4, nil }

func TestTextHasTheWantedLength(t *testing.T) {
	w, err := NewWriter(t.Context(), "by quarters", quarters)
	if err != nil {
		t.Fatal(err)
	}
	for _, tokens := range []int{0, 1, 2, 48, 1000, 20_000} {
		text := w.Text(newRand(1, 2), tokens)
		n, _ := quarters(t.Context(), text)
		// A word at the end may be too much or too little, and costs are rounded to
		// an eighth of a token.
		if tolerance := 3 + 0.02*float64(tokens); math.Abs(float64(n-tokens)) > tolerance {
			t.Errorf("%d tokens instead of %d", n, tokens)
		}
		if text != w.Text(newRand(1, 2), tokens) {
			t.Error("the same seed gives two texts")
		}
		if tokens > 0 && !strings.HasPrefix(text, " ") {
			t.Errorf("text %.20q cannot be joined", text)
		}
	}
	if a, b := w.Text(newRand(1, 2), 50), w.Text(newRand(1, 3), 50); a[:20] == b[:20] {
		t.Errorf("two streams give one text: %q", a)
	}
}

func TestWriterNeedsACounterThatCounts(t *testing.T) {
	boom := errors.New("boom")
	if _, err := NewWriter(t.Context(), "", func(context.Context, string) (int, error) { return 0, boom }); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if _, err := NewWriter(t.Context(), "", func(context.Context, string) (int, error) { return 7, nil }); err == nil {
		t.Error("no error for a counter that always says 7")
	}
}
