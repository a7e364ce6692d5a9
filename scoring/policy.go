package scoring

import (
	"fmt"
	"slices"
	"strings"
)

// Policy ranks the candidates for one request. It is a pure value: it sees the
// candidates' numbers as they are under the ledger's lock, must not block and
// keeps nothing.
type Policy interface {
	// Rank writes Cost and Tie of each candidate, at a cost linear in their
	// number. The least Cost wins, among equals the least Tie, among equals
	// chance.
	Rank(p *Prompt, pool Pool, candidates []Candidate)
}

// explainer is a policy with words of its own for why it chose as it did. The
// decision is as it was ranked, best candidate first.
type explainer interface {
	explain(d *Decision) Reason
}

// Pool is what holds for all candidates of a request.
type Pool struct {
	// Kappa is how many seconds each second of own work costs those behind.
	Kappa float64
	// SecondsPerToken and SecondsPerStep are what first tokens taught, see Fit.
	SecondsPerToken, SecondsPerStep float64
	// Settled: enough first tokens taught them for estimates to be relied on.
	Settled bool
}

// The policy ids: the same in flags, configuration, metrics and documents.
const (
	PolicyTTFT       = "ttft"
	PolicyTrapezoid  = "trapezoid"
	PolicyRoundRobin = "roundrobin"
	PolicyLeastLoad  = "leastload"
	PolicyQPS        = "qps"
	PolicyKVAware    = "kvaware"
	PolicyLoadAware  = "loadaware"
	PolicyPrefix     = "prefixaware"
	PolicySession    = "session"
	PolicyRandom     = "random"
)

var policies = map[string]func(Config) Policy{
	PolicyTTFT:       func(Config) Policy { return ttft{} },
	PolicyTrapezoid:  func(Config) Policy { return trapezoid{} },
	PolicyRoundRobin: func(Config) Policy { return roundRobin{} },
	PolicyLeastLoad:  func(Config) Policy { return leastLoad{} },
	PolicyQPS:        func(Config) Policy { return leastRate{} },
	PolicyKVAware:    func(c Config) Policy { return kvAware{c.KVAwareThreshold} },
	PolicyLoadAware:  func(c Config) Policy { return loadAware{c.LoadAwareBeta} },
	PolicyPrefix:     func(c Config) Policy { return prefixAware{c.PrefixAwareMinMatch} },
	PolicySession:    func(Config) Policy { return session{} },
	PolicyRandom:     func(Config) Policy { return random{} },
}

// PolicyIDs are the known policy ids, sorted.
func PolicyIDs() []string {
	ids := make([]string, 0, len(policies))
	for id := range policies {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// servicePolicies are all of them, as configured.
func servicePolicies(cfg Config) map[string]Policy {
	all := make(map[string]Policy, len(policies))
	for id, make := range policies {
		all[id] = make(cfg)
	}
	return all
}

// CheckPolicy says of an id that is no policy's which there are.
func CheckPolicy(id string) error {
	if policies[id] == nil {
		return fmt.Errorf("unknown policy %q; write one of %s", id, strings.Join(PolicyIDs(), ", "))
	}
	return nil
}

// ttft sends a request where its first token comes soonest, with regard to those
// that come behind it.
type ttft struct{}

// displaced: a copy of a block that another engine holds takes the place of
// another block, which costs so much of what computing it costs.
const displaced = 0.25

func (ttft) Rank(p *Prompt, pool Pool, candidates []Candidate) {
	for i := range candidates {
		c := &candidates[i]
		own := c.Work + displaced*pool.SecondsPerToken*float64(c.Remote)
		c.Cost = c.Backlog + c.KVWait + (1+pool.Kappa)*own
		c.Tie = inFlight(p, c)
	}
}

// inFlight sets equals apart for a request without a prompt: what it waits for
// is the engine's step, which grows with the requests in flight.
func inFlight(p *Prompt, c *Candidate) float64 {
	if p.Length() > 0 {
		return 0
	}
	return float64(c.Waiting + c.Decoding)
}

// trapezoid sends a request where queued work plus its own work is least. All
// engines are taken to be equally fast, and a prompt to cost the attention of
// each token to those before it and nothing else, so comparing work compares the
// time to first token: the formula of production-stack's pull request 670.
type trapezoid struct{}

func (trapezoid) Rank(p *Prompt, _ Pool, candidates []Candidate) {
	for i := range candidates {
		c := &candidates[i]
		c.Cost, c.Tie = float64(c.QueuedArea+c.Area), inFlight(p, c)
	}
}

// roundRobin gives the turn to the endpoint that has waited longest for one.
// It needs no counter per set of endpoints, so an endpoint that comes, goes or
// serves several models never disturbs the order of the others.
type roundRobin struct{}

func (roundRobin) Rank(_ *Prompt, _ Pool, candidates []Candidate) {
	for i := range candidates {
		candidates[i].Cost, candidates[i].Tie = float64(candidates[i].Turn), 0
	}
}

func (roundRobin) explain(*Decision) Reason { return ReasonTurn }

// random leaves it to chance.
type random struct{}

func (random) Rank(_ *Prompt, _ Pool, candidates []Candidate) {
	for i := range candidates {
		candidates[i].Cost, candidates[i].Tie = 0, 0
	}
}

func (random) explain(*Decision) Reason { return ReasonChance }

// leastLoad sends a request where fewest are in flight.
type leastLoad struct{}

func (leastLoad) Rank(_ *Prompt, _ Pool, candidates []Candidate) {
	for i := range candidates {
		c := &candidates[i]
		c.Cost, c.Tie = float64(c.Waiting+c.Decoding), 0
	}
}

func (leastLoad) explain(*Decision) Reason { return ReasonLoad }

// leastRate sends a request where fewest were sent in the last minute, as
// production-stack's router does where no policy of its has a preference.
type leastRate struct{}

func (leastRate) Rank(_ *Prompt, _ Pool, candidates []Candidate) {
	for i := range candidates {
		candidates[i].Cost, candidates[i].Tie = candidates[i].Rate, 0
	}
}

func (leastRate) explain(*Decision) Reason { return ReasonLoad }
