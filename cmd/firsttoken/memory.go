package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
)

// memoryCollector shows at each scrape what our own memory believes of each
// endpoint.
type memoryCollector struct {
	endpoints func() []scoring.Endpoint
	memory    *routed.Memory

	tokens, room, share *prometheus.Desc
}

func newMemoryCollector(endpoints func() []scoring.Endpoint, memory *routed.Memory) *memoryCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("firsttoken_memory_"+name, help, []string{"endpoint"}, nil)
	}
	return &memoryCollector{
		endpoints: endpoints, memory: memory,
		tokens: desc("tokens", "Tokens that the endpoint is believed to hold because they were routed there."),
		room:   desc("capacity_tokens", "Tokens that it holds at most, GPU and host."),
		share:  desc("believed_share", "Share of that room that is believed to hold what was routed; below 1 where the engine found clearly less than was predicted."),
	}
}

// Describe implements prometheus.Collector.
func (c *memoryCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.tokens, c.room, c.share} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *memoryCollector) Collect(ch chan<- prometheus.Metric) {
	for _, e := range c.endpoints() {
		if s := c.memory.Status(e.ID); s != nil {
			ch <- prometheus.MustNewConstMetric(c.tokens, prometheus.GaugeValue, float64(s.Tokens), e.Name)
			ch <- prometheus.MustNewConstMetric(c.room, prometheus.GaugeValue, float64(s.GPUTokens+s.HostTokens), e.Name)
			ch <- prometheus.MustNewConstMetric(c.share, prometheus.GaugeValue, s.Share, e.Name)
		}
	}
}
