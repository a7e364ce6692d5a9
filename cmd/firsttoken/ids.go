package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// sampledEncoder is the encoder, whose requests are compared with the engines'
// own encoding now and then.
type sampledEncoder struct {
	*prompt.Encoder
	check *prompt.IDCheck
}

// Encode implements extproc.Encoder.
func (e sampledEncoder) Encode(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
	p, err := e.Encoder.Encode(ctx, r)
	if err == nil {
		e.check.Offer(r, p)
	}
	return p, err
}

// findIDs says what is wrong with the token ids of the models that the endpoint
// serves.
func (s *service) findIDs(id scoring.EndpointID) []fidelity.Finding {
	endpoints := s.picker.Endpoints()
	i := slices.IndexFunc(endpoints, func(e scoring.Endpoint) bool { return e.ID == id })
	if i < 0 {
		return nil
	}
	var found []fidelity.Finding
	for _, m := range s.ids.Status() {
		if m.Difference != nil && endpoints[i].Serves(m.Model) {
			found = append(found, fidelity.Finding{
				Source: "prompt", Fault: fmt.Sprintf("token ids of model %s are not those of %s: %s", m.Model, m.Difference.Engine, m.Difference.Cause), Fix: m.Difference.Fix,
			})
		}
	}
	return found
}
