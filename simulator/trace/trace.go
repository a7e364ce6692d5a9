package trace

import "time"

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
}

// Trace is what one or several files hold.
type Trace struct {
	// Requests are in order of arrival.
	Requests []Request
	// BlockTokens is the number of tokens that one of Blocks stands for; 0 where
	// the format tells nothing of prefixes.
	BlockTokens int
}
