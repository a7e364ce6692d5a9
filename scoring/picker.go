package scoring

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// Picker joins endpoints, cache sources, policy and ledger into a decision.
// Safe for concurrent use.
type Picker struct {
	policyID string                 // the configured one; set once
	policies map[string]Policy      // by id; set once
	models   map[string]ModelConfig // set once
	sources  []CacheIndex           // set once
	ledger   *ledger
	// routed tells what was sent where; nil: what is cached stands in. Set before
	// the first Pick.
	routed CacheIndex

	// endpoints is the present list; readers never write to it.
	endpoints atomic.Pointer[[]Endpoint]
}

// NewPicker makes a Picker without endpoints. rng breaks ties; it belongs to
// the Picker from then on. Each source is asked for every request with token
// ids, and the longest match of any counts. The error says that cfg.Policy is
// unknown.
func NewPicker(cfg Config, clock Clock, rng *rand.Rand, sources ...CacheIndex) (*Picker, error) {
	if err := CheckPolicy(cfg.Policy); err != nil {
		return nil, err
	}
	return newPicker(cfg, servicePolicies(cfg), clock, rng, sources), nil
}

// NewPickerWith is NewPicker with a policy of the caller's in place of
// cfg.Policy; id names it in decisions.
func NewPickerWith(cfg Config, id string, policy Policy, clock Clock, rng *rand.Rand, sources ...CacheIndex) *Picker {
	all := servicePolicies(cfg)
	cfg.Policy, all[id] = id, policy
	return newPicker(cfg, all, clock, rng, sources)
}

func newPicker(cfg Config, policies map[string]Policy, clock Clock, rng *rand.Rand, sources []CacheIndex) *Picker {
	p := &Picker{policyID: cfg.Policy, policies: policies, models: cfg.Models, sources: sources, ledger: newLedger(cfg, clock, rng)}
	p.endpoints.Store(new([]Endpoint))
	return p
}

// RememberBy has prefixaware ask source how much of a prompt was sent to each
// endpoint before; without it, that is taken to be what is cached there. Call it
// before the first Pick.
func (p *Picker) RememberBy(source CacheIndex) { p.routed = source }

// SetEndpoints publishes the endpoints of now, all of them. Bookings of those
// that are gone are released. The caller must not change the slice afterwards.
func (p *Picker) SetEndpoints(endpoints []Endpoint) {
	p.ledger.sync(endpoints)
	p.endpoints.Store(&endpoints)
}

// Endpoints are the present endpoints. The caller must not write to the slice.
func (p *Picker) Endpoints() []Endpoint { return *p.endpoints.Load() }

// Pick decides for one request and books it. id must be unique. The errors
// are ErrNoEndpoint, ErrUnknownModel, ErrUnknownEndpoint and ErrModelRequired. The
// caller must end the decision's Reservation. Cost: linear in endpoints and chunks.
func (p *Picker) Pick(id string, prompt *Prompt) (*Decision, error) {
	d, err := p.prepare(id, prompt)
	if err != nil {
		return nil, err
	}
	return p.decide(d)
}

// decide books what is prepared at its best endpoint.
func (p *Picker) decide(d *Decision) (*Decision, error) {
	if err := p.ledger.reserve(d); err != nil {
		return nil, err
	}
	d.Reason = reason(d)
	return d, nil
}

// Explain decides as Pick does, but books nothing, so that the decision has no
// Reservation: it is for people who ask what would be chosen now. Requests that
// would be held are decided too.
func (p *Picker) Explain(prompt *Prompt) (*Decision, error) {
	d, err := p.prepare("", prompt)
	if err != nil {
		return nil, err
	}
	if err := p.ledger.explain(d); err != nil {
		return nil, err
	}
	d.Reason = reason(d)
	return d, nil
}

// prepare asks the sources, so that all that is left to do for a decision can be
// done under the ledger's lock.
func (p *Picker) prepare(id string, prompt *Prompt) (*Decision, error) {
	all := p.Endpoints()
	ready, err := eligible(all, prompt)
	if err != nil {
		return nil, err
	}
	shared := leadingShared(prompt)
	policy := p.policyOf(prompt, ready)
	d := &Decision{
		ID: id, Model: prompt.Model, Policy: policy, Arm: prompt.Arm, Prompt: prompt, policy: p.policies[policy], shared: shared,
		Candidates: p.weigh(prompt, shared, ready),
	}
	if policy == PolicyPrefix {
		p.recall(d, ready)
	}
	return d, nil
}

// recall fills in how much of the prompt was sent to each candidate before.
func (p *Picker) recall(d *Decision, endpoints []Endpoint) {
	var rows [][]Match
	if p.routed != nil && hasTokenIDs(d.Prompt) {
		rows = p.routed.Match(d.Prompt, endpoints)
	}
	for i := range d.Candidates {
		c := &d.Candidates[i]
		row := c.Matches
		if rows != nil {
			row = rows[i]
		}
		c.routed = make([]Tokens, len(d.Prompt.Sequences))
		for s := range min(len(row), len(c.routed)) {
			c.routed[s] = row[s].Cached
		}
	}
}

