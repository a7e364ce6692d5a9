package demo

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/bench"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

func TestSummary(t *testing.T) {
	var results []result
	for i := 20; i >= 1; i-- {
		results = append(results, result{answer: bench.Answer{FirstToken: time.Duration(i) * time.Second, Usage: bench.Usage{Prompt: 100, Cached: 25}}})
	}
	got := summarize("p", results)
	want := summary{policy: "p", requests: 20, mean: 10500 * time.Millisecond, p50: 10 * time.Second, p95: 19 * time.Second, hitShare: 0.25}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(summary{})); diff != "" {
		t.Error(diff)
	}
}

func TestSummaryOfNothing(t *testing.T) {
	if got := summarize("p", nil); got != (summary{policy: "p"}) {
		t.Errorf("got %+v", got)
	}
}

func TestQuantileOfOneValue(t *testing.T) {
	for _, q := range []float64{0, 0.5, 0.95, 1} {
		if got := quantile([]time.Duration{3}, q); got != 3 {
			t.Errorf("quantile(%v) = %v, want 3", q, got)
		}
	}
}

func TestTable(t *testing.T) {
	got := table([]summary{
		{policy: "roundrobin", requests: 50, mean: 800 * time.Millisecond, p50: 700 * time.Millisecond, p95: 2 * time.Second, hitShare: 0.301},
		{policy: "trapezoid", requests: 50, mean: 200 * time.Millisecond, p50: 90 * time.Millisecond, p95: time.Second, hitShare: 0.888},
	})
	want := `policy       requests    mean TTFT     p50 TTFT     p95 TTFT  hit share mean, relative
roundrobin         50       800 ms       700 ms      2000 ms        30%           1.00
trapezoid          50       200 ms        90 ms      1000 ms        89%           0.25
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

var testResult = result{
	name: "chat 1", turn: 2, answer: bench.Answer{FirstToken: 61 * time.Millisecond, Usage: bench.Usage{Prompt: 2412}, Endpoint: "b:1"},
	decision: &firsttokenv1.Decision{
		Reason: "cached", TtftSeconds: new(0.058),
		Candidates: []*firsttokenv1.Candidate{
			{Address: "b:1", CachedTokens: new(uint32(2304)), BacklogSeconds: 0, EstimateSeconds: 0.06},
			{Address: "a:1", CachedTokens: new(uint32(0)), BacklogSeconds: 1.2344, EstimateSeconds: 2},
		},
	},
}

func TestRequestLine(t *testing.T) {
	var out bytes.Buffer
	p := &printer{out: &out}
	p.begin("trapezoid", []string{"a:1", "b:1", "c:1"}, 50)
	p.request(testResult)
	p.request(result{name: "chat 1", turn: 3, answer: bench.Answer{FirstToken: 70 * time.Millisecond, Usage: bench.Usage{Prompt: 2500}, Endpoint: "a:1"}})
	p.end()
	want := `
trapezoid: 50 requests
request     tokens  cached per engine    busy for ms        choice             estimate      TTFT  client's
chat 1.2      2412  0 / 2304 / ?         1234 / 0 / ?       engine-2 cached       60 ms     58 ms     61 ms
chat 1.3      2500  ? / ? / ?            ? / ? / ?          engine-1 by Envoy         ?         ?     70 ms
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// On a terminal the progress line is rewritten; elsewhere no control bytes are
// written.
func TestProgressLine(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		var out bytes.Buffer
		p := &printer{out: &out, terminal: terminal}
		p.begin("trapezoid", nil, 50)
		p.request(testResult)
		if got := strings.Contains(out.String(), "1 of 50, mean TTFT 61 ms"); got != terminal {
			t.Errorf("terminal %v: progress line written: %v", terminal, got)
		}
		if got := strings.Contains(out.String(), "\x1b"); got != terminal {
			t.Errorf("terminal %v: control bytes written: %v", terminal, got)
		}
	}
}
