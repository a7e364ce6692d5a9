package coordinator

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Status is one server at one moment.
type Status struct {
	Instance string `json:"instance"`
	// IP is empty where the server reports without having registered.
	IP         string `json:"ip,omitempty"`
	Registered bool   `json:"registered"`
	// Reports is false before its first report: it needs
	// --coordinator-event-reporting.
	Reports bool `json:"reports"`
	// Gap: reports were lost. Late: those from before we listened.
	Gap  bool `json:"gap"`
	Late bool `json:"late"`
	// L1 and Held are the keys in its memory and in all its tiers.
	L1           int     `json:"l1_keys"`
	Held         int     `json:"keys"`
	HeardSeconds float64 `json:"heard_seconds"`
}

// Status lists the servers by id.
func (d *Directory) Status() []Status {
	d.mu.RLock()
	defer d.mu.RUnlock()
	list := []Status{}
	for _, in := range d.instances {
		s := Status{Instance: in.id, Registered: in.server != nil, Reports: in.stream != nil, L1: len(in.l1), Held: in.held, HeardSeconds: -1}
		if in.server != nil {
			s.IP = in.server.IP
		}
		if in.stream != nil {
			s.Gap, s.Late = in.stream.gap, in.stream.late
		}
		if !in.heard.IsZero() {
			s.HeardSeconds = time.Since(in.heard).Seconds()
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.Instance, b.Instance) })
	return list
}

// Counts are the totals of now.
func (d *Directory) Counts() Counts {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.counts
}

// Metrics shows a Directory at each scrape.
type Metrics struct {
	directory *Directory

	reports, entries, gaps, restarts, timeouts, forgotten, checked *prometheus.Desc
	keys, placements, servers                                      *prometheus.Desc
}

// NewMetrics makes the metrics of d and registers them with reg.
func NewMetrics(reg prometheus.Registerer, d *Directory) *Metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("firsttoken_lmcache_coordinator_"+name, help, labels, nil)
	}
	m := &Metrics{
		directory:  d,
		reports:    desc("reports_total", "Reports of LMCache servers, by result: applied, duplicate, stale (of a life that is over), refused (too many servers).", "result"),
		entries:    desc("entries_total", "Keys in the applied reports, by kind: stored, deleted, accessed, foreign (no prompt can match them).", "kind"),
		gaps:       desc("gaps_total", "Times that reports of a server were missing."),
		restarts:   desc("restarts_total", "Times that a server began anew."),
		timeouts:   desc("timeouts_total", "Servers whose heartbeats ended without a word."),
		forgotten:  desc("forgotten_keys_total", "Keys forgotten for want of room; above 0 calls for a larger max_keys."),
		checked:    desc("checked_chunks_total", "Chunks whose key was made anew from their tokens, by result: same, other (chunk size or hash differ).", "result"),
		keys:       desc("keys", "Keys that some server holds, each rank of a chunk counted."),
		placements: desc("placements", "Places where keys are, by tier.", "tier"),
		servers:    desc("servers", "LMCache servers registered."),
	}
	reg.MustRegister(m)
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.reports, m.entries, m.gaps, m.restarts, m.timeouts, m.forgotten, m.checked, m.keys, m.placements, m.servers,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	c, s := m.directory.Counts(), m.directory.directoryStats()
	counter(m.reports, c.Applied, "applied")
	counter(m.reports, c.Duplicates, "duplicate")
	counter(m.reports, c.Stale, "stale")
	counter(m.reports, c.Refused, "refused")
	counter(m.entries, c.Stored, "stored")
	counter(m.entries, c.Deleted, "deleted")
	counter(m.entries, c.Accessed, "accessed")
	counter(m.entries, c.Foreign, "foreign")
	counter(m.gaps, c.Gaps)
	counter(m.restarts, c.Restarts)
	counter(m.timeouts, c.TimedOut)
	counter(m.forgotten, c.Forgotten)
	counter(m.checked, c.Checked-c.Mismatched, "same")
	counter(m.checked, c.Mismatched, "other")
	gauge(m.keys, float64(s.Keys))
	gauge(m.placements, float64(s.L1Count), "l1")
	gauge(m.placements, float64(s.L2Count), "l2")
	gauge(m.servers, float64(len(m.directory.Servers())))
}
