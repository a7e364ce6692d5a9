//go:build cgo && !nozmq

package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/discovery"
)

//go:generate go test . -run ^TestMetricsDoc$ -count=1 -update

const metricsDoc = "../../docs/metrics.md"

const metricsHead = `<!-- Generated from the code by "make generate"; do not edit. -->
# Metrics

What ` + "`/metrics`" + ` of the admin port has for Prometheus, besides the usual ` + "`go_*` and `process_*`" + `. Metrics of parts that the
configuration leaves out are not there. Labels hold names from the configuration and words of ours, never what clients write. A name that ends
in ` + "`_seconds` or `_ratio`" + ` and is no gauge is a histogram, with ` + "`_bucket`, `_sum` and `_count`" + `.

[deploy/prometheus/alerts.yml](../deploy/prometheus/alerts.yml) has alerts, [deploy/grafana/firsttoken.json](../deploy/grafana/firsttoken.json)
a dashboard, [troubleshooting.md](troubleshooting.md) says what to do.

| metric | labels | is |
|---|---|---|
`

// docs/metrics.md has every metric that a service with all its parts exports.
func TestMetricsDoc(t *testing.T) {
	var page strings.Builder
	page.WriteString(metricsHead)
	for _, m := range exportedMetrics(t) {
		labels := make([]string, len(m.labels))
		for i, label := range m.labels {
			labels[i] = "`" + label + "`"
		}
		fmt.Fprintf(&page, "| `%s` | %s | %s |\n", m.name, strings.Join(labels, " "), strings.ReplaceAll(m.help, "|", `\|`))
	}
	if *update {
		if err := os.WriteFile(metricsDoc, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(metricsDoc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), page.String()); diff != "" {
		t.Errorf("docs/metrics.md is not what the code exports; run make generate (-file +code)\n%s", diff)
	}
}

type metric struct {
	name, help string
	labels     []string
}

// description is how client_golang prints one: there is no other way to its name.
var description = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"), unit: "[^"]*", constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// exportedMetrics are those of a service with everything on, by name. A build
// without ZeroMQ has fewer.
func exportedMetrics(t *testing.T) []metric {
	t.Helper()
	cfg := defaultConfig()
	cfg.Server.Listen, cfg.Admin.Listen, cfg.XDS.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Server.TLS.Enabled, cfg.XDS.TLS.Enabled = true, true
	cfg.LMCache.Controller.Pull, cfg.LMCache.Controller.Reply, cfg.LMCache.Controller.Heartbeat = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.LMCache.Coordinator.Listen, cfg.LMCache.Ask.Controller = "127.0.0.1:0", "http://127.0.0.1:1"
	cfg.Endpoints = []discovery.Entry{{Address: "127.0.0.1:1", KVEvents: discovery.KVEventsEntry{Endpoint: "tcp://127.0.0.1:2"}}}
	cfg.State.Directory = t.TempDir()
	cfg.Decisions.File = filepath.Join(t.TempDir(), "decisions.jsonl")
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	s.watchConfig("firsttoken.yml", new(slog.LevelVar), nil)

	described := make(chan *prometheus.Desc)
	go func() { // ends with the registry's list
		s.admin.registry.Describe(described)
		close(described)
	}()
	byName := make(map[string]metric)
	for desc := range described {
		m := metricOf(t, desc)
		if strings.HasPrefix(m.name, "firsttoken_") {
			byName[m.name] = m
		}
	}
	var list []metric
	for _, m := range byName {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	return list
}

func metricOf(t *testing.T, desc *prometheus.Desc) metric {
	t.Helper()
	found := description.FindStringSubmatch(desc.String())
	if found == nil {
		t.Fatalf("client_golang writes descriptions in another way: %s", desc)
	}
	name, err := strconv.Unquote(found[1])
	if err != nil {
		t.Fatal(err)
	}
	help, err := strconv.Unquote(found[2])
	if err != nil {
		t.Fatal(err)
	}
	m := metric{name: name, help: help}
	for pair := range strings.SplitSeq(found[3], ",") {
		if label, _, ok := strings.Cut(pair, "="); ok {
			m.labels = append(m.labels, label)
		}
	}
	for label := range strings.SplitSeq(found[4], ",") {
		if label != "" {
			m.labels = append(m.labels, label)
		}
	}
	return m
}
