package discovery

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// Metrics are the counters and gauges of this package. The label endpoint is
// an endpoint's name; the series of one that is gone vanish.
type Metrics struct {
	probes   *prometheus.CounterVec
	duration *prometheus.HistogramVec
	asked    *prometheus.CounterVec
	resolved *prometheus.CounterVec
	ready    *prometheus.GaugeVec
	models   *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_discovery_probes_total",
			Help: "Health probes by endpoint and result: ok, connect (refused or unreachable), timeout, status (not 2xx), other.",
		}, []string{"endpoint", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "firsttoken_discovery_probe_duration_seconds",
			Help:    "Time of a health probe, connection included, by result.",
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 2, 3, 5},
		}, []string{"result"}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_discovery_models_requests_total",
			Help: "Questions for an engine's models by result, as for probes.",
		}, []string{"result"}),
		resolved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_discovery_resolves_total",
			Help: "Host names resolved, by result: ok or error. After an error the former addresses stay.",
		}, []string{"result"}),
		ready: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_endpoint_ready",
			Help: "1 where the endpoint may get requests, 0 after failed probes.",
		}, []string{"endpoint"}),
		models: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_endpoint_models",
			Help: "Number of model names that the endpoint serves; 0: not known, it gets requests for every model.",
		}, []string{"endpoint"}),
	}
	reg.MustRegister(m.probes, m.duration, m.asked, m.resolved, m.ready, m.models)
	return m
}

// published brings the gauges to the new list and forgets who is gone.
func (m *Metrics) published(before, now []scoring.Endpoint) {
	present := make(map[string]bool, len(now))
	for _, e := range now {
		present[e.Name] = true
		ready := 0.0
		if e.Ready {
			ready = 1
		}
		m.ready.WithLabelValues(e.Name).Set(ready)
		m.models.WithLabelValues(e.Name).Set(float64(len(e.Models)))
	}
	for _, e := range before {
		if !present[e.Name] {
			m.ready.DeleteLabelValues(e.Name)
			m.models.DeleteLabelValues(e.Name)
			m.probes.DeletePartialMatch(prometheus.Labels{"endpoint": e.Name})
		}
	}
}
