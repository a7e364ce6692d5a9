// Package baseline holds policies that others have published or proposed, for
// the simulator to compare with. The service does not offer them.
package baseline

import (
	"math"

	"github.com/firsttoken/firsttoken/scoring"
)

// The policy ids, as flags and reports call them.
const (
	// Uncached: least tokens to compute, queued and own.
	Uncached = "uncached"
	// LMetric: tokens to compute times requests in flight, the new one among them.
	LMetric = "lmetric"
	// LLMDAffinity: to whoever has most of the prompt, as llm-d's filter for
	// prefix cache affinity has it.
	LLMDAffinity = "llmd-affinity"
	// Dynamo: tokens to compute plus KV tokens in use, as NVIDIA Dynamo's router.
	Dynamo = "dynamo"
	// Oracle: the least time to first token by the true state of the engines.
	Oracle = "oracle"
)

// IDs lists them, those of ablation included.
func IDs() []string {
	return []string{Uncached, LMetric, LLMDAffinity, Dynamo, Oracle, WithoutProgress, WithoutOptimistic, WithoutKappa, WithoutRoom}
}

// New makes the policy of an id; nil where there is none of that name. forecast
// is what Oracle ranks by: the seconds to the first token of the request that is
// being routed, if it were sent to an endpoint now. Nobody else needs it.
func New(id string, forecast func(scoring.EndpointID) float64) scoring.Policy {
	switch id {
	case Uncached:
		return cost(uncached)
	case LMetric:
		return cost(lmetric)
	case LLMDAffinity:
		return affinity{}
	case Dynamo:
		return cost(dynamo)
	case WithoutProgress, WithoutOptimistic, WithoutKappa, WithoutRoom:
		return without{id}
	case Oracle:
		return cost(func(c *scoring.Candidate) float64 { return forecast(c.Endpoint.ID) })
	}
	return nil
}

// cost is a policy that looks at each candidate by itself.
type cost func(*scoring.Candidate) float64

// Rank implements scoring.Policy.
func (of cost) Rank(_ *scoring.Prompt, _ scoring.Pool, candidates []scoring.Candidate) {
	for i := range candidates {
		c := &candidates[i]
		c.Cost, c.Tie = of(c), 0
	}
}

func uncached(c *scoring.Candidate) float64 { return float64(c.QueuedTokens + c.Uncached) }

func lmetric(c *scoring.Candidate) float64 { return uncached(c) * float64(c.Waiting+c.Decoding+1) }

func dynamo(c *scoring.Candidate) float64 { return uncached(c) + float64(c.HeldTokens) }

// affinity keeps to the endpoints that hold most of a prompt, unless even the
// best of them is much slower than the best of all; among those that are left,
// the one with the fewest tokens queued.
type affinity struct{}

const (
	// sticky is the share of a prompt that makes an endpoint one to keep to.
	sticky = 0.8
	// penalty is how many seconds more than the best they may take.
	penalty = 5.0
)

// Rank implements scoring.Policy.
func (affinity) Rank(p *scoring.Prompt, _ scoring.Pool, candidates []scoring.Candidate) {
	keeps := func(c *scoring.Candidate) bool { return float64(c.Cached) >= sticky*float64(p.Length()) }
	best, bestKept := math.Inf(1), math.Inf(1)
	for i := range candidates {
		c := &candidates[i]
		seconds := c.Backlog + c.Work
		best = min(best, seconds)
		if keeps(c) {
			bestKept = min(bestKept, seconds)
		}
	}
	keep := bestKept <= best+penalty
	for i := range candidates {
		c := &candidates[i]
		c.Cost, c.Tie = float64(c.QueuedTokens), 0
		if keep && !keeps(c) {
			c.Cost = math.Inf(1)
		}
	}
}
