package routed

import "github.com/firsttoken/firsttoken/scoring"

// Status is what is believed of one endpoint, for people.
type Status struct {
	// Tokens are believed to be held, of GPUTokens and HostTokens of room.
	Tokens     scoring.Tokens `json:"tokens"`
	GPUTokens  scoring.Tokens `json:"gpu_tokens"`
	HostTokens scoring.Tokens `json:"host_tokens"`
	// Share of that room is believed to be used as was routed; less than 1
	// where the engine found clearly less than was predicted.
	Share float64 `json:"believed_share"`
	// CapacityTold: the engine says how much its GPU holds; else it is guessed.
	CapacityTold bool `json:"capacity_told"`
}

// Status tells of an endpoint; nil where it is not known.
func (m *Memory) Status(id scoring.EndpointID) *Status {
	h := m.of(id)
	if h == nil {
		return nil
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	gpu, host := h.capacityLocked()
	return &Status{
		Tokens: scoring.Tokens(h.blocks.size()) * block, GPUTokens: gpu, HostTokens: host,
		Share: shares[h.guard.level], CapacityTold: h.told != nil && h.told.CapacityTokens > 0,
	}
}
