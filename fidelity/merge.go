package fidelity

import (
	"slices"

	"github.com/firsttoken/firsttoken/scoring"
)

// Match implements scoring.CacheIndex. An endpoint's row is the longest match
// of the sources that are believed of it, the fastest first: what an earlier
// source holds counts as held there, and a later one goes on from its end.
// Where none of them knows the endpoint, memory speaks for it. Every match says
// whose word counts and what each source said.
//
// Its own cost is linear in endpoints, sequences and sources; it takes no lock.
func (c *Checker) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	fleet, known := *c.fleet.Load(), make([]*watched, len(endpoints))
	for i := range endpoints {
		known[i] = fleet[endpoints[i].ID]
	}
	said := newClaims(len(endpoints), len(p.Sequences), len(c.sources)+1)
	for s := range c.sources {
		source := &c.sources[s]
		for i, row := range source.Index.Match(p, endpoints) {
			w := known[i]
			w.noteKnown(s, row != nil)
			if row == nil {
				continue
			}
			used := !w.leftOut(s)
			for q := range row {
				*said.next(i, q) = scoring.Claim{Source: source.Name, Cached: row[q].Cached, Used: used}
			}
			if used {
				rows[i] = merge(rows[i], row, source.Name)
			}
		}
	}
	c.remember(rows, p, endpoints, said)
	said.put(rows)
	return rows
}

// remember asks memory for the endpoints that have no row yet.
func (c *Checker) remember(rows [][]scoring.Match, p *scoring.Prompt, endpoints []scoring.Endpoint, said claims) {
	var (
		unknown []scoring.Endpoint
		at      []int
	)
	for i, row := range rows {
		if row == nil {
			unknown, at = append(unknown, endpoints[i]), append(at, i)
		}
	}
	if len(unknown) == 0 {
		return
	}
	for i, row := range c.memory.Index.Match(p, unknown) {
		for q := range row {
			row[q].Source = c.memory.Name
			*said.next(at[i], q) = scoring.Claim{Source: c.memory.Name, Cached: row[q].Cached, Used: true}
		}
		rows[at[i]] = row
	}
}

// merge is row, and from its end on what the next source holds. Both belong to
// the caller.
func merge(row, next []scoring.Match, source string) []scoring.Match {
	if row == nil {
		for q := range next {
			next[q].Source = source
		}
		return next
	}
	for q := range row {
		if next[q].Cached > row[q].Cached {
			row[q] = goOn(row[q], next[q], source)
		}
	}
	return row
}

// goOn is m, and from its end on what next holds, which is more.
func goOn(m, next scoring.Match, source string) scoring.Match {
	spans := slices.Clip(m.Spans)
	for _, s := range next.Spans {
		if s.End > m.Cached {
			spans = append(spans, s)
		}
	}
	return scoring.Match{Cached: next.Cached, Spans: spans, Source: source}
}

// claims are what was said of each endpoint and sequence, in one piece of
// memory.
type claims struct {
	all       []scoring.Claim
	count     []uint8 // said of each endpoint and sequence
	sequences int
	most      int // claims for each
}

func newClaims(endpoints, sequences, most int) claims {
	n := endpoints * sequences
	return claims{make([]scoring.Claim, n*most), make([]uint8, n), sequences, most}
}

// next is room for one more claim.
func (c claims) next(endpoint, sequence int) *scoring.Claim {
	at := endpoint*c.sequences + sequence
	c.count[at]++
	return &c.all[at*c.most+int(c.count[at])-1]
}

// put hands the claims to the matches they are about.
func (c claims) put(rows [][]scoring.Match) {
	for i, row := range rows {
		for q := range row {
			at := i*c.sequences + q
			begin, end := at*c.most, at*c.most+int(c.count[at])
			row[q].Claims = c.all[begin:end:end]
		}
	}
}
