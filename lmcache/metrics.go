package lmcache

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the counters and gauges of this package.
type Metrics struct {
	messages   *prometheus.CounterVec
	bad        *prometheus.CounterVec
	unanswered prometheus.Counter

	// The following are brought up to date at every check.
	workers, silent, keys, records, queued prometheus.Gauge
	gaps, lost, repeated                   total
	overflows, ignored, forgotten          total
	syncs, dropped                         totals

	// lastMessage is when the last message came, in Unix nanoseconds; 0: none.
	lastMessage atomic.Int64
}

// NewMetrics makes the metrics and registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "firsttoken_lmcache_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "firsttoken_lmcache_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "firsttoken_lmcache_" + name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &Metrics{
		messages:   vec("messages_total", "Messages of LMCache workers, by LMCache's name of the type.", "type"),
		bad:        vec("bad_frames_total", "Messages that could not be read, by socket: pull, reply, heartbeat.", "socket"),
		unanswered: counter("answers_lost_total", "Answers that could not be sent because the worker was gone."),
		workers:    gauge("workers", "LMCache workers known, registered or not."),
		silent:     gauge("silent_workers", "Workers that registered and have sent neither report nor heartbeat since; only an engine restart heals them."),
		keys:       gauge("keys", "Chunks that some engine holds."),
		records:    gauge("records", "Records of the index: chunks times instances times locations."),
		queued:     gauge("queue_keys", "Keys on their way from the sockets to the index."),
		gaps:       total{counter: counter("gaps_total", "Times that a worker's reports were not gapless.")},
		lost:       total{counter: counter("lost_operations_total", "Operations that were missed in the gaps.")},
		repeated:   total{counter: counter("repeated_operations_total", "Operations that came twice and were skipped.")},
		overflows:  total{counter: counter("queue_overflows_total", "Messages dropped because the index could not keep up; the worker is asked for a full sync.")},
		ignored:    total{counter: counter("ignored_total", "Workers or locations not followed because there were too many.")},
		forgotten:  total{counter: counter("forgotten_records_total", "Records forgotten for want of room; above 0 calls for a larger max_keys.")},
		syncs:      totals{vec: vec("full_syncs_total", "Full syncs, by event: started, completed, failed, refused.", "event")},
		dropped:    totals{vec: vec("workers_dropped_total", "Workers dropped with their keys, by reason: deregistered, heartbeats_stopped, superseded, endpoint_removed, no_endpoint.", "reason")},
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "firsttoken_lmcache_last_message_age_seconds",
		Help: "Time since the last message of any LMCache worker; -1 before the first.",
	}, func() float64 {
		last := m.lastMessage.Load()
		if last == 0 {
			return -1
		}
		return time.Since(time.Unix(0, last)).Seconds()
	}))
	return m
}

// message counts one message; only known types come here, so that strangers
// cannot make labels.
func (m *Metrics) message(class string) { m.messages.WithLabelValues(class).Inc() }

// update brings to date what is counted elsewhere.
func (m *Metrics) update(c counts, workers, silent, queued int, index Stats) {
	m.workers.Set(float64(workers))
	m.silent.Set(float64(silent))
	m.queued.Set(float64(queued))
	m.keys.Set(float64(index.Keys))
	m.records.Set(float64(index.Held))
	m.gaps.set(c.gaps)
	m.lost.set(c.lost)
	m.repeated.set(c.repeated)
	m.overflows.set(c.overflows)
	m.ignored.set(c.ignored + index.Ignored)
	m.forgotten.set(index.Overflowed)
	m.syncs.set(c.syncs)
	m.dropped.set(c.dropped)
}

// total is a counter that follows a number counted elsewhere. Owned by whoever
// calls set.
type total struct {
	counter prometheus.Counter
	last    uint64
}

func (t *total) set(n uint64) {
	t.counter.Add(float64(n - t.last))
	t.last = n
}

// totals is a total for each label.
type totals struct {
	vec  *prometheus.CounterVec
	last map[string]uint64
}

func (t *totals) set(byLabel map[string]uint64) {
	for label, n := range byLabel {
		t.vec.WithLabelValues(label).Add(float64(n - t.last[label]))
	}
	t.last = byLabel
}
