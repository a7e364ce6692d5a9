package lmcache

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Heard is when a worker of the endpoint's instance last sent anything, a
// report, a heartbeat or a question; zero where it has no instance or nothing
// was heard. Safe for concurrent use; the cost is linear in the workers.
func (s *Source) Heard(id scoring.EndpointID) time.Time {
	instance := s.current().Instances[id]
	if instance == "" {
		return time.Time{}
	}
	return s.roster.Heard(instance)
}

// Heard implements Roster.
func (c *Controller) Heard(instance string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last time.Time
	for id, w := range c.registry.workers {
		if id.Instance == instance && w.message.After(last) {
			last = w.message
		}
	}
	return last
}
