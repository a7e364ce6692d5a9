package engine

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/firsttoken/firsttoken/simulator"
)

// metrics are those of vLLM's metrics that mean something here, with its names
// and labels. The _created series of vLLM's Python client are left out.
type metrics struct {
	handler http.Handler

	running, waiting, waitingCapacity, usage prometheus.Gauge

	queries, hits, externalQueries, externalHits prometheus.Counter
	preemptions, promptTokens, cachedTokens      prometheus.Counter
	computed, deviceHit, externalHit             prometheus.Counter // promptTokens by source
	cachedDevice, cachedExternal                 prometheus.Counter // cachedTokens by source
	generationTokens                             prometheus.Counter
	success                                      *prometheus.CounterVec
	// resets are of the web layer's counters of all calls the one that tells
	// that the cache was emptied.
	resets prometheus.Counter

	iterationTokens, promptLength, answerLength prometheus.Observer
	ttft, interToken, perToken, latency         prometheus.Observer
	queueTime, inference, prefill, decode       prometheus.Observer
	prefillComputed                             prometheus.Observer
}

// Buckets as vLLM has them: for lengths up to the model's, for times.
var (
	secondsTTFT    = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	secondsToken   = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	secondsRequest = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	stepTokens     = []float64{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}
)

// lengths are 1, 2, 5, 10 … up to the longest.
func lengths(longest int) []float64 {
	var b []float64
	for decade := 1; decade <= longest; decade *= 10 {
		for _, m := range []int{1, 2, 5} {
			if decade*m <= longest {
				b = append(b, float64(decade*m))
			}
		}
	}
	return b
}

func newMetrics(cfg *Config, started time.Time) *metrics {
	reg := prometheus.NewRegistry()
	own := prometheus.WrapRegistererWith(prometheus.Labels{"engine": "0", "model_name": cfg.Models[0]}, reg)
	gauge := func(name, help string, labels prometheus.Labels) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "vllm:" + name, Help: help, ConstLabels: labels})
		own.MustRegister(g)
		return g
	}
	counter := func(name, help string, labels prometheus.Labels) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "vllm:" + name + "_total", Help: help, ConstLabels: labels})
		own.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Observer {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vllm:" + name, Help: help, Buckets: buckets})
		own.MustRegister(h)
		return h
	}
	const (
		waitingReason = "Number of waiting requests by reason."
		bySource      = "Number of prompt tokens by source."
		cachedSource  = "Cached prompt tokens by the tier that supplied them."
	)
	reason := func(v string) prometheus.Labels { return prometheus.Labels{"reason": v} }
	source := func(v string) prometheus.Labels { return prometheus.Labels{"source": v} }
	m := &metrics{
		handler:         promhttp.HandlerFor(reg, promhttp.HandlerOpts{}),
		running:         gauge("num_requests_running", "Number of requests in model execution batches.", nil),
		waiting:         gauge("num_requests_waiting", "Number of requests waiting to be processed.", nil),
		waitingCapacity: gauge("num_requests_waiting_by_reason", waitingReason, reason("capacity")),
		usage:           gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", nil),

		queries:          counter("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", nil),
		hits:             counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", nil),
		externalQueries:  counter("external_prefix_cache_queries", "External prefix cache queries from the KV connector, in tokens.", nil),
		externalHits:     counter("external_prefix_cache_hits", "External prefix cache hits from the KV connector, in tokens.", nil),
		preemptions:      counter("num_preemptions", "Cumulative number of preemptions.", nil),
		promptTokens:     counter("prompt_tokens", "Number of prefill tokens processed.", nil),
		computed:         counter("prompt_tokens_by_source", bySource, source("local_compute")),
		deviceHit:        counter("prompt_tokens_by_source", bySource, source("local_cache_hit")),
		externalHit:      counter("prompt_tokens_by_source", bySource, source("external_kv_transfer")),
		cachedTokens:     counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", nil),
		cachedDevice:     counter("prompt_tokens_cached_by_source", cachedSource, source("device")),
		cachedExternal:   counter("prompt_tokens_cached_by_source", cachedSource, source("external_unspecified")),
		generationTokens: counter("generation_tokens", "Number of generation tokens processed.", nil),

		iterationTokens: histogram("iteration_tokens_total", "Histogram of number of tokens per engine_step.", stepTokens),
		promptLength:    histogram("request_prompt_tokens", "Number of prefill tokens processed.", lengths(cfg.MaxModelLen)),
		answerLength:    histogram("request_generation_tokens", "Number of generation tokens processed.", lengths(cfg.MaxModelLen)),
		ttft:            histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", secondsTTFT),
		interToken:      histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", secondsToken),
		perToken:        histogram("request_time_per_output_token_seconds", "Histogram of time per output token per request.", secondsToken),
		latency:         histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", secondsRequest),
		queueTime:       histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", secondsRequest),
		inference:       histogram("request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", secondsRequest),
		prefill:         histogram("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", secondsRequest),
		decode:          histogram("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", secondsRequest),
		prefillComputed: histogram("request_prefill_kv_computed_tokens", "New KV tokens computed during prefill (excluding cached tokens).", lengths(cfg.MaxModelLen)),

		success: prometheus.NewCounterVec(prometheus.CounterOpts{ //nolint:promlinter // vLLM's name
			Name: "vllm:request_success_total", Help: "Count of successfully processed requests.",
		}, []string{"finished_reason"}),
	}
	own.MustRegister(m.success)
	m.resets = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "http_requests_total", Help: "Total number of requests by method, status and handler.",
		ConstLabels: prometheus.Labels{"handler": "/reset_prefix_cache", "method": "POST", "status": "2xx"},
	})
	reg.MustRegister(m.resets)
	for _, r := range []string{"stop", "length", "abort", "error", "repetition"} {
		m.success.WithLabelValues(r)
	}
	gauge("num_requests_waiting_by_reason", waitingReason, reason("deferred"))
	start := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "process_start_time_seconds", Help: "Start time of the process since unix epoch in seconds.",
	})
	reg.MustRegister(start)
	start.Set(float64(started.UnixMicro()) / 1e6)
	blocks := cfg.blocks()
	gauge("cache_config_info", "Information of the LLMEngine CacheConfig", prometheus.Labels{
		"block_size": strconv.Itoa(cfg.BlockTokens), "num_gpu_blocks": strconv.Itoa(blocks),
		"kv_cache_size_tokens":     strconv.Itoa(blocks * cfg.BlockTokens),
		"kv_cache_max_concurrency": strconv.FormatFloat(float64(blocks*cfg.BlockTokens)/float64(cfg.MaxModelLen), 'g', -1, 64),
		"enable_prefix_caching":    "True", "prefix_caching_hash_algo": "sha256", "cache_dtype": "auto",
	}).Set(1)
	return m
}

