package fidelity

import (
	"context"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Source is one source of cache truth with what is needed to check it. Every
// function may be nil; all must be safe for concurrent use.
type Source struct {
	// Name is what status, metrics and decisions call it.
	Name string
	// Index answers for it.
	Index scoring.CacheIndex
	// Ask gets the answer that Index then gives of this prompt, until done is
	// called; for sources that have to ask somebody. Nil: Index knows by itself.
	Ask func(ctx context.Context, p *scoring.Prompt) (done func())

	// Wanted says whether the source is meant to report of the endpoint: then
	// its silence is a fault. Nil: it is not, unless it has spoken once.
	Wanted func(e scoring.Endpoint) bool
	// Heard is when the source last had news of the endpoint; zero: never.
	Heard func(id scoring.EndpointID) time.Time
	// Held is how many chunks or blocks the source believes the endpoint to
	// hold, whatever of.
	Held func(id scoring.EndpointID) int
	// Grain is the number of tokens of one chunk or block of the endpoint; 0:
	// not known.
	Grain func(id scoring.EndpointID) scoring.Tokens

	// Settle is how long after a request's first token its prompt must be shown
	// at the latest; AfterEnd: after the request's end.
	Settle   time.Duration
	AfterEnd bool
	// Keyed: the source finds a prompt by keys made from its token ids alone,
	// with settings that must be the engine's own (LMCache). Prompts with a
	// salt or for an adapter prove nothing about it.
	Keyed bool
	// Fixes are what to do about its faults.
	Fixes Fixes
}

// Fixes are what an operator should do, for each way in which a source fails.
type Fixes struct {
	// Silent: the source never told of the endpoint.
	Silent string
	// Stale: it once did, and no longer does.
	Stale string
	// Empty: it tells of the endpoint, but that it holds nothing at all.
	Empty string
	// Keys: it tells of blocks that are not those of the prompts computed there.
	Keys string
	// Gone: what it tells of is not there any more when it is asked for.
	Gone string
}

// wanted reports whether the source is meant to tell of the endpoint.
func (s *Source) wanted(e scoring.Endpoint) bool { return s.Wanted != nil && s.Wanted(e) }

// unknownGrain is taken where nobody says: larger than any block that is in
// use, so that a prompt proves something only where it must.
const unknownGrain = 1024

// grain is the tokens of one chunk; block is the engine's own block size, 0
// where it is not known.
func (s *Source) grain(id scoring.EndpointID, block scoring.Tokens) scoring.Tokens {
	if s.Grain != nil {
		if n := s.Grain(id); n > 0 {
			return n
		}
	}
	if !s.Keyed && block > 0 {
		return block
	}
	return unknownGrain
}
