package scoring

// The policies of production-stack's router that send a request to where its
// beginning is, and what they do without one: as session does.

// kvAware sends a request where most of it is cached, if all but threshold of its
// tokens are, else as session does: production-stack's policy of that name, in its
// later form, in which the longest match wins. A threshold of 0 is none: any match
// wins. As there (max over what the lookup lists, in its order) the first of equals
// wins, always the same: what all share draws all to one engine.
type kvAware struct{ threshold Tokens }

func (k kvAware) Rank(p *Prompt, pool Pool, candidates []Candidate) {
	if most := mostCached(candidates); most == 0 || k.short(p, most) {
		session{}.Rank(p, pool, candidates)
		return
	}
	for i := range candidates {
		candidates[i].Cost, candidates[i].Tie = -float64(candidates[i].Cached), float64(candidates[i].Endpoint.ID)
	}
}

// short reports whether a match leaves out too much.
func (k kvAware) short(p *Prompt, match Tokens) bool {
	return k.threshold > 0 && match < p.Length()-k.threshold
}

func (k kvAware) explain(d *Decision) Reason {
	switch most := mostCached(d.Candidates); {
	case most == 0:
		return session{}.explain(d)
	case k.short(d.Prompt, most):
		return ReasonShort
	}
	return ReasonCached
}

// mostCached is the longest match of any candidate.
func mostCached(candidates []Candidate) (most Tokens) {
	for i := range candidates {
		most = max(most, candidates[i].Cached)
	}
	return most
}

// loadAware weighs what is cached of a request against how much more than the
// others an endpoint has to do:
//
//	score = min(cached / prompt, 1) - beta * (load - mean) / max(1, mean)
//
// where load is the requests in flight there, and mean that of all candidates. The
// greatest score wins, among equals the first address. A request of which nothing
// is cached anywhere goes where session sends it. The formula is that of
// production-stack's policy of that name (pull request 1035).
type loadAware struct{ beta float64 }

func (l loadAware) Rank(p *Prompt, pool Pool, candidates []Candidate) {
	if mostCached(candidates) == 0 {
		session{}.Rank(p, pool, candidates)
		return
	}
	mean := 0.0
	for i := range candidates {
		mean += float64(candidates[i].Waiting + candidates[i].Decoding)
	}
	mean /= float64(len(candidates))
	best := 0
	for i := range candidates {
		c := &candidates[i]
		load := float64(c.Waiting + c.Decoding)
		benefit := min(float64(c.Cached)/float64(p.Length()), 1)
		c.Cost, c.Tie = l.beta*(load-mean)/max(1, mean)-benefit, 1
		if b := &candidates[best]; c.Cost < b.Cost || c.Cost == b.Cost && c.Endpoint.Address < b.Endpoint.Address {
			best = i
		}
	}
	candidates[best].Tie = 0
}

func (loadAware) explain(d *Decision) Reason {
	if mostCached(d.Candidates) == 0 {
		return session{}.explain(d)
	}
	return weighed(d)
}

// prefixAware sends a request where the longest part of its beginning was sent
// before, whatever engines say of their caches; among several such endpoints chance
// decides. A part shorter than least tokens is none, and the request goes where
// leastRate sends it; with a least of 0 one that was sent nowhere goes anywhere.
// That is production-stack's policy of that name, over a memory that forgets what
// engines must have dropped (package routed).
type prefixAware struct{ least Tokens }

func (a prefixAware) Rank(p *Prompt, pool Pool, candidates []Candidate) {
	if p.Length() == 0 || mostRouted(candidates) < a.least {
		leastRate{}.Rank(p, pool, candidates)
		return
	}
	for i := range candidates {
		candidates[i].Cost, candidates[i].Tie = -float64(candidates[i].Routed), 0
	}
}

func (a prefixAware) explain(d *Decision) Reason {
	switch most := mostRouted(d.Candidates); {
	case d.Prompt.Length() == 0:
		return ReasonLoad
	case most < a.least && most > 0:
		return ReasonShort
	case most < a.least:
		return ReasonLoad
	case most == 0:
		return ReasonChance
	}
	return ReasonCached
}

// mostRouted is the longest part of the prompt that was sent to any candidate.
func mostRouted(candidates []Candidate) (most Tokens) {
	for i := range candidates {
		most = max(most, candidates[i].Routed)
	}
	return most
}
