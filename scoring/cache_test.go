package scoring

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// told is a source that answers with what it was told; an endpoint that is
// missing is unknown to it.
type told map[EndpointID]Tokens

func (s told) Match(p *Prompt, endpoints []Endpoint) [][]Match {
	rows := make([][]Match, len(endpoints))
	for i, e := range endpoints {
		if n, ok := s[e.ID]; ok {
			rows[i] = make([]Match, len(p.Sequences))
			rows[i][0].Cached = n
		}
	}
	return rows
}

// An endpoint is known if any source knows it, and holds what any says; the
// fallback is asked for the rest alone.
func TestSourcesCombine(t *testing.T) {
	source := Fallback(Longest(told{1: 10, 2: 5, 3: 0}, told{2: 7, 3: 0, 4: 1}), told{1: 99, 3: 99, 5: 3})
	var got []Tokens
	for _, row := range source.Match(&Prompt{Sequences: make([]Sequence, 1)}, []Endpoint{{ID: 1}, {ID: 2}, {ID: 3}, {ID: 4}, {ID: 5}, {ID: 6}}) {
		if row == nil {
			got = append(got, -1)
			continue
		}
		got = append(got, row[0].Cached)
	}
	if diff := cmp.Diff([]Tokens{10, 7, 0, 1, 3, -1}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLongestKeepsTheFasterPlace(t *testing.T) {
	gpu := Match{Cached: 20, Spans: []Span{{End: 20, Location: "gpu"}}}
	for _, tt := range []struct {
		name        string
		first, next Match
		want        Match
	}{
		{"nothing", Match{}, Match{}, Match{}},
		{"the first alone", gpu, Match{}, gpu},
		{"the next alone", Match{}, gpu, gpu},
		{"the next is no longer", gpu, Match{Cached: 20, Spans: []Span{{End: 20, Location: "cpu"}}}, gpu},
		{
			"the next goes on", gpu,
			Match{Cached: 40, Spans: []Span{{End: 10, Location: "cpu"}, {End: 30, Location: "disk"}, {End: 40, Location: "cpu"}}},
			Match{Cached: 40, Spans: []Span{{End: 20, Location: "gpu"}, {End: 30, Location: "disk"}, {End: 40, Location: "cpu"}}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.first.goOn(tt.next)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if gpu.Spans[0].End != 20 || len(gpu.Spans) != 1 {
		t.Errorf("a source's answer was changed: %+v", gpu)
	}
}
