package replay

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
	"github.com/firsttoken/firsttoken/simulator/baseline"
)

// Setup is everything about a run but its workload.
type Setup struct {
	// Endpoints are the engines; at least one.
	Endpoints []Endpoint
	// Policy is an id of scoring's, or of a baseline's: see Policies. It takes the
	// place of Scoring.Policy.
	Policy string
	// Scoring is the router's configuration, holding included.
	Scoring scoring.Config
	// Sessions: the router is told the requests' sessions.
	Sessions bool
	// BlockTokens is what one of the workload's Blocks stands for, and the size
	// of the engines' blocks and of their host tier's chunks. 0: 512.
	BlockTokens int

	// Truth is where the router knows from what an engine holds. prefixaware knows
	// of its own decisions only: it is always Routed.
	Truth Truth
	// EventDelay is how late it hears of it, with Events.
	EventDelay time.Duration
	// HostSeconds is what the router is told that a token costs to bring from an
	// engine's own host tier. 0: it is not told.
	HostSeconds float64
	// Shared: engines read each other's host tiers, at FetchPerToken seconds for
	// each token, and what one computes is in its host tier at once.
	Shared        bool
	FetchPerToken float64

	// Replicas is how many routers there are, taking turns. 0: 1. With Ledger
	// they share what is booked, else each knows of its own requests only.
	Replicas int
	Ledger   bool

	// TokenBias and TokenSigma spoil what the router believes of each prompt's
	// length: it is the true one times TokenBias (0: 1) times e to the power of a
	// normal variable of standard deviation TokenSigma.
	TokenBias, TokenSigma float64
	// Failures are times during which an endpoint is gone.
	Failures []Failure

	// Warm is how long at the beginning arrivals are not counted.
	Warm time.Duration
	// SampleEvery is the distance of the report's queue samples. 0: 1s.
	SampleEvery time.Duration
	// Seed decides every draw.
	Seed uint64
	// Progress is told now and then how many requests have ended; nil: nobody.
	Progress func(ended int)
}

// Endpoint is one simulated engine.
type Endpoint struct {
	Profile simulator.Profile
	// Kind labels engines that are alike, for the fit per kind; empty: all are.
	Kind string
}

// Truth is a source of what engines hold.
type Truth uint8

// The sources.
const (
	// Events: engines tell of each block, of HBM and of the host tier.
	Events Truth = iota
	// Routed: the router remembers what it sent where.
	Routed
)

// Failure is a time during which an endpoint is gone. Its requests that have no
// first token are routed anew, the others end there. It comes back empty.
type Failure struct {
	Endpoint int // index
	From, To time.Duration
}

const (
	defaultBlockTokens = 512
	defaultSampleEvery = time.Second
	// DefaultEventDelay is what engine, network and subscriber take together.
	DefaultEventDelay = 20 * time.Millisecond
)

// validate joins all that is wrong with the setup.
func (s *Setup) validate() error {
	var faults []error
	if len(s.Endpoints) == 0 {
		faults = append(faults, errors.New("no endpoints; a replay needs at least one"))
	}
	if s.BlockTokens < 0 {
		faults = append(faults, fmt.Errorf("block of %d tokens: must be above 0", s.BlockTokens))
	}
	if size := cmp.Or(s.BlockTokens, defaultBlockTokens); s.Truth == Routed && routedBlock%size != 0 && size%routedBlock != 0 {
		faults = append(faults, fmt.Errorf("block of %d tokens: own memory is of blocks of %d, write a multiple or a divisor", size, routedBlock))
	}
	for i, e := range s.Endpoints {
		if e.Profile.KVTokens < max(s.BlockTokens, 1) || e.Profile.BatchTokens < 1 || e.Profile.MaxSeqs < 1 {
			faults = append(faults, fmt.Errorf("endpoint %d: %d KV tokens, %d tokens a step, %d sequences: there must be room for one block, one token and one sequence",
				i, e.Profile.KVTokens, e.Profile.BatchTokens, e.Profile.MaxSeqs))
		}
	}
	for _, f := range s.Failures {
		if f.Endpoint < 0 || f.Endpoint >= len(s.Endpoints) {
			faults = append(faults, fmt.Errorf("failure of endpoint %d: there are %d, counted from 0", f.Endpoint, len(s.Endpoints)))
		}
		if f.From < 0 || f.To <= f.From {
			faults = append(faults, fmt.Errorf("failure of endpoint %d from %s to %s: must begin at 0 or later and end after that", f.Endpoint, f.From, f.To))
		}
	}
	if s.TokenBias < 0 || s.TokenSigma < 0 || s.FetchPerToken < 0 || s.HostSeconds < 0 || s.EventDelay < 0 || s.Replicas < 0 {
		faults = append(faults, fmt.Errorf("token bias %g, token sigma %g, fetch of %g and host load of %g s a token, event delay %s, %d replicas: none may be negative",
			s.TokenBias, s.TokenSigma, s.FetchPerToken, s.HostSeconds, s.EventDelay, s.Replicas))
	}
	return errors.Join(faults...)
}

// Policies are the ids that Setup.Policy may have: those of the service first.
func Policies() []string { return append(scoring.PolicyIDs(), baseline.IDs()...) }
