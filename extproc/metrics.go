package extproc

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// Metrics are what the conversation with Envoy is watched by. Every label has
// a handful of values that are ours, never a client's.
type Metrics struct {
	ttft       prometheus.Histogram
	estimate   prometheus.Histogram
	errorShare *prometheus.HistogramVec
	errorTime  *prometheus.HistogramVec
	stages     *prometheus.HistogramVec
	decisions  *prometheus.CounterVec
	tokens     prometheus.Counter
	cached     prometheus.Counter
	fallbacks  *prometheus.CounterVec
	refusals   *prometheus.CounterVec
	ended      *prometheus.CounterVec
	moved      prometheus.Counter
	records    *prometheus.CounterVec
	streams    *prometheus.GaugeVec
	holds      *prometheus.CounterVec
	holdTime   prometheus.Histogram
	deadline   prometheus.Histogram
	misses     *prometheus.CounterVec
	rescues    *prometheus.CounterVec
	off        offMetrics
	arms       *armMetrics

	shadowDecisions *prometheus.CounterVec
	shadowTokens    prometheus.Counter
	shadowCached    *prometheus.CounterVec
	shadowEstimates *prometheus.CounterVec
	shadowSkipped   *prometheus.CounterVec

	stageByName map[stage]prometheus.Observer
	streamsIn   map[phase]prometheus.Gauge
}

// stage is a part of the time to a decision.
type stage string

const (
	stageReceive stage = "receive" // from the first part of the request to the last byte
	stageEncode  stage = "encode"  // bytes to tokens
	stageAsk     stage = "ask"     // sources that ask somebody else what is cached
	stagePick    stage = "pick"    // cache lookup, weighing, booking
)

// The causes of fallbacks: an optimisation failed and the request went on.
const (
	causeDeadline      = "deadline"
	causeEncoder       = "encoder"
	causeRequest       = "request"
	causeTooLarge      = "too_large"
	causeNoEndpoint    = "no_endpoint"
	causeUnknownModel  = "unknown_model"
	causeModelRequired = "model_required"
	// causeHeadersLeft: the client let the headers go before it gave us
	// anything that asks for a choice.
	causeHeadersLeft = "headers_left"
	// causeAsk: a source that asks somebody else had no answer in time.
	causeAsk = "ask"
)

// causeOf names the fallback that an error leads to.
func causeOf(err error) string {
	var fault *prompt.RequestError
	switch {
	case errors.Is(err, scoring.ErrNoEndpoint):
		return causeNoEndpoint
	case errors.Is(err, scoring.ErrUnknownModel):
		return causeUnknownModel
	case errors.Is(err, scoring.ErrModelRequired):
		return causeModelRequired
	case errors.As(err, &fault):
		return causeRequest
	}
	return causeEncoder
}

// ttftBuckets reach from a cached prompt on an idle engine to a queue of
// minutes, each about half again the one before.
var ttftBuckets = prometheus.ExponentialBucketsRange(0.01, 300, 25)

// errorBuckets show on which side of a quarter the median lies, and how far off
// the worst are.
var errorBuckets = []float64{0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10}

// errorSeconds reach from a hundredth of a step to minutes.
var errorSeconds = prometheus.ExponentialBucketsRange(0.0001, 100, 19)

// stageBuckets reach from microseconds to the decision deadline and beyond.
var stageBuckets = prometheus.ExponentialBucketsRange(10e-6, 1, 16)

