package trace_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/simulator/trace"
)

// batches are n requests every 3 s, the last batch but one 1 s before the last.
func batches(n int) []trace.Request {
	var requests []trace.Request
	for _, at := range []int{0, 3, 6, 9, 12, 13} {
		for i := range n {
			requests = append(requests, trace.Request{At: time.Duration(at) * time.Second, Prompt: i + 1, Output: 1})
		}
	}
	return requests
}

func TestBatchesAreSpreadUpToTheNextOne(t *testing.T) {
	in := batches(1000)
	before := slices.Clone(in)
	got := trace.Spread(in, 1)
	if diff := cmp.Diff(before, in); diff != "" {
		t.Fatalf("the argument changed:\n%s", diff)
	}
	counts := map[time.Duration]int{}
	for i, r := range got {
		if i > 0 && r.At < got[i-1].At {
			t.Fatalf("request %d comes at %s, after one at %s", i, r.At, got[i-1].At)
		}
		counts[r.At.Truncate(time.Second)]++
	}
	// Binomial with standard deviation of at most 15, but for the second before
	// the last batch, where all of the one before are.
	for at := range 16 {
		want := 333
		if at == 12 {
			want = 1000
		}
		if n := counts[time.Duration(at)*time.Second]; n < want-75 || n > want+75 {
			t.Errorf("%d requests come in second %d, want about %d", n, at, want)
		}
	}
	if diff := cmp.Diff(got, trace.Spread(in, 1)); diff != "" {
		t.Errorf("the same seed gives another spread:\n%s", diff)
	}
	if cmp.Equal(got, trace.Spread(in, 2)) {
		t.Error("another seed gives the same spread")
	}
}

func TestArrivalsWithTimesOfTheirOwnStay(t *testing.T) {
	in := []trace.Request{{At: 0, Prompt: 1}, {At: time.Second, Prompt: 2}, {At: time.Second, Prompt: 3}, {At: 5 * time.Second, Prompt: 4}, {At: 9 * time.Second, Prompt: 5}}
	if diff := cmp.Diff(in, trace.Spread(in, 1)); diff != "" {
		t.Errorf("spread (-want +got):\n%s", diff)
	}
	moved := trace.SpreadOver(in, 2*time.Second, 1)
	for _, r := range moved {
		was := in[r.Prompt-1].At
		if r.At < was || r.At >= was+2*time.Second {
			t.Errorf("request %d moved from %s to %s", r.Prompt, was, r.At)
		}
	}
	if trace.Spread(nil, 1) != nil {
		t.Error("nothing became something")
	}
}

func TestBetween(t *testing.T) {
	in := []trace.Request{{At: 0, Prompt: 1}, {At: time.Second, Prompt: 2}, {At: 2 * time.Second, Prompt: 3}}
	for _, c := range []struct {
		from, to time.Duration
		want     []trace.Request
	}{
		{0, 0, in},
		{time.Second, 0, []trace.Request{{At: 0, Prompt: 2}, {At: time.Second, Prompt: 3}}},
		{time.Second, 2 * time.Second, []trace.Request{{At: 0, Prompt: 2}}},
		{3 * time.Second, 0, nil},
	} {
		if diff := cmp.Diff(c.want, trace.Between(in, c.from, c.to)); diff != "" {
			t.Errorf("between %s and %s (-want +got):\n%s", c.from, c.to, diff)
		}
	}
}
