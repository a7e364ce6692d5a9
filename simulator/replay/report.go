package replay

import "time"

// Report is what a run brought forth.
type Report struct {
	// Policy is the setup's.
	Policy string
	// Requests are those counted, in order of arrival: they came after the time
	// of warming up and got a first token.
	Requests []Request
	// Queue is how many requests waited, at regular times from the start on.
	Queue []Sample
	// End is when the last request was over, Span how long there was between the
	// first arrival that is counted and the last.
	End, Span time.Duration
	// BusyShare is the share of Span that engines computed, mean over endpoints.
	BusyShare float64
	// Preemptions, Rerouted and Unserved count over the whole run: requests that
	// had to give up their memory, that were routed anew because their endpoint
	// was gone, and that no endpoint could take or whose answer broke off.
	Preemptions, Rerouted, Unserved int
}

// Request is what one request met with.
type Request struct {
	// At is its arrival, TTFT the time from then to its first token, with all
	// holding and routing anew.
	At, TTFT time.Duration
	// TPOT is the mean time between two tokens of its answer; 0 where it has one.
	TPOT time.Duration
	// Estimate is what the router predicted for TTFT, from its last choice on.
	Estimate time.Duration
	// Prompt, Output and Cached are tokens; Cached those that the engine did not
	// compute, whichever tier or engine they came from.
	Prompt, Output, Cached int
	// Endpoint is the index of the one that served it.
	Endpoint int

	n int // place in the workload
}

// Sample is the queue at one time.
type Sample struct {
	At time.Duration
	// Waiting is the number of requests that have come and have no first token;
	// Held those of them that the router holds.
	Waiting, Held int
	// Running is the number of requests past their first token.
	Running int
}
