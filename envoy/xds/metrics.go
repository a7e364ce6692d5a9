package xds

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the counters and gauges of this package.
type Metrics struct {
	streams *prometheus.GaugeVec
	sent    *prometheus.CounterVec
	answers *prometheus.CounterVec
	late    prometheus.Counter
}

// NewMetrics makes the metrics and registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_xds_streams",
			Help: "Envoys that are connected to the xDS server, by protocol: sotw or delta.",
		}, []string{"protocol"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_xds_sent_total",
			Help: "Messages to Envoys by kind: clusters, endpoints, listeners, routes.",
		}, []string{"kind"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_xds_answers_total",
			Help: "Envoys' answers by kind and result: accepted, or rejected, after which that Envoy goes on with what it had.",
		}, []string{"kind", "result"}),
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "firsttoken_xds_late_total",
			Help: "Changes that went on although an Envoy had not answered in time to what must come before.",
		}),
	}
	reg.MustRegister(m.streams, m.sent, m.answers, m.late)
	return m
}
