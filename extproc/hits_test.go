package extproc

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/scoring"
)

// What requests under way bring is a hit in all metrics of hits.
func TestHitsOfRequestsUnderWay(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	m.arms.set([]string{"new"})
	prompt := &scoring.Prompt{Source: scoring.TokensNative, Sequences: []scoring.Sequence{{Length: 1000}}, Arm: "new"}
	served := scoring.Candidate{Endpoint: scoring.Endpoint{ID: 1}, Cached: 600, Optimistic: 300}
	choice := scoring.Candidate{Endpoint: scoring.Endpoint{ID: 2}, Cached: 100, Optimistic: 20}
	d := &scoring.Decision{Prompt: prompt, Arm: "new", Candidates: []scoring.Candidate{served}}
	d.Shadow = &scoring.Shadow{Placed: true, Choice: choice}
	m.decision(d)
	m.shadow(d)
	for name, c := range map[string]struct {
		of   prometheus.Collector
		want float64
	}{
		"all":        {m.cached, 900},
		"of the arm": {m.arms.cached.WithLabelValues("new"), 900},
		"served":     {m.shadowCached.WithLabelValues("served"), 900},
		"choice":     {m.shadowCached.WithLabelValues("choice"), 120},
	} {
		if got := testutil.ToFloat64(c.of); got != c.want {
			t.Errorf("%s: %v tokens, want %v", name, got, c.want)
		}
	}
}

// A request without a prompt neither agrees nor differs.
func TestShadowWithoutPrompt(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	for _, placed := range []bool{true, false} {
		c := scoring.Candidate{Endpoint: scoring.Endpoint{ID: 1}}
		m.shadow(&scoring.Decision{Prompt: unsized(), Candidates: []scoring.Candidate{c}, Shadow: &scoring.Shadow{Placed: placed, Choice: c}})
	}
	for result, want := range map[string]float64{"no_prompt": 2, "agreed": 0, "differed": 0, "unknown": 0} {
		if got := testutil.ToFloat64(m.shadowDecisions.WithLabelValues(result)); got != want {
			t.Errorf("%v %s, want %v", got, result, want)
		}
	}
}
