package trace

import (
	"cmp"
	"slices"
	"time"
)

// Request is one request of a trace.
type Request struct {
	// At is when it came, since the trace's first one. Never negative.
	At time.Duration
	// Prompt and Output are tokens; each is at least 1.
	Prompt, Output int
	// Blocks name the content of the prompt's leading blocks of
	// Trace.BlockTokens tokens, each together with all before it: equal values at
	// equal positions are equal prefixes. The last may stand for a block that the
	// prompt does not fill: only the first Prompt/BlockTokens can be shared.
	// Empty: nothing is known to be shared.
	Blocks []uint64
	// Session says whose request it is; empty: that is not known.
	Session string
}

// Trace is what one or several files hold.
type Trace struct {
	// Format is what the files were read as.
	Format Format
	// Requests are in order of arrival.
	Requests []Request
	// BlockTokens is the number of tokens that one of Blocks stands for; 0 where
	// the format tells nothing of prefixes.
	BlockTokens int
	// Notes say, a sentence each, what the files did not tell and what was taken
	// in its place.
	Notes []string
}

// Between keeps the requests that came from from on and before to, and counts
// time from from. A to of 0 keeps all to the end. The result shares Blocks with
// what it is given.
func Between(requests []Request, from, to time.Duration) []Request {
	var kept []Request
	for _, r := range requests {
		if r.At >= from && (to == 0 || r.At < to) {
			r.At -= from
			kept = append(kept, r)
		}
	}
	return kept
}

// inOrder sorts by arrival; requests of the same moment stay as they are.
func inOrder(requests []Request) {
	slices.SortStableFunc(requests, func(a, b Request) int { return cmp.Compare(a.At, b.At) })
}
