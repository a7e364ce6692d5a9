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

	suspended *prometheus.GaugeVec
	misses    *prometheus.CounterVec
	trials    *prometheus.CounterVec
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
		suspended: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_endpoint_suspended",
			Help: "1 where the endpoint may hang: it let a first token's deadline pass and gave nobody else one; it gets no requests where others serve its models.",
		}, []string{"endpoint"}),
		misses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_endpoint_deadline_misses_total",
			Help: "Requests taken from the endpoint because no first token came in time, by what it did meanwhile: silent (no first token at all), late (others had theirs).",
		}, []string{"endpoint", "cause"}),
		trials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_discovery_trials_total",
			Help: "Requests for one token with which suspended endpoints were tried, by result, as for probes.",
		}, []string{"result"}),
	}
	reg.MustRegister(m.probes, m.duration, m.asked, m.resolved, m.ready, m.models, m.suspended, m.misses, m.trials)
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
			m.suspended.DeleteLabelValues(e.Name)
			m.misses.DeletePartialMatch(prometheus.Labels{"endpoint": e.Name})
		}
	}
}

func (m *Metrics) setSuspended(name string, on bool) {
	value := 0.0
	if on {
		value = 1
	}
	m.suspended.WithLabelValues(name).Set(value)
}

func (m *Metrics) missed(name string, silent bool) {
	cause := "late"
	if silent {
		cause = "silent"
	}
	m.misses.WithLabelValues(name, cause).Inc()
}
