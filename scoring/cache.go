package scoring

import "slices"

// Match is what one endpoint holds of one sequence.
type Match struct {
	// Cached is the number of leading tokens held without a gap.
	Cached Tokens
	// Spans say where they are held, in order of position; the last one's End
	// equals Cached. Nil where nothing is held.
	Spans []Span
}

// Span is a run of cached tokens in one storage location.
type Span struct {
	// End is the position after the run's last token; the run begins where the
	// span before it ends, the first at 0.
	End Tokens
	// Location is the source's name for the place, such as LocalCPUBackend.
	Location string
	// SecondsPerToken is how long the engine takes to bring one of its tokens
	// to where it computes; 0: they are there, or the cost is not known.
	SecondsPerToken float64
}

// CacheIndex is one source of cache truth: LMCache's controller, engine events
// and the like. Implementations are safe for concurrent use and must not
// block on I/O.
type CacheIndex interface {
	// Match reports what each endpoint holds of each sequence. The result is
	// indexed [endpoint][sequence] in the order of the arguments; a nil row
	// says that the source knows nothing of that endpoint, which is not the
	// same as knowing that it holds nothing. The caller owns the result.
	Match(p *Prompt, endpoints []Endpoint) [][]Match
}

// Longest is a source that answers with the longest match that any of sources
// has, the fastest first: what an earlier one holds counts as held there, and
// a later one goes on from its end. It knows an endpoint if any of them does.
func Longest(sources ...CacheIndex) CacheIndex { return longestOf(sources) }

type longestOf []CacheIndex

func (l longestOf) Match(p *Prompt, endpoints []Endpoint) [][]Match {
	rows := make([][]Match, len(endpoints))
	for _, source := range l {
		for i, row := range source.Match(p, endpoints) {
			if rows[i] == nil {
				rows[i] = row
				continue
			}
			for q := range row {
				rows[i][q] = rows[i][q].goOn(row[q])
			}
		}
	}
	return rows
}

// goOn is m, and from its end on what next holds.
func (m Match) goOn(next Match) Match {
	if next.Cached <= m.Cached {
		return m
	}
	spans := slices.Clip(m.Spans)
	for _, s := range next.Spans {
		if s.End > m.Cached {
			spans = append(spans, s)
		}
	}
	return Match{Cached: next.Cached, Spans: spans}
}

// Fallback is a source that answers with first, and with second for the
// endpoints that first knows nothing of.
func Fallback(first, second CacheIndex) CacheIndex { return fallback{first, second} }

type fallback struct{ first, second CacheIndex }

func (f fallback) Match(p *Prompt, endpoints []Endpoint) [][]Match {
	rows := f.first.Match(p, endpoints)
	var (
		unknown []Endpoint
		at      []int
	)
	for i, row := range rows {
		if row == nil {
			unknown, at = append(unknown, endpoints[i]), append(at, i)
		}
	}
	if len(unknown) == 0 {
		return rows
	}
	for i, row := range f.second.Match(p, unknown) {
		rows[at[i]] = row
	}
	return rows
}
