package prompt

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the package.
type Metrics struct{}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics { return &Metrics{} }
