package kvevents

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics shows a Subscriber at each scrape. Nothing is kept between scrapes,
// so the series of an endpoint that is gone are gone too.
type Metrics struct {
	subscriber *Subscriber

	batches, events, badFrames, gaps, restarts, replays, cleared *prometheus.Desc
	blocks, tokens, unmatched, age, strays, aged, storeOnly      *prometheus.Desc
}

// NewMetrics makes the metrics of s and registers them with reg.
func NewMetrics(reg prometheus.Registerer, s *Subscriber) *Metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("firsttoken_kv_events_"+name, help, labels, nil)
	}
	m := &Metrics{
		subscriber: s,
		batches:    desc("batches_total", "Messages of the engine that were applied, one for each of its steps with events.", "endpoint"),
		events:     desc("events_total", "Events in them, by kind: stored, removed, cleared, other (unknown, skipped).", "endpoint", "kind"),
		badFrames:  desc("bad_frames_total", "Messages that could not be read.", "endpoint"),
		gaps:       desc("gaps_total", "Times that messages were missing.", "endpoint"),
		restarts:   desc("restarts_total", "Times that the engine began to count anew.", "endpoint"),
		replays:    desc("replays_total", "Questions for missed messages, by result: asked (all of them), failed (no answer in time).", "endpoint", "result"),
		cleared:    desc("cleared_total", "Times that all that was known of the engine was forgotten, by reason: restart, gap (that no replay filled), bad_frame.", "endpoint", "reason"),
		blocks:     desc("blocks", "Blocks that the engine holds, by medium.", "endpoint", "medium"),
		tokens:     desc("tokens", "Tokens in them.", "endpoint", "medium"),
		unmatched:  desc("unmatched_blocks", "Blocks that no prompt is compared with: their tokens are not known, or they hold an image, embeddings, or what an adapter without a name computed.", "endpoint"),
		aged:       desc("aged_blocks_total", "Blocks forgotten because their medium is full, though the engine did not tell that they are gone.", "endpoint"),
		storeOnly:  desc("store_only", "1 for a medium of which the engine tells what it stores and never what it removes.", "endpoint", "medium"),
		age:        desc("last_batch_age_seconds", "Time since the engine's last message; -1 before the first. An engine without work is silent.", "endpoint"),
		strays:     desc("stray_messages_total", "Messages under a topic that is no endpoint's."),
	}
	reg.MustRegister(m)
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.batches, m.events, m.badFrames, m.gaps, m.restarts, m.replays, m.cleared, m.blocks, m.tokens, m.unmatched, m.age, m.strays, m.aged, m.storeOnly,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. An endpoint's ranks are summed; its
// age is that of the rank heard last.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	list := m.subscriber.Status()
	for begin := 0; begin < len(list); {
		end := begin + 1
		for end < len(list) && list[end].Endpoint == list[begin].Endpoint {
			end++
		}
		m.collect(ch, list[begin].Endpoint, list[begin:end])
		begin = end
	}
	ch <- prometheus.MustNewConstMetric(m.strays, prometheus.CounterValue, float64(m.subscriber.Strays()))
}

func (m *Metrics) collect(ch chan<- prometheus.Metric, endpoint string, ranks []Status) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append([]string{endpoint}, labels...)...)
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, append([]string{endpoint}, labels...)...)
	}
	var (
		sum            Counts
		events, causes = make(map[string]uint64), make(map[string]uint64)
		blocks, tokens = make(map[string]float64), make(map[string]float64)
		storeOnly      = make(map[string]bool)
		unmatched      int
		last           time.Time
	)
	for _, r := range ranks {
		sum.Batches += r.Counts.Batches
		sum.BadFrames += r.Counts.BadFrames
		sum.Gaps += r.Counts.Gaps
		sum.Restarts += r.Counts.Restarts
		sum.Replays += r.Counts.Replays
		sum.FailedReplays += r.Counts.FailedReplays
		sum.Aged += r.Counts.Aged
		for _, medium := range r.StoreOnly {
			storeOnly[medium] = true
		}
		unmatched += r.Unmatched
		for kind, n := range r.Counts.Events {
			events[kind] += n
		}
		for reason, n := range r.Counts.Cleared {
			causes[reason] += n
		}
		for medium, n := range r.Blocks {
			blocks[medium] += float64(n)
			tokens[medium] += float64(r.Tokens[medium])
		}
		if r.LastBatch != nil && r.LastBatch.After(last) {
			last = *r.LastBatch
		}
	}
	counter(m.batches, sum.Batches)
	counter(m.badFrames, sum.BadFrames)
	counter(m.gaps, sum.Gaps)
	counter(m.restarts, sum.Restarts)
	counter(m.replays, sum.Replays, "asked")
	counter(m.replays, sum.FailedReplays, "failed")
	for kind, n := range events {
		counter(m.events, n, kind)
	}
	for reason, n := range causes {
		counter(m.cleared, n, reason)
	}
	for medium, n := range blocks {
		gauge(m.blocks, n, medium)
		gauge(m.tokens, tokens[medium], medium)
	}
	for medium := range storeOnly {
		gauge(m.storeOnly, 1, medium)
	}
	counter(m.aged, sum.Aged)
	gauge(m.unmatched, float64(unmatched))
	age := -1.0
	if !last.IsZero() {
		age = time.Since(last).Seconds()
	}
	gauge(m.age, age)
}
