package coordinator

import (
	"cmp"
	"slices"
	"time"
	"unique"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// Match implements scoring.CacheIndex. An endpoint's row is nil where no server
// is mapped to it, where its server has reported nothing, where it does not serve
// the model, and where nothing of the prompt is known to be there but
// reports are missing from before we listened.
func (d *Directory) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	mapping := d.mapping.Load()
	for _, q := range d.cfg.Questions(p, endpoints, mapping.Instances) {
		for s := range p.Sequences {
			keys := d.hasher.Keys(nil, Comparable(p, s))
			held, known := d.lookup(q.Space, keys, q.Servers)
			for i, row := range q.Rows {
				if !known[i] {
					continue
				}
				if rows[row] == nil {
					rows[row] = make([]scoring.Match, len(p.Sequences))
				}
				rows[row][s] = d.cfg.Match(held[i])
			}
		}
	}
	return rows
}

// Question is what the endpoints with one Space are asked.
type Question struct {
	Space Space
	// Servers are asked; Rows says which endpoint each is for.
	Servers []string
	Rows    []int
}

// Questions puts the endpoints together that look for the prompt in the same
// space. servers is the server of each endpoint that has one.
func (f Fleet) Questions(p *scoring.Prompt, endpoints []scoring.Endpoint, servers map[scoring.EndpointID]string) []Question {
	var questions []Question
	for row := range endpoints {
		e := &endpoints[row]
		server := servers[e.ID]
		if server == "" || !e.Serves(p.Model) {
			continue
		}
		space := f.Space(p, e)
		i := slices.IndexFunc(questions, func(q Question) bool { return q.Space == space })
		if i < 0 {
			i = len(questions)
			questions = append(questions, Question{Space: space})
		}
		questions[i].Servers, questions[i].Rows = append(questions[i].Servers, server), append(questions[i].Rows, row)
	}
	return questions
}

// lookup is what each server can load of a row of chunks, by the rule of
// LookupResponse.Held, and whether that is to be believed.
func (d *Directory) lookup(s Space, keys []lmcache.Digest, servers []string) (held []Held, known []bool) {
	held, known = make([]Held, len(servers)), make([]bool, len(servers))
	in := make([]*instance, len(servers))
	d.mu.RLock()
	defer d.mu.RUnlock()
	for i, id := range servers {
		in[i] = d.instances[id]
	}
	parts := make([]*record, 0, s.WorldSize)
	for chunk, hash := range keys {
		parts = d.partsLocked(parts[:0], s, hash)
		found := false
		for i := range held {
			if held[i].Chunks != chunk || in[i] == nil {
				continue
			}
			if t := in[i].farthest(parts); t != "" {
				held[i].add(t)
				found = true
			}
		}
		if !found {
			break
		}
	}
	for i := range in {
		// One that reports nothing (without --coordinator-event-reporting, or
		// gone) is not one that holds nothing.
		known[i] = in[i] != nil && in[i].stream != nil && (held[i].Chunks > 0 || !in[i].stream.late)
	}
	return held, known
}

// partsLocked appends the record of each rank of a chunk in group 0, nil where
// there is none, and in every other group that has one. Caller must hold mu.
func (d *Directory) partsLocked(parts []*record, s Space, hash lmcache.Digest) []*record {
	k := key{hash: hash, space: unique.Make(space{s.Model, s.Salt})}
	for rank := range s.WorldSize {
		k.rank = KVRank(s.WorldSize, rank)
		for group, n := range d.groups {
			if group > 0 && n == 0 {
				continue
			}
			k.group = int64(group)
			r, ok := d.records.Peek(k)
			if group == 0 || ok {
				parts = append(parts, r)
			}
		}
	}
	return parts
}

// farthest is as of LookupResponse. Caller must hold Directory.mu.
func (in *instance) farthest(parts []*record) Tier {
	worst := TierL1
	for _, r := range parts {
		if r == nil {
			return ""
		}
		var best Tier
		for i := range r.placements {
			p := &r.placements[i]
			if (p.shared || p.by == in) && !p.gone() && (best == "" || p.tier < best) {
				best = p.tier
			}
		}
		if best == "" {
			return ""
		}
		worst = max(worst, best)
	}
	return worst
}

// answer is the real coordinator's answer to a lookup.
func (d *Directory) answer(q LookupRequest) LookupResponse {
	if len(q.Keys) > 0 {
		d.mu.RLock()
		defer d.mu.RUnlock()
		a := LookupResponse{Chunks: len(q.Keys)}
		for _, o := range q.Keys {
			a.Results = append(a.Results, d.resultLocked(o))
		}
		return a
	}
	keys := d.hasher.Keys(nil, q.TokenIDs)
	d.mu.RLock()
	defer d.mu.RUnlock()
	a := LookupResponse{Chunks: len(keys), Results: []LookupResult{}}
	for _, hash := range keys {
		for rank := range q.WorldSize {
			for group, n := range d.groups {
				o := ObjectKey{hash.String(), q.ModelName, KVRank(q.WorldSize, rank), int64(group), q.CacheSalt}
				k, _ := internKey(&o)
				if group == 0 || n > 0 && d.records.Contains(k) {
					a.Results = append(a.Results, d.resultLocked(o))
				}
			}
		}
	}
	return a
}

// resultLocked is one row of an answer. Caller must hold mu.
func (d *Directory) resultLocked(o ObjectKey) LookupResult {
	result := LookupResult{Key: o, Placements: []Placement{}, TokenIDs: []uint32{}}
	k, ok := internKey(&o)
	if !ok {
		return result
	}
	if r, ok := d.records.Peek(k); ok {
		result.Placements, result.AccessCount = r.alive(), r.accesses
		slices.SortFunc(result.Placements, func(a, b Placement) int {
			return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Tier, b.Tier), cmp.Compare(a.Backend, b.Backend))
		})
	}
	return result
}

// alive are the placements that are not gone. Caller must hold Directory.mu.
func (r *record) alive() []Placement {
	list := []Placement{}
	for i := range r.placements {
		if p := &r.placements[i]; !p.gone() {
			list = append(list, Placement{p.by.id, p.incarnation, p.tier, p.backend, p.size, p.shared})
		}
	}
	return list
}

// Mapping is which server belongs to which endpoint now.
func (d *Directory) Mapping() *lmcache.Mapping { return d.mapping.Load() }

// heardOf is when a server was last heard of. Caller must not hold mu.
func (d *Directory) heardOf(id string) time.Time {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if in := d.instances[id]; in != nil {
		return in.heard
	}
	return time.Time{}
}
