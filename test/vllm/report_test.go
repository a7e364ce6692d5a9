package vllm_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// report becomes the table of docs/fidelity.md.
type report struct {
	tokenizer string
	sources   []truth
	rows      map[truth][]comparison
}

func newReport(tokenizer string) *report {
	return &report{tokenizer: filepath.Base(tokenizer), rows: make(map[truth][]comparison)}
}

func (r *report) add(source truth, all []comparison) {
	r.sources = append(r.sources, source)
	r.rows[source] = all
}

// The table stands between these lines of the file; what is around them is
// written by people.
const (
	begin = "<!-- begin: written by make e2e-vllm -->\n"
	end   = "<!-- end: written by make e2e-vllm -->\n"
)

func (r *report) write(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s lacks the lines %q and %q", file, begin, end)
	}
	if err := os.WriteFile(file, slices.Concat(before, []byte(begin), r.markdown(), []byte(end), after), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *report) markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Tokenizer: %s. Right: predicted and counted differ by at most a chunk of %d tokens, with KV events a block of %d.\n\n", r.tokenizer, chunkSize, blockSize)
	b.WriteString("| source | step | requests | ids equal | right | equal | worst | predicted tokens | counted tokens | prompt tokens |\n")
	b.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, source := range r.sources {
		for _, s := range []step{stepTurns, stepShared, stepCancel, stepServiceRestart, stepCacheReset, stepEngineRestart, ""} {
			r.row(&b, source, s)
		}
	}
	b.WriteString("\n| source | first token seen by the service, median | by the client, median | the client's later by, median | 95 % |\n")
	b.WriteString("| --- | --- | --- | --- | --- |\n")
	for _, source := range r.sources {
		var seen, measured, late []time.Duration
		for _, c := range r.rows[source] {
			seen, measured, late = append(seen, c.seen), append(measured, c.measured), append(late, c.measured-c.seen)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", source, quantile(seen, 0.5), quantile(measured, 0.5), quantile(late, 0.5), quantile(late, 0.95))
	}
	return b.Bytes()
}

// row is one step of one source; the empty step is their sum.
func (r *report) row(b *bytes.Buffer, source truth, s step) {
	var n, ids, right, equal, worst, predicted, counted, prompts int
	for _, c := range r.rows[source] {
		if s != "" && c.step != s {
			continue
		}
		n++
		if c.idsEqual {
			ids++
		}
		if c.right(source) {
			right++
		}
		if c.predicted == c.counted {
			equal++
		}
		off := c.predicted - c.counted
		if max(off, -off) > max(worst, -worst) {
			worst = off
		}
		predicted, counted, prompts = predicted+c.predicted, counted+c.counted, prompts+c.promptTokens
	}
	if n == 0 {
		return
	}
	name := string(s)
	if s == "" {
		name = "**all**"
	}
	fmt.Fprintf(b, "| %s | %s | %d | %d | %d (%.1f %%) | %d | %+d | %d | %d | %d |\n",
		source, name, n, ids, right, 100*float64(right)/float64(n), equal, worst, predicted, counted, prompts)
}

func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[int(q*float64(len(all)-1))].Round(100 * time.Microsecond)
}
