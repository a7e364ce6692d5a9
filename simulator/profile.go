package simulator

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Profile is the speed and size of one kind of engine. With p prefill tokens,
// d decoding requests and h tokens loaded from the host tier, a step takes
//
//	max(StepFloor, Token*(p+d)) + StepOverhead + Attention*(sum of the prefill
//	tokens' contexts) + Decode*d + DecodeContext*(sum of the decodes' contexts)
//	+ HostLoad*h
//
// and FetchLoad for each token that another engine's host tier gives.
// All coefficients are in seconds.
type Profile struct {
	// Name is how flags and reports call it.
	Name string

	Token         float64 // per token computed
	Attention     float64 // per pair of a prefill token and a position it attends to
	StepFloor     float64 // reading the weights once; a small step is no faster
	StepOverhead  float64 // scheduling and sampling, per step
	Decode        float64 // per decoding request
	DecodeContext float64 // per position that a decoding request attends to

	// KVTokens is the size of the prefix cache and of all live requests
	// together.
	KVTokens int
	// BatchTokens is the most that one step computes (max_num_batched_tokens).
	BatchTokens int
	// MaxSeqs is the most requests that run at once (max_num_seqs).
	MaxSeqs int

	// HostTokens is the size of the host tier; 0: there is none.
	HostTokens int
	// HostLoad is what one token costs to bring back from the host tier.
	HostLoad float64
	// FetchLoad is what one token costs to bring from another engine's host tier,
	// where engines share them.
	FetchLoad float64
}

// profiles are fits of measured engines, and demo: slow enough that the noise
// of a busy laptop does not show (every step takes 20 ms or more).
var profiles = []Profile{
	{
		Name: "demo", Token: 1.5e-4, Attention: 2e-9, StepFloor: .018, StepOverhead: .002, Decode: 3e-5, DecodeContext: 6.5e-8,
		KVTokens: 64_000, BatchTokens: 2048, MaxSeqs: 64, HostTokens: 400_000, HostLoad: 1e-5,
	},
	{
		Name: "h100-8b-cpu", Token: 3.3e-5, Attention: 1.1e-9, StepFloor: .0055, StepOverhead: .002, Decode: 1e-5, DecodeContext: 4.5e-8,
		KVTokens: 400_000, BatchTokens: 8192, MaxSeqs: 256, HostTokens: 2_000_000, HostLoad: 6.5e-6,
	},
	{
		Name: "h100x2-32b-cpu", Token: 6.0e-5, Attention: 2.0e-9, StepFloor: .0115, StepOverhead: .003, Decode: 2e-5, DecodeContext: 4.5e-8,
		KVTokens: 270_000, BatchTokens: 8192, MaxSeqs: 256, HostTokens: 2_000_000, HostLoad: 8e-6,
	},
	{
		Name: "3090-7b", Token: 3.2e-4, Attention: 8e-9, StepFloor: .018, StepOverhead: .004, Decode: 3e-5, DecodeContext: 6.5e-8,
		KVTokens: 80_000, BatchTokens: 2048, MaxSeqs: 64,
	},
}

// ProfileNames lists the profiles that there are.
func ProfileNames() []string {
	names := make([]string, len(profiles))
	for i, p := range profiles {
		names[i] = p.Name
	}
	return names
}

// ProfileByName finds a profile. The error lists those that there are.
func ProfileByName(name string) (Profile, error) {
	i := slices.IndexFunc(profiles, func(p Profile) bool { return p.Name == name })
	if i < 0 {
		return Profile{}, fmt.Errorf("engine profile %q is unknown; write one of %s", name, strings.Join(ProfileNames(), ", "))
	}
	return profiles[i], nil
}

// AtSpeed is an engine of the same sizes that takes 1/speed of the time for
// everything. speed is above 0.
func (p Profile) AtSpeed(speed float64) Profile {
	for _, seconds := range []*float64{
		&p.Token, &p.Attention, &p.StepFloor, &p.StepOverhead, &p.Decode, &p.DecodeContext, &p.HostLoad, &p.FetchLoad,
	} {
		*seconds /= speed
	}
	return p
}

// load is what one step has to do.
type load struct {
	prefill, decodes int // tokens
	// prefillContext and decodeContext are the positions attended to.
	prefillContext, decodeContext int
	hostTokens, fetchTokens       int
}

// duration is how long a step with this load takes.
func (p *Profile) duration(l load) time.Duration {
	seconds := max(p.StepFloor, p.Token*float64(l.prefill+l.decodes)) + p.StepOverhead +
		p.Attention*float64(l.prefillContext) +
		p.Decode*float64(l.decodes) + p.DecodeContext*float64(l.decodeContext) +
		p.HostLoad*float64(l.hostTokens) + p.FetchLoad*float64(l.fetchTokens)
	return time.Duration(seconds * float64(time.Second))
}
