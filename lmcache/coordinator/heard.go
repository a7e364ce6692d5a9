package coordinator

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Heard is when the endpoint's server last registered, reported or sent a
// heartbeat; zero where it has none or nothing was heard. Safe for concurrent
// use.
func (d *Directory) Heard(id scoring.EndpointID) time.Time {
	return d.heardOf(d.mapping.Load().Instances[id])
}

// Held is how many keys the endpoint's server reported that are kept, each rank
// of a chunk counted, and one in two places twice. Safe for concurrent use.
func (d *Directory) Held(id scoring.EndpointID) int {
	server := d.mapping.Load().Instances[id]
	d.mu.RLock()
	defer d.mu.RUnlock()
	if in := d.instances[server]; in != nil {
		return in.held
	}
	return 0
}

// Grain is the number of tokens of one chunk, of every endpoint.
func (d *Directory) Grain(scoring.EndpointID) scoring.Tokens {
	return scoring.Tokens(d.cfg.ChunkSize)
}
