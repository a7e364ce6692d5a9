package fidelity

import "github.com/firsttoken/firsttoken/scoring"

// Finding is one thing that keeps us from knowing what an endpoint has cached,
// in words for whoever runs it.
type Finding struct {
	// Source is what it is about: the name of a source, or "prompt" where our
	// token ids are not the engine's. Empty: the endpoint as a whole.
	Source string `json:"source,omitempty"`
	// Fault is what is wrong, with the values that show it.
	Fault string `json:"fault"`
	// Fix is what to change, by its name, and where.
	Fix string `json:"fix"`
}

// Finder tells what somebody else found out about an endpoint; nil where there
// is nothing to tell. What it says of a source stands before what is inferred
// from the source's misses. It must be safe for concurrent use and return at
// once.
type Finder func(id scoring.EndpointID) []Finding