// policyOf is the id of the policy that ranks a request: its own, else that of the
// model by the alias or name it asked for, else by the endpoints' own name for it,
// else the configured one.
func (p *Picker) policyOf(prompt *Prompt, ready []Endpoint) string {
	if p.policies[prompt.Policy] != nil {
		return prompt.Policy
	}
	for _, name := range []string{prompt.Alias, prompt.Model, ready[0].pool()} {
		if id := p.models[name].Policy; id != "" && p.policies[id] != nil {
			return id
		}
	}
	return p.policyID
}

// eligible are the endpoints that may serve the request now. Nobody may write to
// the result: it is all, where all may.
func eligible(all []Endpoint, prompt *Prompt) ([]Endpoint, error) {
	if prompt.Only != nil && len(all) > 0 {
		all = only(all, prompt.Only)
		if len(all) == 0 {
			return nil, ErrUnknownEndpoint
		}
	}
	model := prompt.Model
	if model == "" && prompt.Source != TokensNone && severalModels(all) {
		return nil, ErrModelRequired
	}
	may := func(e *Endpoint) bool { return e.TakesRequests() && e.Serves(model) }
	n, served, allKnown := 0, false, true
	for i := range all {
		e := &all[i]
		allKnown = allKnown && len(e.Models) > 0
		served = served || e.Serves(model)
		if may(e) {
			n++
		}
	}
	switch {
	case n > 0 && n == len(all):
		return all, nil
	case n > 0:
		ready := make([]Endpoint, 0, n)
		for i := range all {
			if may(&all[i]) {
				ready = append(ready, all[i])
			}
		}
		return ready, nil
	case len(all) > 0 && !served && allKnown:
		return nil, ErrUnknownModel
	}
	return nil, ErrNoEndpoint
}

// only are the endpoints that have one of these addresses or names.
func only(all []Endpoint, names []string) []Endpoint {
	var some []Endpoint
	for i := range all {
		if e := &all[i]; slices.Contains(names, e.Address) || slices.Contains(names, e.Name) {
			some = append(some, *e)
		}
	}
	return some
}

// severalModels reports whether a request that names no model could mean more
// than one.
func severalModels(all []Endpoint) bool {
	first := ""
	for i := range all {
		e := &all[i]
		if len(e.Models) == 0 {
			continue
		}
		if first == "" {
			first = e.Models[0]
		}
		if e.Models[0] != first {
			return true
		}
	}
	return false
}

// weigh makes the candidates: what each endpoint has cached, and the work that
// is left there.
func (p *Picker) weigh(prompt *Prompt, shared []Tokens, endpoints []Endpoint) []Candidate {
	candidates := make([]Candidate, len(endpoints))
	for i := range endpoints {
		candidates[i].Endpoint = endpoints[i]
	}
	if hasTokenIDs(prompt) {
		for _, source := range p.sources {
			for i, row := range source.Match(prompt, endpoints) {
				if row != nil {
					candidates[i].Known = true
					candidates[i].Matches = longest(candidates[i].Matches, row)
				}
			}
		}
	}
	root, adapters := ChainRoot("", prompt.Salt), ChainRoot(prompt.Model, prompt.Salt)
	for i := range candidates {
		c := &candidates[i]
		if c.root = root; slices.Contains(c.Endpoint.Adapters, prompt.Model) {
			c.root = adapters
		}
		c.Area, c.Uncached, c.Cached = requestWork(prompt, shared, c.Matches, nil)
	}
	return candidates
}

func hasTokenIDs(prompt *Prompt) bool {
	return slices.ContainsFunc(prompt.Sequences, func(s Sequence) bool { return s.Usable > 0 })
}

// longest merges what two sources say of one endpoint: for each sequence the
// longer match.
func longest(a, b []Match) []Match {
	if a == nil {
		return b
	}
	for i := range a {
		if i < len(b) && b[i].Cached > a[i].Cached {
			a[i] = b[i]
		}
	}
	return a
}

// reason says why the choice is the best candidate, in the words of its policy.
func reason(d *Decision) Reason {
	if len(d.Candidates) == 1 {
		return ReasonOnly
	}
	if policy, ok := d.policy.(explainer); ok {
		return policy.explain(d)
	}
	return weighed(d)
}

// weighed says what a policy that weighs what is cached against what is queued
// found.
func weighed(d *Decision) Reason {
	choice := &d.Candidates[0]
	most, least := choice.Cached, choice.Cached
	for i := range d.Candidates {
		most, least = max(most, d.Candidates[i].Cached), min(least, d.Candidates[i].Cached)
	}
	switch {
	case len(d.Prompt.Sequences) == 0:
		return ReasonLoad
	case choice.Cached < most:
		return ReasonSpread
	case choice.Cached > least:
		return ReasonCached
	}
	return ReasonIdle
}

// Find is the open reservation of a decision id; nil where it is unknown or
// has ended.
func (p *Picker) Find(id string) *Reservation { return p.ledger.find(id) }

// Expire lets happen what happens by time alone and returns the reservations
// that ended by age since the last call. Call it several times a second.
func (p *Picker) Expire() []*Reservation { return p.ledger.expire() }

// SetEngine takes in what an engine says of itself, in place of what it said
// before. An endpoint that is gone is passed over.
func (p *Picker) SetEngine(id EndpointID, e Engine) { p.ledger.setEngine(id, e) }
