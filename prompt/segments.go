package prompt

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// segmentCollector reads the segment caches when it is asked. It is safe for
// concurrent use.
type segmentCollector struct {
	lookups, text, held *prometheus.Desc
	read                atomic.Pointer[func() map[string]native.CacheStats]
}

func newSegmentCollector() *segmentCollector {
	return &segmentCollector{
		lookups: prometheus.NewDesc("firsttoken_segment_cache_lookups_total",
			"Pieces of text looked up in the segment cache, by model and result: hit, miss.", []string{"model", "result"}, nil),
		text: prometheus.NewDesc("firsttoken_segment_cache_text_bytes_total",
			"Bytes of text looked up in the segment cache, by model and result: a miss was tokenized.", []string{"model", "result"}, nil),
		held: prometheus.NewDesc("firsttoken_segment_cache_bytes",
			"Bytes that the segment cache holds, texts and ids, by model.", []string{"model"}, nil),
	}
}

// follow says where the counters are read from now on.
func (c *segmentCollector) follow(read func() map[string]native.CacheStats) { c.read.Store(&read) }

// Describe implements prometheus.Collector.
func (c *segmentCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.lookups
	ch <- c.text
	ch <- c.held
}

// Collect implements prometheus.Collector.
func (c *segmentCollector) Collect(ch chan<- prometheus.Metric) {
	read := c.read.Load()
	if read == nil {
		return
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for model, s := range (*read)() {
		counter(c.lookups, s.Hits, model, "hit")
		counter(c.lookups, s.Misses, model, "miss")
		counter(c.text, s.HitBytes, model, "hit")
		counter(c.text, s.MissBytes, model, "miss")
		ch <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(s.Bytes), model)
	}
}
