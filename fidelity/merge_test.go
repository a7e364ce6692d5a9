package fidelity

import (
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/scoring"
)

// told is a source that answers with what it was told; an endpoint that is
// missing is unknown to it.
type told map[scoring.EndpointID]scoring.Tokens

func (s told) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	for i, e := range endpoints {
		if n, ok := s[e.ID]; ok {
			rows[i] = make([]scoring.Match, len(p.Sequences))
			rows[i][0].Cached = n
		}
	}
	return rows
}

func endpoints(n int) []scoring.Endpoint {
	list := make([]scoring.Endpoint, n)
	for i := range list {
		id := scoring.EndpointID(i + 1)
		list[i] = scoring.Endpoint{ID: id, Name: "e" + string(rune('0'+id)), Address: "10.0.0." + string(rune('0'+id)) + ":8000", Ready: true}
	}
	return list
}

// An endpoint is known if any source knows it, and holds what any says; memory
// is asked for the rest alone. Each match says whose word it is.
func TestSourcesCombine(t *testing.T) {
	c := New(
		[]Source{{Name: "a", Index: told{1: 10, 2: 5, 3: 0}}, {Name: "b", Index: told{2: 7, 3: 0, 4: 1}}},
		Source{Name: "memory", Index: told{1: 99, 3: 99, 5: 3}},
		Options{Now: time.Now, Log: slog.New(slog.DiscardHandler)},
	)
	c.SetEndpoints(endpoints(6))
	got := c.Match(&scoring.Prompt{Sequences: make([]scoring.Sequence, 1)}, endpoints(6))
	want := [][]scoring.Match{
		{{Cached: 10, Source: "a", Claims: []scoring.Claim{{Source: "a", Cached: 10, Used: true}}}},
		{{Cached: 7, Source: "b", Claims: []scoring.Claim{{Source: "a", Cached: 5, Used: true}, {Source: "b", Cached: 7, Used: true}}}},
		{{Source: "a", Claims: []scoring.Claim{{Source: "a", Used: true}, {Source: "b", Used: true}}}},
		{{Cached: 1, Source: "b", Claims: []scoring.Claim{{Source: "b", Cached: 1, Used: true}}}},
		{{Cached: 3, Source: "memory", Claims: []scoring.Claim{{Source: "memory", Cached: 3, Used: true}}}},
		nil,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A source that is not believed of an endpoint says what it says, and memory
// speaks instead.
func TestLeftOutSourceIsShownButNotUsed(t *testing.T) {
	c := New([]Source{{Name: "a", Index: told{1: 10, 2: 10}}}, Source{Name: "memory", Index: told{1: 4, 2: 4}},
		Options{Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	c.SetEndpoints(endpoints(2))
	c.of(1).gates[0].out.Store(true)
	got := c.Match(&scoring.Prompt{Sequences: make([]scoring.Sequence, 1)}, endpoints(2))
	want := [][]scoring.Match{
		{{Cached: 4, Source: "memory", Claims: []scoring.Claim{{Source: "a", Cached: 10}, {Source: "memory", Cached: 4, Used: true}}}},
		{{Cached: 10, Source: "a", Claims: []scoring.Claim{{Source: "a", Cached: 10, Used: true}}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLongestKeepsTheFasterPlace(t *testing.T) {
	gpu := scoring.Match{Cached: 20, Spans: []scoring.Span{{End: 20, Location: "gpu"}}}
	for _, tt := range []struct {
		name        string
		first, next scoring.Match
		want        scoring.Match
	}{
		{"nothing", scoring.Match{}, scoring.Match{}, scoring.Match{}},
		{"the first alone", gpu, scoring.Match{}, gpu},
		{"the next alone", scoring.Match{}, gpu, gpu},
		{"the next is no longer", gpu, scoring.Match{Cached: 20, Spans: []scoring.Span{{End: 20, Location: "cpu"}}}, gpu},
		{
			"the next goes on", gpu,
			scoring.Match{Cached: 40, Spans: []scoring.Span{{End: 10, Location: "cpu"}, {End: 30, Location: "disk"}, {End: 40, Location: "cpu"}}},
			scoring.Match{Cached: 40, Spans: []scoring.Span{{End: 20, Location: "gpu"}, {End: 30, Location: "disk"}, {End: 40, Location: "cpu"}}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := merge([]scoring.Match{tt.first}, []scoring.Match{tt.next}, "")[0]
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if len(tt.first.Spans) == 1 && tt.first.Spans[0] != gpu.Spans[0] {
				t.Error("the first source's spans were written to")
			}
		})
	}
}
