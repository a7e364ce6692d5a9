package coordinator

import (
	"slices"

	"github.com/firsttoken/firsttoken/scoring"
)

// Held is what one server can load of a row of chunks.
type Held struct {
	// Chunks is how many it has from the first on without a gap.
	Chunks int
	// Runs say in which tier, in order; the last one's End is Chunks.
	Runs []Run
}

// Run is a run of chunks in one tier.
type Run struct {
	End  int // chunks, counted from the row's begin
	Tier Tier
}

// add appends one chunk.
func (h *Held) add(t Tier) {
	h.Chunks++
	if n := len(h.Runs); n > 0 && h.Runs[n-1].Tier == t {
		h.Runs[n-1].End = h.Chunks
		return
	}
	h.Runs = append(h.Runs, Run{h.Chunks, t})
}

// Match counts in tokens what h counts in chunks.
func (f Fleet) Match(h Held) scoring.Match {
	var m scoring.Match
	for _, r := range h.Runs {
		m.Spans = append(m.Spans, scoring.Span{
			End: scoring.Tokens(r.End * f.ChunkSize), Location: string(r.Tier), SecondsPerToken: f.Seconds(r.Tier),
		})
		m.Cached = m.Spans[len(m.Spans)-1].End
	}
	return m
}

// Comparable is the leading token ids of a sequence that chunks can be compared
// with.
func Comparable(p *scoring.Prompt, sequence int) []uint32 {
	q := &p.Sequences[sequence]
	if p.NoCache || !ValidSalt(p.Salt) {
		return nil
	}
	return q.TokenIDs[:max(0, min(len(q.TokenIDs), int(q.Usable)))]
}

// Held is what each of the named servers can load of the prompt that was looked
// up: a chunk counts for a server if it, or storage that all share, has the part
// of every rank, in every object group that the chunk is known in. Its tier is
// the farthest that a part must be loaded from.
func (r LookupResponse) Held(servers []string) []Held {
	held := make([]Held, len(servers))
	for begin, chunk := 0, 0; begin < len(r.Results); chunk++ {
		end := begin + 1
		for end < len(r.Results) && r.Results[end].Key.ChunkHash == r.Results[begin].Key.ChunkHash {
			end++
		}
		found := false
		for i, server := range servers {
			if held[i].Chunks != chunk {
				continue
			}
			if t := farthest(r.Results[begin:end], server); t != "" {
				held[i].add(t)
				found = true
			}
		}
		if !found {
			break
		}
		begin = end
	}
	return held
}

// farthest is the tier from which the last part of a chunk comes; empty where a
// part is missing.
func farthest(parts []LookupResult, server string) Tier {
	worst := TierL1
	for i := range parts {
		best := nearest(parts[i].Placements, server)
		if best == "" {
			return ""
		}
		worst = max(worst, best) // "l1" < "l2"
	}
	return worst
}

// nearest is the nearest tier in which a server has a key; empty: in none.
func nearest(placements []Placement, server string) Tier {
	var best Tier
	for p := range slices.Values(placements) {
		if (p.Shared || p.Instance == server) && (best == "" || p.Tier < best) {
			best = p.Tier
		}
	}
	return best
}
