package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// detectHashing makes the detector of the engines' chunk-key settings, where
// LMCache reports to us and the settings are not fixed.
func (s *service) detectHashing(index *lmcache.Index, registry prometheus.Registerer) {
	if s.cfg.LMCache.Hashing != lmcache.HashingAuto {
		return
	}
	s.hashing = lmcache.NewDetector(s.source, index, s.log, registry)
	registry.MustRegister(hashingCollector{s.hashing})
}

// computed tells the detector which prompts were computed where.
type computed struct{ detector *lmcache.Detector }

// Decided implements extproc.Observer.
func (computed) Decided(*scoring.Decision) {}

// FirstToken implements extproc.Observer.
func (c computed) FirstToken(d *scoring.Decision, _ time.Duration) {
	if e, known := d.Reservation.Endpoint(); known {
		c.detector.Computed(e.ID, d.Prompt, time.Now())
	}
}

// Ended implements extproc.Observer. Only of an answer that is not streamed is
// the end the first that is seen.
func (c computed) Ended(d *scoring.Decision, outcome scoring.Outcome, served string) {
	if outcome != scoring.OutcomeComplete || d.Prompt.Streamed {
		return
	}
	for i := range d.Candidates {
		if e := &d.Candidates[i].Endpoint; e.Address == served {
			c.detector.Computed(e.ID, d.Prompt, time.Now())
		}
	}
}

// hashingCollector shows at each scrape what is known of each endpoint's
// chunk-key settings.
type hashingCollector struct{ detector *lmcache.Detector }

var hashingState = prometheus.NewDesc("firsttoken_endpoint_hashing",
	"1 for what is known of the chunk-key settings of the endpoint's LMCache: untested, configured, detected, learnt (until the engine restarts) or unmatched (nothing that it reports counts).",
	[]string{"endpoint", "state"}, nil)

// Describe implements prometheus.Collector.
func (hashingCollector) Describe(ch chan<- *prometheus.Desc) { ch <- hashingState }

// Collect implements prometheus.Collector.
func (c hashingCollector) Collect(ch chan<- prometheus.Metric) {
	// Two endpoints with one instance have one row.
	for _, row := range c.detector.Status() {
		ch <- prometheus.MustNewConstMetric(hashingState, prometheus.GaugeValue, 1, row.Endpoint, row.State)
	}
}
