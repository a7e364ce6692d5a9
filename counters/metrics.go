package counters

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics shows a Scraper at each scrape of ours. Nothing is kept between
// scrapes, so the series of an endpoint that is gone are gone too.
type Metrics struct {
	scraper *Scraper

	scrapes, restarts, age, capacity *prometheus.Desc
}

// NewMetrics makes the metrics of s and registers them with reg.
func NewMetrics(reg prometheus.Registerer, s *Scraper) *Metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("firsttoken_engine_"+name, help, labels, nil)
	}
	m := &Metrics{
		scraper:  s,
		scrapes:  desc("counters_scrapes_total", "Readings of the engine's own counters, by result: ok, failed.", "endpoint", "result"),
		restarts: desc("restarts_total", "New lives of the engine that its counters told of.", "endpoint"),
		age:      desc("counters_age_seconds", "Time since the engine's counters were last read; -1 before the first time.", "endpoint"),
		capacity: desc("cache_capacity_tokens", "Tokens that the engine's cache holds, as it says, by tier; 0: it does not say.", "endpoint", "tier"),
	}
	reg.MustRegister(m)
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.scrapes, m.restarts, m.age, m.capacity} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, row := range m.scraper.Status() {
		counter := func(d *prometheus.Desc, n uint64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append([]string{row.Name}, labels...)...)
		}
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{row.Name}, labels...)...)
		}
		counter(m.scrapes, row.Scrapes-row.Faults, "ok")
		counter(m.scrapes, row.Faults, "failed")
		counter(m.restarts, row.Restarts)
		age := -1.0
		if r := row.Reading; r != nil {
			age = time.Since(r.At).Seconds()
			gauge(m.capacity, float64(r.CapacityTokens), "gpu")
			gauge(m.capacity, float64(r.HostTokens), "host")
		}
		gauge(m.age, age)
	}
}
