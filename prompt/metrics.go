package prompt

import "github.com/prometheus/client_golang/prometheus"

// Metrics count where prompts come from, and why some come without token ids.
type Metrics struct {
	prompts   *prometheus.CounterVec   // by source
	fallbacks *prometheus.CounterVec   // by reason
	seconds   *prometheus.HistogramVec // by source
	loaded    *prometheus.GaugeVec     // by model
	segments  *segmentCollector
}

// NewMetrics makes and registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		prompts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_prompts_total",
			Help: "Requests by where the token ids of their prompt come from.",
		}, []string{"source"}),
		fallbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_prompt_fallbacks_total",
			Help: "Prompts whose length had to be estimated, by reason.",
		}, []string{"reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "firsttoken_prompt_seconds",
			Help:    "Time from body to prompt, by where the token ids come from.",
			Buckets: []float64{1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5},
		}, []string{"source"}),
		loaded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_prompt_model_loaded",
			Help: "1 where the model's tokenizer is loaded, else 0.",
		}, []string{"model"}),
		segments: newSegmentCollector(),
	}
	reg.MustRegister(m.prompts, m.fallbacks, m.seconds, m.loaded, m.segments)
	return m
}

// fallback says why a prompt has no token ids. The values label metrics; those
// of Remote are used where the engine would have to be asked.
type fallback string

const (
	fallbackNone       fallback = ""
	fallbackNotText    fallback = "not_text"    // a body in another encoding than UTF-8
	fallbackMedia      fallback = "media_type"  // a content type that is not JSON
	fallbackTooLarge   fallback = "too_large"   // above max_input_bytes
	fallbackRefused    fallback = "refused"     // the engine will refuse it too
	fallbackFailed     fallback = "failed"      // the tokenizer or template failed
	fallbackDeadline   fallback = "deadline"    // the decision could not wait
	fallbackRemoteBusy fallback = "remote_busy" // too many render calls at once
	fallbackRemoteOff  fallback = "remote_off"  // the engine failed such calls before and is spared some
	fallbackRemote     fallback = "remote"      // the render call failed
	fallbackSlow       fallback = "remote_slow" // the render call took too long
)
