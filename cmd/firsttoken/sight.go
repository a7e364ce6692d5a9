package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// ledgerCollector shows the picker's account at each scrape. Nothing is kept
// between scrapes, so the series of an endpoint that is gone are gone too.
type ledgerCollector struct {
	picker *scoring.Picker

	queued, work, waiting, decoding *prometheus.Desc
	open, expired, predicted, moved *prometheus.Desc
	prefilled                       *prometheus.Desc
	token, step, groups             *prometheus.Desc
	kappa, room, held, refused      *prometheus.Desc
	late, chosen                    *prometheus.Desc
}

func newLedgerCollector(picker *scoring.Picker) *ledgerCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("firsttoken_"+name, help, labels, nil)
	}
	return &ledgerCollector{
		picker:    picker,
		queued:    desc("endpoint_queued_seconds", "Estimated time of the prefill work sent to the endpoint and not yet seen finished.", "endpoint"),
		work:      desc("endpoint_queued_work", "That work itself; one unit is one token attending to one position.", "endpoint"),
		waiting:   desc("endpoint_waiting_requests", "Requests sent to the endpoint whose first token was not seen yet.", "endpoint"),
		decoding:  desc("endpoint_decoding_requests", "Requests at the endpoint past their first token.", "endpoint"),
		open:      desc("bookings_open", "Bookings that have not ended."),
		expired:   desc("bookings_expired_total", "Bookings that ended by age because nothing more was heard; queued: before their first token, which is a leak somewhere.", "state"),
		predicted: desc("bookings_predicted_total", "Requests that are not streamed and left the queue when their first token was predicted."),
		prefilled: desc("bookings_prefilled_total", "Requests that left the queue because the engine's KV events told that their prompt was computed, before anything of the answer was seen."),
		moved:     desc("bookings_moved_total", "Bookings moved to the endpoint that served the request in place of the one chosen."),
		token:     desc("pool_seconds_per_token", "Learned time of computing one prompt token, attention aside, by the pool's model.", "model"),
		groups:    desc("pool_first_token_groups_total", "Groups of first tokens that taught those times, those before a restart too.", "model"),
		kappa:     desc("pool_kappa", "Seconds that each second of a request's own work is taken to cost those behind it, by the pool's model.", "model"),
		chosen:    desc("endpoint_chosen_total", "Requests that the endpoint was chosen for.", "endpoint"),
		late:      desc("pool_late_seconds", "By how much first tokens come later than backlog, KV wait and work say, in the middle, by the pool's model.", "model"),
		room:      desc("pool_kv_room", "Whether requests are kept from engines whose KV memory is full: 1, or 0 where a capacity is not known.", "model"),
		held:      desc("endpoint_kv_held_tokens", "Tokens of KV memory that the requests in flight at the endpoint hold.", "endpoint"),
		refused:   desc("optimistic_refused_total", "Requests whose blocks were not counted as under way because too many were."),
		step:      desc("pool_seconds_per_step", "Learned time that each of the engines' steps costs besides, by the pool's model.", "model"),
	}
}

// Describe implements prometheus.Collector.
func (c *ledgerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.queued, c.work, c.waiting, c.decoding, c.open, c.expired, c.predicted, c.prefilled, c.moved, c.token, c.step, c.groups, c.kappa, c.room, c.held, c.refused, c.late, c.chosen} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *ledgerCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := c.picker.Stats()
	for _, e := range s.Endpoints {
		gauge(c.queued, e.Backlog.Seconds(), e.Endpoint.Name)
		gauge(c.work, float64(e.QueuedArea), e.Endpoint.Name)
		gauge(c.waiting, float64(e.Waiting), e.Endpoint.Name)
		gauge(c.decoding, float64(e.Decoding), e.Endpoint.Name)
		gauge(c.held, float64(e.HeldTokens), e.Endpoint.Name)
		counter(c.chosen, e.Chosen, e.Endpoint.Name)
	}
	gauge(c.open, float64(s.Open))
	counter(c.expired, s.Counts.ExpiredQueued, "queued")
	counter(c.expired, s.Counts.ExpiredDecoding, "decoding")
	counter(c.predicted, s.Counts.Predicted)
	counter(c.prefilled, s.Counts.Prefilled)
	counter(c.moved, s.Counts.Moved)
	counter(c.refused, s.OptimisticRefused)
	for model, pool := range s.Pools {
		gauge(c.token, pool.SecondsPerToken, model)
		gauge(c.step, pool.SecondsPerStep, model)
		gauge(c.kappa, pool.Kappa, model)
		gauge(c.late, pool.Late, model)
		on := 0.0
		if pool.KVRoom {
			on = 1
		}
		gauge(c.room, on, model)
		ch <- prometheus.MustNewConstMetric(c.groups, prometheus.CounterValue, float64(pool.Groups), model)
	}
}

// cacheCollector shows at each scrape how much each endpoint is known to have
// cached, and how old that knowledge is.
type cacheCollector struct {
	endpoints  func() []scoring.Endpoint
	source     *lmcache.Source
	controller *lmcache.Controller

	chunks, age *prometheus.Desc
}

func newCacheCollector(endpoints func() []scoring.Endpoint, source *lmcache.Source, controller *lmcache.Controller) *cacheCollector {
	return &cacheCollector{
		endpoints: endpoints, source: source, controller: controller,
		chunks: prometheus.NewDesc("firsttoken_endpoint_cached_chunks",
			"Chunks that the endpoint's LMCache instance reported and did not evict, a chunk in two places counted twice; of several ranks, the one with the fewest.", []string{"endpoint"}, nil),
		age: prometheus.NewDesc("firsttoken_endpoint_report_age_seconds",
			"Time since the endpoint's LMCache instance was last heard of; of several ranks, the longest.", []string{"endpoint"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *cacheCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.chunks
	ch <- c.age
}

// Collect implements prometheus.Collector.
func (c *cacheCollector) Collect(ch chan<- prometheus.Metric) {
	type known struct {
		chunks int
		age    float64
	}
	instances := make(map[string]known)
	for _, w := range c.controller.Status() {
		k := known{age: w.LastMessageSeconds}
		for _, n := range w.Keys {
			k.chunks += n
		}
		if other, ok := instances[w.Instance]; ok {
			k = known{min(k.chunks, other.chunks), max(k.age, other.age)}
		}
		instances[w.Instance] = k
	}
	mapping := c.source.Mapping().Instances
	for _, e := range c.endpoints() {
		if k, ok := instances[mapping[e.ID]]; ok {
			ch <- prometheus.MustNewConstMetric(c.chunks, prometheus.GaugeValue, float64(k.chunks), e.Name)
			ch <- prometheus.MustNewConstMetric(c.age, prometheus.GaugeValue, k.age, e.Name)
		}
	}
}
