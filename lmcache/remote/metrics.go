package remote

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// Metrics are the counters of all sources.
type Metrics struct {
	questions *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	breaker   *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_lmcache_asked_total",
			Help: "Questions to LMCache elsewhere, by result: answered, late, failed, spared (the breaker is open), left (the client did).",
		}, []string{"registry", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "firsttoken_lmcache_ask_seconds", Buckets: prometheus.ExponentialBucketsRange(0.5e-3, 1, 12),
			Help: "Time until the answer, or until it was given up.",
		}, []string{"registry"}),
		breaker: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_lmcache_breaker_state",
			Help: "Whether LMCache elsewhere is asked: 0 yes, 1 it is tried, 2 it is left alone because it failed.",
		}, []string{"registry"}),
	}
	reg.MustRegister(m.questions, m.seconds, m.breaker)
	return m
}

// resultOf names what became of a question.
func resultOf(err error) string {
	switch {
	case err == nil:
		return "answered"
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return "spared"
	case errors.Is(err, context.DeadlineExceeded):
		return "late"
	case errors.Is(err, context.Canceled):
		return "left"
	}
	return "failed"
}

func (m *Metrics) asked(registry, result string, took time.Duration) {
	m.questions.WithLabelValues(registry, result).Inc()
	if result != "spared" {
		m.seconds.WithLabelValues(registry).Observe(took.Seconds())
	}
}

func (m *Metrics) state(registry string, s gobreaker.State) {
	m.breaker.WithLabelValues(registry).Set(float64(s))
}