// sizes sets the gauges.
func (m *metrics) sizes(s simulator.Stats) {
	m.running.Set(float64(s.Running))
	m.waiting.Set(float64(s.Waiting))
	m.waitingCapacity.Set(float64(s.Waiting))
	m.usage.Set(float64(s.BlocksHeld) / float64(s.Blocks))
}

// step counts what one step did.
func (m *metrics) step(r *simulator.Result) {
	m.preemptions.Add(float64(r.Preempted))
	m.generationTokens.Add(float64(len(r.Outputs)))
	m.iterationTokens.Observe(float64(r.Prefill + len(r.Outputs)))
}

// admitted counts what was looked up for a prompt.
func (m *metrics) admitted(a simulator.Admission, g *generation) {
	device := a.Cached - a.Loaded
	m.queries.Add(float64(a.Queried))
	m.hits.Add(float64(device))
	if g.request.Chunks != nil && a.Queried > 0 {
		m.externalQueries.Add(float64(a.Queried - device))
		m.externalHits.Add(float64(a.Loaded))
	}
}

// firstToken counts a prompt that is done.
func (m *metrics) firstToken(g *generation) {
	n, cached, loaded := float64(g.request.PromptTokens), float64(g.cached), float64(g.loaded)
	device := cached - loaded
	m.promptTokens.Add(n)
	m.computed.Add(n - cached)
	m.deviceHit.Add(device)
	m.externalHit.Add(loaded)
	m.cachedTokens.Add(cached)
	m.cachedDevice.Add(device)
	m.cachedExternal.Add(loaded)
	m.ttft.Observe(g.firstToken.Sub(g.queued).Seconds())
}

// token counts a token that is not the first.
func (m *metrics) token(since time.Duration) { m.interToken.Observe(since.Seconds()) }

// end counts an answer that is complete.
func (m *metrics) end(g *generation) {
	m.success.WithLabelValues(g.finishReason()).Inc()
	m.promptLength.Observe(float64(g.request.PromptTokens))
	m.answerLength.Observe(float64(g.tokens))
	m.prefillComputed.Observe(float64(g.request.PromptTokens - g.cached))
	decode := g.lastToken.Sub(g.firstToken)
	m.latency.Observe(g.lastToken.Sub(g.queued).Seconds())
	m.queueTime.Observe(g.admitted.Sub(g.queued).Seconds())
	m.inference.Observe(g.lastToken.Sub(g.admitted).Seconds())
	m.prefill.Observe(g.firstToken.Sub(g.admitted).Seconds())
	m.decode.Observe(decode.Seconds())
	if g.tokens > 1 {
		m.perToken.Observe(decode.Seconds() / float64(g.tokens-1))
	}
}