// NewMetrics registers the metrics of a Server.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "firsttoken_" + name, Help: help})
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "firsttoken_" + name, Help: help}, []string{label})
	}
	m := &Metrics{
		ttft: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "firsttoken_ttft_seconds", Buckets: ttftBuckets,
			Help: "Time from the first part of a request to its first token, measured on streamed answers.",
		}),
		estimate: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "firsttoken_ttft_estimated_seconds", Buckets: ttftBuckets,
			Help: "Time to first token that was estimated for the chosen endpoint.",
		}),
		errorShare: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "firsttoken_ttft_estimate_error_ratio", Buckets: errorBuckets,
			Help: "Difference between the estimated time to first token and the measured one, as a share of the measured one, by the model of the engine.",
		}, []string{"model"}),
		errorTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "firsttoken_ttft_estimate_error_seconds", Buckets: errorSeconds,
			Help: "Difference between the estimated time to first token and the measured one, by the model of the engine.",
		}, []string{"model"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "firsttoken_decision_stage_seconds", Buckets: stageBuckets,
			Help: "Time of each stage of a decision, those of shadows and of /explain among them: receive, encode, ask, pick.",
		}, []string{"stage"}),
		decisions: counters("decisions_total", "Decisions by the reason of the choice.", "reason"),
		tokens:    counter("prompt_tokens_total", "Prompt tokens of all decisions."),
		cached:    counter("prompt_tokens_cached_total", "Prompt tokens that the chosen endpoint had cached, or on their way by requests under way."),
		fallbacks: counters("fallbacks_total", "Requests weighed by less than their prompt, or not at all, by cause; those that are only shown, or come by /explain, count too.", "cause"),
		refusals:  counters("immediate_responses_total", "Requests answered by this service itself, by HTTP status.", "status"),
		ended:     counters("requests_ended_total", "Requests whose end was told, by outcome.", "outcome"),
		moved:     counter("requests_moved_total", "Requests that another endpoint served than the one chosen."),
		records:   counters("access_log_records_total", "Access-log records: matched to an open decision, unknown (ended or not ours), foreign (no decision).", "fate"),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_streams", Help: "Open ext_proc streams by what they are at.",
		}, []string{"phase"}),
		holds: counters("holds_total", "Requests that were held, by what ended it: event, max_hold, drain, off, cancelled.", "cause"),
		holdTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "firsttoken_hold_seconds", Buckets: ttftBuckets,
			Help: "How long requests were held before they were sent to an endpoint, or cancelled.",
		}),
		deadline: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "firsttoken_first_token_deadline_seconds", Buckets: ttftBuckets,
			Help: "Time that each try of a request has for its first token, of requests that may be rescued.",
		}),
		misses:  counters("deadline_misses_total", "Tries given up because no first token came in time, by what the engine did meanwhile: silent (no first token at all), late (others had theirs).", "cause"),
		rescues: counters("rescues_total", "Requests of which a try was given up, by what came of it: answered by another endpoint, exhausted, lifted (the last endpoint was late, not silent, and waited for), cancelled.", "outcome"),
		off:     newOffMetrics(reg), arms: newArmMetrics(reg),
		stageByName: map[stage]prometheus.Observer{},

		shadowDecisions: counters("shadow_decisions_total", "Decisions for requests that somebody else routed: agreed (served where it would have been sent), differed, unknown (who served it), or no_prompt (it has none to go by).", "result"),
		shadowTokens:    counter("shadow_prompt_tokens_total", "Prompt tokens of shadow decisions of which it is known who served them."),
		shadowCached:    counters("shadow_prompt_tokens_cached_total", "Of these the tokens that the endpoint that would have been the choice, and the one that served, had cached, or on their way by requests under way.", "at"),
		shadowEstimates: counters("shadow_ttft_estimated_seconds_total", "Of these the times to first token estimated for the choice and for the endpoint that served: the difference is an estimate of what was lost.", "at"),
		shadowSkipped:   counters("shadow_skipped_total", "Requests that Envoy showed and that were not watched: streams, bytes, too_large, no_body, refused, cut.", "cause"),
	}
	for _, s := range []stage{stageReceive, stageEncode, stageAsk, stagePick} {
		m.stageByName[s] = m.stages.WithLabelValues(string(s))
	}
	m.streamsIn = map[phase]prometheus.Gauge{}
	for _, p := range []phase{phaseReceiving, phaseDeciding, phaseHeld, phaseWaiting, phaseAnswering, phaseTry} {
		m.streamsIn[p] = m.streams.WithLabelValues(string(p))
	}
	reg.MustRegister(m.ttft, m.estimate, m.errorShare, m.errorTime, m.stages, m.decisions, m.tokens, m.cached,
		m.fallbacks, m.refusals, m.ended, m.moved, m.records, m.streams, m.holds, m.holdTime,
		m.deadline, m.misses, m.rescues,
		m.shadowDecisions, m.shadowTokens, m.shadowCached, m.shadowEstimates, m.shadowSkipped)
	return m
}

func (m *Metrics) stage(s stage, d time.Duration) { m.stageByName[s].Observe(d.Seconds()) }

func (m *Metrics) fallback(cause string) { m.fallbacks.WithLabelValues(cause).Inc() }

func (m *Metrics) refused(status int) { m.refusals.WithLabelValues(strconv.Itoa(status)).Inc() }

func (m *Metrics) held(cause holdCause, d time.Duration) {
	m.holds.WithLabelValues(string(cause)).Inc()
	m.holdTime.Observe(d.Seconds())
}

func (m *Metrics) decision(d *scoring.Decision) {
	m.decisions.WithLabelValues(string(d.Reason)).Inc()
	m.tokens.Add(float64(d.Prompt.Length()))
	m.cached.Add(float64(hits(&d.Candidates[0])))
	m.estimate.Observe(d.Estimate().Seconds())
	m.arms.decided(d)
}

// hits are the prompt tokens that an engine is expected to find in its caches: those
// that are there, and those that requests before this one bring. The choice weighs
// both.
func hits(c *scoring.Candidate) scoring.Tokens { return c.Cached + c.Optimistic }

// estimated compares what the choice expected of its endpoint with what came.
// The label is the engine's own name of its model, of which there are few; what
// clients write is not.
func (m *Metrics) estimated(d *scoring.Decision, estimate, sinceSent time.Duration) {
	if sinceSent <= 0 {
		return
	}
	model := ""
	if e := d.Endpoint(); len(e.Models) > 0 {
		model = e.Models[0]
	}
	off := (estimate - sinceSent).Abs().Seconds()
	m.errorTime.WithLabelValues(model).Observe(off)
	m.errorShare.WithLabelValues(model).Observe(off / sinceSent.Seconds())
}

// shadow compares the endpoint that serves a request with the one that would have
// been chosen.
func (m *Metrics) shadow(d *scoring.Decision) {
	switch {
	case d.Prompt.Source == scoring.TokensNone:
		m.shadowDecisions.WithLabelValues("no_prompt").Inc()
		return
	case !d.Shadow.Placed:
		m.shadowDecisions.WithLabelValues("unknown").Inc()
		return
	}
	served, choice, result := &d.Candidates[0], &d.Shadow.Choice, "differed"
	if served.Endpoint.ID == choice.Endpoint.ID {
		result = "agreed"
	}
	m.shadowDecisions.WithLabelValues(result).Inc()
	m.shadowTokens.Add(float64(d.Prompt.Length()))
	for at, c := range map[string]*scoring.Candidate{"served": served, "choice": choice} {
		m.shadowCached.WithLabelValues(at).Add(float64(hits(c)))
		m.shadowEstimates.WithLabelValues(at).Add(c.Estimate.Seconds())
	}
}
