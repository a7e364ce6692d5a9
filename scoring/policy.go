package scoring

import (
	"fmt"
	"slices"
	"strings"
)

// Policy says which of two candidates for the same request is better. It is a
// pure value: it sees the candidates' numbers as they are under the ledger's
// lock, must not block and keeps nothing.
type Policy interface {
	// Better reports whether a is strictly better than b. Where neither is,
	// they tie, and the winner is drawn at random.
	Better(a, b *Candidate) bool
}

// The policy ids: the same in flags, configuration, metrics and documents.
const (
	PolicyTrapezoid  = "trapezoid"
	PolicyRoundRobin = "roundrobin"
)

var policies = map[string]Policy{
	PolicyTrapezoid:  trapezoid{},
	PolicyRoundRobin: roundRobin{},
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

func policyByID(id string) (Policy, error) {
	if p, ok := policies[id]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("unknown policy %q; write one of %s", id, strings.Join(PolicyIDs(), ", "))
}

// trapezoid sends a request where queued work plus its own work is least. All
// engines are taken to be equally fast, so comparing work compares the time to
// first token.
type trapezoid struct{}

func (trapezoid) Better(a, b *Candidate) bool {
	ca, cb := a.Queued+a.Work, b.Queued+b.Work
	if ca != cb {
		return ca < cb
	}
	if a.Work == 0 && b.Work == 0 {
		// A request without a prompt: what it waits for is the engine's step,
		// which grows with the requests in flight.
		return a.Waiting+a.Decoding < b.Waiting+b.Decoding
	}
	return false
}

// roundRobin gives the turn to the endpoint that has waited longest for one.
// It needs no counter per set of endpoints, so an endpoint that comes, goes or
// serves several models never disturbs the order of the others.
type roundRobin struct{}

func (roundRobin) Better(a, b *Candidate) bool { return a.Turn < b.Turn }
