package scoring

import (
	"errors"
	"slices"
	"time"
)

// Errors of Pick. Only extproc turns them into HTTP statuses.
var (
	// ErrNoEndpoint: no endpoint that may serve the model is ready now.
	ErrNoEndpoint = errors.New("no ready endpoint")
	// ErrUnknownModel: every endpoint's models are known and none is the one
	// asked for.
	ErrUnknownModel = errors.New("no endpoint serves the model")
	// ErrUnknownEndpoint: there are endpoints, but none of those that the request
	// is restricted to.
	ErrUnknownEndpoint = errors.New("no endpoint has an address or name that the request is restricted to")
	// ErrModelRequired: the request names no model and more than one is served.
	ErrModelRequired = errors.New("the request names no model and more than one is served")
)

// Work is an amount of prefill computation in the trapezoid's unit: one token
// attending to one position. Never negative.
type Work float64

// Candidate is one endpoint weighed for one request. The numbers are those the
// policy saw, kept for logs, /decisions and for a booking that has to move. All
// but Endpoint, Known, Cached, Matches, Area and Uncached are of the moment of
// the choice, filled in under the ledger's lock.
type Candidate struct {
	Endpoint Endpoint
	// Cached is the number of prompt tokens held, summed over sequences. Known
	// is false where no cache source knows the endpoint.
	Cached Tokens
	Known  bool
	// Matches are what the endpoint holds of each sequence, in order.
	Matches []Match
	// Optimistic is the number of tokens beyond Cached that requests under way
	// there bring, Remote how many of Cached have to come from another engine.
	Optimistic Tokens
	Remote     Tokens
	// Routed is the number of prompt tokens that were sent there before, in whole
	// blocks and as far as that is remembered; 0 where the policy does not ask.
	Routed Tokens
	// Area is this request's own prefill work there in the trapezoid's unit,
	// QueuedArea the work booked there and not yet seen finished.
	Area       Work
	QueuedArea Work
	// Uncached is how many tokens the engine computes given Cached; QueuedTokens
	// the sum of those of the requests booked there without a first token.
	Uncached     Tokens
	QueuedTokens Tokens
	// Waiting is the number of requests booked there without a first token,
	// Decoding that of those past it, HeldTokens the tokens of KV memory that all
	// of them hold.
	Waiting    int
	Decoding   int
	HeldTokens Tokens
	// In seconds: Load is how long the engine takes to bring what is cached in
	// slower tiers to where it computes, which it does before it computes the
	// rest; Work is this request's own prefill, Load included; Booked is the work
	// of the requests booked there without a first token, Backlog what is left of
	// it by now; KVWait how long the request waits there for KV memory.
	Load    float64
	Work    float64
	Booked  float64
	Backlog float64
	KVWait  float64
	// Rate is the requests per second that were sent there lately.
	Rate float64
	// Turn is when the endpoint was last chosen for this model, counted in
	// decisions; 0: never.
	Turn uint64
	// Cost and Tie are the policy's verdict: the least Cost wins, then the least
	// Tie.
	Cost, Tie float64
	// Estimate is the predicted time to first token, whatever the policy:
	// Backlog, KVWait, Work, and by how much first tokens came later than these of
	// late.
	Estimate time.Duration

	// equivalents and steps are the part of Work that is computed, for the fit.
	equivalents, steps float64
	// optimistic is how many leading tokens of each sequence requests under way
	// there bring; nil: none. root is the chains' root there.
	optimistic []Tokens
	root       uint64
	// routed is what was sent there before of each sequence; nil: nobody asked.
	routed []Tokens
	// account is the endpoint's, as long as it is not gone.
	account *account
}

// Reason says why the endpoint was chosen. The values label metrics.
type Reason string

// The reasons.
const (
	// ReasonOnly: there was one candidate.
	ReasonOnly Reason = "only"
	// ReasonTurn: the policy does not weigh; it was this endpoint's turn.
	ReasonTurn Reason = "turn"
	// ReasonChance: it was drawn.
	ReasonChance Reason = "chance"
	// ReasonSession: it is the endpoint of the request's session.
	ReasonSession Reason = "session"
	// ReasonShort: of what is cached, or was sent before, no endpoint has enough for
	// the policy to go by; chosen by the session, else by the load.
	ReasonShort Reason = "short"
	// ReasonCached: it holds more of the prompt than any other and won by it.
	ReasonCached Reason = "cached"
	// ReasonSpread: another endpoint holds more of the prompt, but has so much
	// queued, or loads it so slowly, that computing here is sooner.
	ReasonSpread Reason = "spread"
	// ReasonIdle: nothing is cached that sets the candidates apart; it has the
	// least queued.
	ReasonIdle Reason = "idle"
	// ReasonLoad: the request has no prompt to weigh, or the policy looks at the
	// load alone; the least loaded.
	ReasonLoad Reason = "load"
)

// Decision is what Pick answers. It is immutable once returned.
type Decision struct {
	// ID is random and unguessable enough never to repeat; it ties the access
	// log's record to the decision.
	ID   string
	Time time.Time
	// Held is how long the request was held before.
	Held  time.Duration
	Model string
	// Policy is the id of the one that ranked the candidates, Arm the prompt's.
	Policy string
	Arm    string
	Reason Reason
	Prompt *Prompt
	// Pool is what held for all candidates.
	Pool Pool
	// policy is that of id Policy, shared is leadingShared of the prompt.
	policy Policy
	shared []Tokens
	// Candidates are all endpoints weighed, best first by the policy. The
	// first one is the choice; of a Shadow that is placed, the one that serves.
	Candidates []Candidate
	// Shadow is nil where the request goes by our word.
	Shadow *Shadow
	// Reservation is the booking; whoever got the Decision must end it.
	Reservation *Reservation
}

// Endpoint is the choice.
func (d *Decision) Endpoint() Endpoint { return d.Candidates[0].Endpoint }

// Estimate is the predicted time to first token at the chosen endpoint.
func (d *Decision) Estimate() time.Duration { return d.Candidates[0].Estimate }

// withoutTokenIDs is a copy that keeps every number and lets the token ids go.
func (d *Decision) withoutTokenIDs() *Decision {
	prompt := *d.Prompt
	prompt.Sequences = slices.Clone(prompt.Sequences)
	for i := range prompt.Sequences {
		prompt.Sequences[i].TokenIDs, prompt.Sequences[i].Usable = nil, 0
	}
	light := *d
	light.Prompt = &prompt
	return &light
}

// Outcome says how a request ended. The values label metrics.
type Outcome string

// The outcomes.
const (
	// OutcomeComplete: the answer ended as it should.
	OutcomeComplete Outcome = "complete"
	// OutcomeError: the engine answered with status 400 or above, or the
	// connection to it failed.
	OutcomeError Outcome = "error"
	// OutcomeCancelled: the client went away.
	OutcomeCancelled Outcome = "cancelled"
	// OutcomeExpired: nothing was heard until the booking's age ran out.
	OutcomeExpired Outcome = "expired"
)
