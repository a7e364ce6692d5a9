package engine

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/firsttoken/firsttoken/simulator"
)

// metrics are those of vLLM's names that mean something here.
type metrics struct {
	handler http.Handler
}

func newMetrics(cfg *Config) *metrics {
	reg := prometheus.NewRegistry()
	m := &metrics{handler: promhttp.HandlerFor(reg, promhttp.HandlerOpts{})}
	_ = cfg
	return m
}

func (m *metrics) step(r *simulator.Result, s simulator.Stats) {}
func (m *metrics) firstToken(g *generation)                    {}
func (m *metrics) token(g *generation, since time.Duration)    {}
func (m *metrics) end(g *generation)                           {}
