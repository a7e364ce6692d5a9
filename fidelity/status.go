package fidelity

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// SourceStatus is one source at one endpoint, for people.
type SourceStatus struct {
	Source string `json:"source"`
	// Used: what it tells of the endpoint counts now.
	Used bool `json:"used"`
	// Heard is when it last had news of the endpoint; null: never, or it needs
	// none.
	Heard *time.Time `json:"heard"`
	Echo  EchoStatus `json:"echo"`
	// Predicted are the tokens that it told to be cached in the last window of
	// requests, Counted those that the engine found; null before the first.
	Predicted *scoring.Tokens `json:"predicted"`
	Counted   *scoring.Tokens `json:"counted"`
	// Fault is why it does not count, Fix what to change; empty where all is
	// well.
	Fault string `json:"fault,omitempty"`
	Fix   string `json:"fix,omitempty"`
}

// EchoStatus are the last prompts computed at an endpoint that proved something,
// and those of them that the source showed; at most 16.
type EchoStatus struct {
	Asked int `json:"asked"`
	Shown int `json:"shown"`
}

// Status is what is known of how well an endpoint's caches are known.
type Status struct {
	// Sources are those that tell of the endpoint or should, in the order in
	// which they are asked; memory is the last.
	Sources []SourceStatus
	// Findings are what is wrong with the endpoint as a whole, and what others
	// found out.
	Findings []Finding
}

// Status describes an endpoint; without rows where it is not known.
func (c *Checker) Status(id scoring.EndpointID) Status {
	status := Status{Sources: []SourceStatus{}}
	w := c.of(id)
	if w == nil {
		return status
	}
	n := c.news(w)
	wanted := make([]bool, len(c.sources))
	for s := range c.sources {
		wanted[s] = c.sources[s].wanted(n.endpoint)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	told := false
	for s := range w.trials {
		row := c.rowLocked(w, n, s)
		if s == len(c.sources) {
			row.Used = !told
		} else if told = told || row.Used; !row.Used && row.Heard == nil && row.Echo.Asked == 0 && !wanted[s] {
			continue // It has nothing to do with the endpoint.
		}
		status.Sources = append(status.Sources, row)
	}
	if f := w.hits.finding(); f != nil {
		status.Findings = append(status.Findings, *f)
	}
	status.Findings = append(status.Findings, n.found...)
	return status
}

// rowLocked describes source s. Caller must hold w.mu.
func (c *Checker) rowLocked(w *watched, n news, s int) SourceStatus {
	t := &w.trials[s]
	row := SourceStatus{Source: c.source(s).Name}
	row.Echo.Shown, row.Echo.Asked = t.echo.last(remembered)
	if s < len(c.sources) {
		row.Used = w.gates[s].known.Load() && t.fault == kindNone
		if heard := n.heard[s]; !heard.IsZero() {
			row.Heard = &heard
		}
	}
	if l := w.hits.last; l != nil {
		row.Predicted, row.Counted = new(l.said[s]), new(l.counted)
	}
	if f := c.explainLocked(w, n, s); f != nil {
		row.Fault, row.Fix = f.Fault, f.Fix
	}
	return row
}
