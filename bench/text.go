package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
)

// Counter counts the tokens of a text, without special ones.
type Counter func(ctx context.Context, text string) (int, error)

// Writer makes texts of a wanted length. What they say does not matter; that no
// two share more than a few leading words does. Safe for concurrent use.
type Writer struct {
	// Counting says how tokens were counted, for people.
	Counting string
	// cost is what each of vocabulary adds to a text, in tokens. Set once.
	cost []float64
}

// OneTokenAWord takes each word for a token: the last resort.
func OneTokenAWord() *Writer {
	w := &Writer{Counting: "one word is taken for a token", cost: make([]float64, len(vocabulary))}
	for i := range w.cost {
		w.cost[i] = 1
	}
	return w
}

// repeats is how often a word is counted in a row, for those that are no whole
// number of tokens.
const repeats = 8

// NewWriter learns from count what each word costs: about a hundred short calls.
// counting says how it counts.
func NewWriter(ctx context.Context, counting string, count Counter) (*Writer, error) {
	w := &Writer{Counting: counting, cost: make([]float64, len(vocabulary))}
	const start = "Text:"
	before, err := count(ctx, start)
	if err != nil {
		return nil, err
	}
	for i, word := range vocabulary {
		n, err := count(ctx, start+strings.Repeat(" "+word, repeats))
		if err != nil {
			return nil, err
		}
		if n <= before {
			return nil, fmt.Errorf("the word %q makes a text of %d tokens no longer; is it counted by the right tokenizer?", word, before)
		}
		w.cost[i] = float64(n-before) / repeats
	}
	return w, nil
}

// Text is about tokens long, each word with a space before it, so that texts
// can be joined. It is the same for the same state of rng.
func (w *Writer) Text(rng *rand.Rand, tokens int) string {
	var b strings.Builder
	w.append(&b, rng, float64(tokens))
	return b.String()
}

// append adds words until the next one would bring the text further from its
// wanted length than it is.
func (w *Writer) append(b *strings.Builder, rng *rand.Rand, tokens float64) {
	for length := 0.0; length < tokens; {
		i := rng.IntN(len(vocabulary))
		if length += w.cost[i]; length-tokens >= w.cost[i]/2 {
			return
		}
		b.WriteByte(' ')
		b.WriteString(vocabulary[i])
	}
}

// Vocabulary are the words that texts are made of. The caller does not change
// them.
func Vocabulary() []string { return vocabulary }

var vocabulary = strings.Fields(`
	the a this that every some no one who where when while after before because
	request token model engine prompt answer question document page table price
	river mountain village bridge harbour train station winter summer morning
	light water stone paper letter window garden kitchen music market island
	reads writes sends keeps finds builds opens closes moves counts measures waits
	carries shares learns forgets begins ends returns explains compares repeats
	quick slow long short early late warm cold quiet busy empty full simple old new
	and or but with without under over between across beside through against along`)

// Tokenize counts by the endpoint's own /tokenize, as vLLM has it.
func (c *Client) Tokenize(ctx context.Context, text string) (int, error) {
	body, err := json.Marshal(map[string]any{"model": c.target.Model, "prompt": text, "add_special_tokens": false})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.target.Timeout, errTimeout)
	defer cancel()
	resp, err := c.post(ctx, "/tokenize", body, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("/tokenize: status %d: %.200s", resp.StatusCode, answer)
	}
	var counted struct {
		Count *int `json:"count"`
	}
	if err := json.Unmarshal(answer, &counted); err != nil || counted.Count == nil {
		return 0, fmt.Errorf("/tokenize: no count in %.200q", answer)
	}
	return *counted.Count, nil
}
