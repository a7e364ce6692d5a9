package scoring

import "github.com/cespare/xxhash/v2"

// session keeps requests of one session on one endpoint; a request without one
// goes where leastRate sends it.
//
// Each pair of session and address has a number that looks random, and the largest
// wins (rendezvous hashing, Thaler and Ravishankar 1998). So an endpoint that goes
// moves only the sessions that were there, to all the others alike, one that comes
// takes its share from all, and every replica of this service chooses the same,
// without having to tell each other.
type session struct{}

func (session) Rank(p *Prompt, pool Pool, candidates []Candidate) {
	if p.Session == "" {
		leastRate{}.Rank(p, pool, candidates)
		return
	}
	id := xxhash.Sum64String(p.Session)
	for i := range candidates {
		c := &candidates[i]
		// The uppermost 53 bits of a number are all that fits into a cost.
		home := xxhash.Sum64String(c.Endpoint.Address)
		c.Cost, c.Tie = -float64(stir(stir(id, home), home)>>11), 0
	}
}

func (session) explain(d *Decision) Reason {
	if d.Prompt.Session == "" {
		return ReasonLoad
	}
	return ReasonSession
}
