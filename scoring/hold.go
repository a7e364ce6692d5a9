package scoring

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// HoldConfig sets late dispatch: requests wait here, where the shortest goes
// first, and not in an engine's own queue, which is first come, first served.
type HoldConfig struct {
	// Enabled keeps a request back while every engine that would be its choice
	// has more than steps of work booked (ttft). Envoy's ext_proc filter must allow
	// the wait by its max_message_timeout where it buffers bodies: see
	// server.max_message_timeout.
	Enabled bool `yaml:"enabled"`
	// Max is how long a request is held at most. It then goes to what is the best
	// engine by then.
	Max time.Duration `yaml:"max"`
	// Steps is how much work an engine may have booked and still be sent more, in
	// steps of batch_tokens. Below 1 engines run dry between two requests.
	Steps float64 `yaml:"steps"`
}

// DefaultHoldConfig is what holds where the operator says nothing.
func DefaultHoldConfig() HoldConfig {
	return HoldConfig{Max: 30 * time.Second, Steps: 1}
}

// Validate joins all faults, each beginning with its path below path.
func (c HoldConfig) Validate(path string) error {
	var faults []error
	if c.Max <= 0 {
		faults = append(faults, fmt.Errorf("%s.max: is %s; write a duration above zero, such as 30s", path, c.Max))
	}
	if !(c.Steps >= 1) { // nor NaN
		faults = append(faults, fmt.Errorf("%s.steps: is %g; write 1 or more", path, c.Steps))
	}
	return errors.Join(faults...)
}

// holdAging is what a second of waiting outweighs of work, in seconds, so that
// long prompts are not held for ever behind short ones.
const holdAging = 0.1

// Held is a request that was offered and waits. Exactly once either its release
// function is called or Cancel reports true. Safe for concurrent use.
type Held struct {
	picker  *Picker                // set once in Offer
	release func(*Decision, error) // set once in Offer, nil until it returns
	arrived time.Time              // set once in Offer
	key     float64                // set once in Offer; see heldOrder
	number  uint64                 // set once in Offer

	// The following are guarded by ledger.mu until gone, and constant from then on.
	decision *Decision // its candidates are those of group.endpoints
	group    *heldGroup
	err      error // in place of a decision
	gone     bool
}

// Offer is Pick for a request that may wait. It is decided at once, or held: then
// the result is a Held alone, and release is called once, as soon as an event or
// Dispatch lets it go, with what Pick would have returned. release is called with
// no lock held, by whoever told the event, and must not block. The caller must
// call Dispatch or Cancel after MaxHold. Not held are requests without prompt,
// those restricted to some endpoints, and those of a policy that does not know when
// an engine is free.
//
// A request is held while every endpoint that would be its choice has more booked
// than HoldConfig.Steps, given that those held before it, in the order of least
// work, go where they would.
func (p *Picker) Offer(id string, prompt *Prompt, release func(*Decision, error)) (*Decision, *Held, error) {
	d, err := p.prepare(id, prompt)
	if err != nil {
		return nil, nil, err
	}
	if !p.ledger.cfg.Hold.Enabled || prompt.Length() == 0 || prompt.Only != nil || !holds(d.Policy) {
		d, err := p.decide(d)
		return d, nil, err
	}
	h := &Held{picker: p, decision: d}
	if err := p.ledger.offer(h, release); err != nil {
		return nil, nil, err
	}
	if h.release != nil {
		return nil, h, nil
	}
	d.Reason = reason(d)
	return d, nil, nil
}

// holds reports whether a policy may hold requests: ttft, and what takes its place
// in a simulation.
func holds(policy string) bool { return policy == PolicyTTFT || policies[policy] == nil }

// MaxHold is how long a request may be held.
func (p *Picker) MaxHold() time.Duration { return p.ledger.cfg.Hold.Max }

// NextRelease is when time alone will let go of something that is held, if
// nothing happens before: call Expire then. ok is false where there is no such
// time. Rescheduled tells of changes.
func (p *Picker) NextRelease() (at time.Time, ok bool) {
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	return p.ledger.nextRelease, !p.ledger.nextRelease.IsZero()
}

// Rescheduled gets a value when NextRelease has changed; several changes may be
// one value.
func (p *Picker) Rescheduled() <-chan struct{} { return p.ledger.rescheduled }

// Cancel gives the request up: its client is gone. It reports false where the
// request is held no longer: release is called, or was, and what it got is to be
// ended.
func (h *Held) Cancel() bool {
	l := h.picker.ledger
	l.lock()
	defer l.unlock()
	if h.gone {
		return false
	}
	h.gone = true
	l.held.remove(h)
	return true
}

