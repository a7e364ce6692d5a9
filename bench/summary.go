package bench

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/stat"
)

// Distribution is what matters of many values, in seconds.
type Distribution struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

// Distribute is the distribution of values, which are sorted by it; all 0 where
// there are none.
func Distribute(values []float64) Distribution {
	if len(values) == 0 {
		return Distribution{}
	}
	slices.Sort(values)
	at := func(p float64) float64 { return stat.Quantile(p, stat.Empirical, values, nil) }
	return Distribution{stat.Mean(values, nil), at(0.5), at(0.9), at(0.99), values[len(values)-1]}
}

// Summary is what a run has measured.
type Summary struct {
	// Requests is how many ended, Failed how many of these failed, by kind in
	// Faults. All other figures are of those that did not.
	Requests int          `json:"requests"`
	Failed   int          `json:"failed"`
	Faults   map[Kind]int `json:"faults"`
	// Examples has the detail of one fault of each kind.
	Examples map[Kind]string `json:"examples"`
	// Seconds is from the first request that counts to the end of the last.
	Seconds float64 `json:"seconds"`
	// PromptTokens, CachedTokens and AnswerTokens are sums of the server's count.
	PromptTokens int `json:"prompt_tokens"`
	CachedTokens int `json:"cached_tokens"`
	AnswerTokens int `json:"answer_tokens"`
	// CachedKnown: the server tells CachedTokens.
	CachedKnown bool `json:"cached_known"`
	// TTFT is to the first event with content, Between from one to the next, End
	// to the end of the stream.
	TTFT    Distribution `json:"ttft"`
	Between Distribution `json:"itl"`
	End     Distribution `json:"end"`
	// Late is how long after their time requests were sent.
	Late Distribution `json:"late"`
}

// Summary is of all that ended so far.
func (r *Run) Summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Summarize(r.records)
	const second = float64(time.Second / time.Microsecond)
	if r.between.TotalCount() > 0 {
		at := func(p float64) float64 { return float64(r.between.ValueAtPercentile(p)) / second }
		s.Between = Distribution{r.between.Mean() / second, at(50), at(90), at(99), at(100)}
	}
	end := r.ended
	if end.IsZero() {
		end = time.Now()
	}
	if !r.began.IsZero() {
		s.Seconds = end.Sub(r.began).Seconds()
	}
	return s
}

// Summarize is the summary of records alone: without the time between tokens
// and that of the whole.
func Summarize(records []Record) Summary {
	s := Summary{Requests: len(records), Faults: map[Kind]int{}, Examples: map[Kind]string{}}
	var ttft, end, late []float64
	for i := range records {
		r := &records[i]
		if f := r.Fault; f != nil {
			s.Failed++
			s.Faults[f.Kind]++
			if s.Examples[f.Kind] == "" {
				s.Examples[f.Kind] = f.Detail
			}
			continue
		}
		s.PromptTokens += r.Usage.Prompt
		s.AnswerTokens += r.Usage.Completion
		s.CachedTokens += r.Usage.Cached
		s.CachedKnown = s.CachedKnown || r.Usage.CachedKnown
		ttft, end, late = append(ttft, r.FirstToken.Seconds()), append(end, r.End.Seconds()), append(late, r.Late.Seconds())
	}
	s.TTFT, s.End, s.Late = Distribute(ttft), Distribute(end), Distribute(late)
	return s
}

// HitShare is the part of the prompts' tokens that were cached; 0 where that is
// not known.
func (s *Summary) HitShare() float64 {
	if s.PromptTokens == 0 {
		return 0
	}
	return float64(s.CachedTokens) / float64(s.PromptTokens)
}

// String is a table for people.
func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "requests        %d in %.1f s, %.3f a second; %d failed\n", s.Requests, s.Seconds, perSecond(s.Requests, s.Seconds), s.Failed)
	for _, kind := range slices.Sorted(maps.Keys(s.Faults)) {
		fmt.Fprintf(&b, "  %-14s%d, such as %s\n", kind, s.Faults[kind], s.Examples[kind])
	}
	if s.Requests == s.Failed {
		return b.String()
	}
	cached := ""
	if s.CachedKnown {
		cached = fmt.Sprintf(", %.1f%% of them cached", 100*s.HitShare())
	}
	fmt.Fprintf(&b, "prompt tokens   %d, %.1f a second%s\n", s.PromptTokens, perSecond(s.PromptTokens, s.Seconds), cached)
	fmt.Fprintf(&b, "answer tokens   %d, %.1f a second\n", s.AnswerTokens, perSecond(s.AnswerTokens, s.Seconds))
	fmt.Fprintf(&b, "%-14s%10s%10s%10s%10s%10s\n", "seconds", "mean", "p50", "p90", "p99", "max")
	for _, row := range []struct {
		name string
		d    Distribution
	}{{"TTFT", s.TTFT}, {"between tokens", s.Between}, {"end", s.End}, {"sent late", s.Late}} {
		if row.d.Max == 0 {
			continue // one token each, or a load that knows no lateness
		}
		fmt.Fprintf(&b, "%-14s%10.4f%10.4f%10.4f%10.4f%10.4f\n", row.name, row.d.Mean, row.d.P50, row.d.P90, row.d.P99, row.d.Max)
	}
	return b.String()
}

func perSecond(n int, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(n) / seconds
}
