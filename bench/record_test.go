package bench

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCSV(t *testing.T) {
	sent := time.Unix(1000, 500_000_000)
	var b strings.Builder
	err := WriteCSV(&b, []Record{
		{
			User: 3, Question: 2, Between: 20 * time.Millisecond, Late: time.Millisecond,
			Answer: Answer{Sent: sent, FirstToken: 250 * time.Millisecond, End: time.Second, Usage: Usage{100, 9, 64, true}, ID: "x", Endpoint: "e:1", Reason: "cached"},
		},
		{User: 1, Question: 1, Answer: Answer{Sent: sent, End: time.Second}, Fault: &Error{Cut, "unexpected EOF"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	// The first eight columns are those of multi-round-qa, in its order.
	want := `prompt_tokens,generation_tokens,ttft,generation_time,user_id,question_id,launch_time,finish_time,cached_tokens,itl,late,endpoint,reason,id,error
100,9,0.250000,0.750000,3,2,1000.500000,1001.500000,64,0.020000,0.001000,e:1,cached,x,
0,0,,,1,1,1000.500000,1001.500000,,,0.000000,,,,cut
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestParseRange(t *testing.T) {
	for text, want := range map[string]Range{"0": {0, 0}, "2000": {2000, 2000}, "2000-6000": {2000, 6000}} {
		got, err := ParseRange(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "a", "-1", "1-", "6-2", "1-2-3", "1-2x", "-1-2", "1 - 2"} {
		if r, err := ParseRange(text); err == nil {
			t.Errorf("%q is read as %v", text, r)
		}
	}
}

func TestSummary(t *testing.T) {
	var records []Record
	for i := 1; i <= 100; i++ {
		records = append(records, Record{Answer: Answer{FirstToken: time.Duration(i) * time.Second, End: 200 * time.Second, Usage: Usage{10, 2, 5, true}}})
	}
	records = append(records, Record{Fault: &Error{Cut, "one"}}, Record{Fault: &Error{Cut, "two"}}, Record{Fault: &Error{statusKind(503), "busy"}})
	got := Summarize(records)
	want := Summary{
		Requests: 103, Failed: 3, Faults: map[Kind]int{Cut: 2, "status_503": 1}, Examples: map[Kind]string{Cut: "one", "status_503": "busy"},
		PromptTokens: 1000, CachedTokens: 500, AnswerTokens: 200, CachedKnown: true,
		TTFT: Distribution{50.5, 50, 90, 99, 100}, End: Distribution{200, 200, 200, 200, 200},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got.Seconds = 10
	for _, text := range []string{"103 in 10.0 s, 10.300 a second; 3 failed", "cut           2, such as one", "status_503    1, such as busy", "50.0% of them cached", "TTFT             50.5000   50.0000"} {
		if !strings.Contains(got.String(), text) {
			t.Errorf("the summary lacks %q:\n%s", text, got)
		}
	}
}

func TestSummaryOfNothing(t *testing.T) {
	if got := Summarize(nil).String(); !strings.Contains(got, "0 in 0.0 s") || strings.Contains(got, "TTFT") {
		t.Error(got)
	}
}