// Dispatch sends the request to the endpoint that is best now, however much is
// booked there; release is called before Dispatch returns. It reports false where
// the request was held no longer.
func (h *Held) Dispatch() bool {
	l := h.picker.ledger
	l.lock()
	defer l.unlock()
	if h.gone {
		return false
	}
	l.held.remove(h)
	l.followLocked(h.decision)
	l.weighAllLocked(h.decision)
	l.rankLocked(h.decision)
	l.goLocked(h)
	return true
}

// tell calls release. The request is gone; no lock may be held.
func (h *Held) tell() {
	if h.err != nil {
		h.release(nil, h.err)
		return
	}
	h.decision.Reason = reason(h.decision)
	h.release(h.decision, nil)
}

// offer books the request, or takes it in to hold it: h.release is set then.
func (l *ledger) offer(h *Held, release func(*Decision, error)) error {
	h.arrived = l.lock()
	err := l.admitLocked(h)
	l.passLocked()
	if err == nil && !h.gone {
		h.release = release
	}
	l.letGo()
	return err
}

// admitLocked puts the request among those that are held. Caller must hold mu.
func (l *ledger) admitLocked(h *Held) error {
	d := h.decision
	group, err := l.groupLocked(d.Prompt)
	if err != nil {
		return err
	}
	h.group = group
	if !slices.EqualFunc(d.Candidates, h.group.endpoints, func(c Candidate, e Endpoint) bool { return c.Endpoint.ID == e.ID }) {
		h.adopt() // the endpoints changed while sources were asked
	}
	if err := l.completeLocked(d); err != nil {
		return err
	}
	l.arriveLocked(d)
	least := d.Candidates[0].Work
	for i := range d.Candidates {
		least = min(least, d.Candidates[i].Work)
	}
	l.heldNumber++
	h.key, h.number = least+holdAging*l.now.Sub(l.began).Seconds(), l.heldNumber
	l.held.insert(h)
	return nil
}

// groupLocked is the group of a prompt, with the endpoints of now where nothing of
// it is held. Caller must hold mu.
func (l *ledger) groupLocked(prompt *Prompt) (*heldGroup, error) {
	var key groupKey
	if slices.ContainsFunc(l.endpoints, func(e Endpoint) bool { return slices.Contains(e.Models, prompt.Model) }) {
		key = groupKey{prompt.Model, true}
	} else if prompt.Model == "" {
		key.listed = true
	}
	if g := l.held.group(key); g != nil {
		return g, nil
	}
	ready, err := eligible(l.endpoints, prompt)
	if err != nil {
		return nil, err
	}
	g := &heldGroup{key: key, endpoints: ready, accounts: make([]*account, len(ready))}
	for i := range ready {
		g.accounts[i] = l.accounts[ready[i].ID]
	}
	return g, nil
}

// adopt makes the candidates those of the group's endpoints. What was known of an
// endpoint still is; of those that are new nothing is known to be cached.
func (h *Held) adopt() {
	d, g := h.decision, h.group
	candidates := make([]Candidate, len(g.endpoints))
	for i, e := range g.endpoints {
		c := &candidates[i]
		if at := slices.IndexFunc(d.Candidates, func(c Candidate) bool { return c.Endpoint.ID == e.ID }); at >= 0 {
			*c = d.Candidates[at]
		} else {
			c.root = d.Prompt.Root(&e)
			c.Area, c.Uncached, c.Cached = requestWork(d.Prompt, d.shared, nil, nil)
		}
		c.Endpoint, c.account = e, g.accounts[i]
	}
	d.Candidates = candidates
}

// syncHeldLocked follows a change of the endpoints: what none of them may serve any
// more is let go with an error. Caller must hold mu.
func (l *ledger) syncHeldLocked() {
	before := l.held.groups
	l.held = heldOrder{}
	for _, g := range before {
		for _, h := range g.order {
			if h.group, h.err = l.groupLocked(h.decision.Prompt); h.err != nil {
				h.gone = true
				l.released = append(l.released, h)
				continue
			}
			h.adopt()
			l.held.insert(h)
		}
	}
}

// unlock is mu's, after an event: what is held and may go now goes, and is told
// of afterwards.
func (l *ledger) unlock() {
	l.passLocked()
	l.letGo()
}

// letGo unlocks mu and tells of what went.
func (l *ledger) letGo() {
	released := l.released
	l.released = nil
	l.mu.Unlock()
	for _, h := range released {
		if h.release != nil { // else Offer returns it
			h.tell()
		}
	}
}
