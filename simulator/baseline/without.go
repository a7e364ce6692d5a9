package baseline

import "github.com/firsttoken/firsttoken/scoring"

// The policy ttft without one of its terms, which shows what the term is worth.
// Where engines read each other's caches, all lack ttft's charge for a copy that
// displaces another block as well: compare them with ttft elsewhere.
const (
	// WithoutProgress: the oldest prefill counts whole until its first token.
	WithoutProgress = "ttft-without-progress"
	// WithoutOptimistic: what requests under way bring does not count. Whoever
	// runs it gives the prompts no blocks that the ledger could follow.
	WithoutOptimistic = "ttft-without-optimistic"
	// WithoutKappa: a request's own work counts once, whoever comes behind.
	WithoutKappa = "ttft-without-kappa"
	// WithoutRoom: full KV memory makes nobody wait.
	WithoutRoom = "ttft-without-room"
)

// without is ttft with one term left out.
type without struct{ id string }

// Rank implements scoring.Policy.
func (w without) Rank(_ *scoring.Prompt, pool scoring.Pool, candidates []scoring.Candidate) {
	for i := range candidates {
		c := &candidates[i]
		backlog, room, weight := c.Backlog, c.KVWait, 1+pool.Kappa
		switch w.id {
		case WithoutProgress:
			backlog = c.Booked
		case WithoutRoom:
			room = 0
		case WithoutKappa:
			weight = 1
		}
		c.Cost, c.Tie = backlog+room+weight*c.Work, 0
	}
}
