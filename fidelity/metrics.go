package fidelity

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// Metrics shows a Checker at each scrape. Nothing is kept between scrapes, so
// the series of an endpoint that is gone are gone too.
type Metrics struct {
	checker *Checker

	used, asked, shown, predicted, counted, ratio, findings *prometheus.Desc
}

// NewMetrics makes the metrics of c and registers them with reg.
func NewMetrics(reg prometheus.Registerer, c *Checker) *Metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("firsttoken_"+name, help, append(labels, "endpoint"), nil)
	}
	m := &Metrics{
		checker:   c,
		used:      desc("source_used", "1 where what the source tells of the endpoint's caches counts; 0 where it is left out or tells nothing.", "source"),
		asked:     desc("source_echo_asked_total", "Prompts computed by the endpoint that the source had to show.", "source"),
		shown:     desc("source_echo_shown_total", "Those of them that it did show.", "source"),
		predicted: desc("source_predicted_tokens_total", "Prompt tokens that the source said to be cached at the endpoint that served them.", "source"),
		counted:   desc("endpoint_counted_tokens_total", "Prompt tokens that the engine itself counted as found in its caches, in the windows that were compared."),
		ratio:     desc("source_hit_ratio", "Tokens that the engine counted as found for each that the source predicted, in the last window compared; 1 is right.", "source"),
		findings:  desc("endpoint_findings", "Faults that keep the endpoint's caches from being known; /status names them with their fixes."),
	}
	reg.MustRegister(m)
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.used, m.asked, m.shown, m.predicted, m.counted, m.ratio, m.findings} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, w := range m.checker.inOrder() {
		e := *w.endpoint.Load()
		status := m.checker.Status(e.ID)
		used := make(map[string]bool, len(status.Sources))
		faults := len(status.Findings)
		for _, row := range status.Sources {
			used[row.Source] = row.Used
			if row.Fault != "" {
				faults++
			}
		}
		ch <- prometheus.MustNewConstMetric(m.findings, prometheus.GaugeValue, float64(faults), e.Name)
		m.collect(ch, w, e, used)
	}
}

// collect shows the numbers of one endpoint, for the sources in used.
func (m *Metrics) collect(ch chan<- prometheus.Metric, w *watched, e scoring.Endpoint, used map[string]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.trials {
		name := m.checker.source(s).Name
		counts, tells := used[name]
		if !tells {
			continue
		}
		gauge, t := 0.0, &w.trials[s]
		if counts {
			gauge = 1
		}
		ch <- prometheus.MustNewConstMetric(m.used, prometheus.GaugeValue, gauge, name, e.Name)
		ch <- prometheus.MustNewConstMetric(m.asked, prometheus.CounterValue, float64(t.echo.asked), name, e.Name)
		ch <- prometheus.MustNewConstMetric(m.shown, prometheus.CounterValue, float64(t.echo.hit), name, e.Name)
		ch <- prometheus.MustNewConstMetric(m.predicted, prometheus.CounterValue, float64(w.hits.total.said[s]), name, e.Name)
		if l := w.hits.last; l != nil && l.said[s] > 0 {
			ch <- prometheus.MustNewConstMetric(m.ratio, prometheus.GaugeValue, float64(l.counted)/float64(l.said[s]), name, e.Name)
		}
	}
	ch <- prometheus.MustNewConstMetric(m.counted, prometheus.CounterValue, float64(w.hits.counted), e.Name)
}
