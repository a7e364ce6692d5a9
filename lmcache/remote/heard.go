package remote

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Heard is when the registry last said that the endpoint's instance reports to
// it; zero where it has not. Safe for concurrent use.
func (s *Source) Heard(id scoring.EndpointID) time.Time {
	v := s.view.Load()
	instance := v.mapping.Instances[id]
	if instance == "" || !v.members.reports(instance) {
		return time.Time{}
	}
	return v.polled
}
