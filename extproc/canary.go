package extproc

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// SetArms shares the requests that come from now on out to the arms of a valid
// configuration. Those under way keep theirs. Safe for concurrent use.
func (s *Server) SetArms(c canary.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	split := canary.New(c)
	s.metrics.arms.set(split.Arms())
	s.split.Store(split)
}

// armed is what a stream knows of arms.
type armed struct {
	// split is that of the moment at which the request's headers came, and headers
	// are those it goes by; nil where there are none, or they were not sent to us.
	split   *canary.Split
	headers map[string]string
	// name is the request's arm; empty: none, or not known yet.
	name string
	// streamed: the answer will be.
	streamed bool
}

// readArms keeps the headers that arms go by.
func (st *stream) readArms(headers *corev3.HeaderMap) {
	split := st.split.Load()
	st.arm.split = split
	names := split.Headers()
	if len(names) == 0 {
		return
	}
	st.arm.headers = make(map[string]string, len(names))
	for _, kv := range headers.GetHeaders() {
		name := strings.ToLower(kv.GetKey())
		if _, twice := st.arm.headers[name]; !twice && slices.Contains(names, name) {
			st.arm.headers[name] = headerValue(kv)
		}
	}
}

// assign puts a request into its arm, if it has any, and reports whether Envoy
// picks there. What is only shown to us has none: somebody else serves it. Nor has
// what is restricted to some endpoints: Envoy would send it to any.
func (st *stream) assign(p *scoring.Prompt) (left bool) {
	if st.dialect.observed || p.Only != nil {
		return false
	}
	split := st.arm.split
	if split == nil {
		split = st.split.Load()
	}
	arm, ok := split.Assign(canary.Request{
		Model: p.Model, Alias: p.Alias, Session: p.Session,
		Header: func(name string) string { return st.arm.headers[name] },
	}, rand.Uint64()) //nolint:gosec // It shares requests out; who would guess it gains nothing that a header does not give.
	if !ok {
		return false
	}
	st.arm.name, st.arm.streamed = arm.Name, p.Streamed
	if arm.Policy == canary.PolicyEnvoy {
		return true
	}
	p.Arm = arm.Name
	if arm.Policy != "" {
		p.Policy = arm.Policy
	}
	return false
}

// labelled puts the arm of a request that Envoy picks for into the reply's dynamic
// metadata, by which the access log tells how it ended. A decision brings its own.
func (st *stream) labelled(d *scoring.Decision, reply *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	if d == nil && st.arm.name != "" {
		reply.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			envoy.Metadata: namespace(map[string]*structpb.Value{
				envoy.KeyArm: structpb.NewStringValue(st.arm.name),
				envoy.KeyBy:  structpb.NewStringValue(st.instance),
			}),
		}}
	}
	return reply
}

// armFirstChunk takes the first content of an answer from an engine that Envoy
// picked: the first token, unless it is an error or not streamed.
func (st *stream) armFirstChunk(msg *extprocv3.ProcessingRequest) {
	if st.arm.name == "" || !st.arm.streamed || !st.events || attribute(msg, envoy.AttributeCode).GetNumberValue() >= 400 {
		return
	}
	if st.dialect.response == bodyBuffered || st.dialect.response == bodyPartial {
		return // It came with the last token.
	}
	st.metrics.arms.firstToken(st.arm.name, time.Since(st.began))
}

// armEnded takes in the access-log record of a request without decision: where one
// of ours was left to Envoy because of its arm, that is how it ended. It reports
// whether the request belongs to an arm, of this service or of another.
func (s *Server) armEnded(metadata *structpb.Struct, entry *datav3.HTTPAccessLogEntry) bool {
	by := metadata.GetFields()[envoy.KeyBy].GetStringValue()
	if by == s.instance {
		s.metrics.arms.ended(metadata.GetFields()[envoy.KeyArm].GetStringValue(), outcomeOf(entry))
	}
	return by != ""
}

// outcomeRefused is that of a request which this service answered itself.
const outcomeRefused scoring.Outcome = "refused"

// armMetrics compare the arms. Only the arms of the configuration have series.
type armMetrics struct {
	requests, tokens, cached *prometheus.CounterVec
	ends                     *prometheus.CounterVec
	ttft                     *prometheus.HistogramVec
	// series are those of each arm of now. A map is never written to once it is
	// here.
	series atomic.Pointer[map[string]*armSeries]
}

// armSeries are one arm's.
type armSeries struct {
	requests, tokens, cached prometheus.Counter
	ttft                     prometheus.Observer
	ends                     map[scoring.Outcome]prometheus.Counter
}

func newArmMetrics(reg prometheus.Registerer) *armMetrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "firsttoken_arm_" + name, Help: help}, append([]string{"arm"}, labels...))
	}
	m := &armMetrics{
		requests: counters("requests_total", "Requests of an arm that were sent on, whoever picked, or refused."),
		tokens:   counters("prompt_tokens_total", "Prompt tokens of the decisions for requests of an arm."),
		cached:   counters("prompt_tokens_cached_total", "Prompt tokens that the chosen endpoints had cached, or on their way by requests under way, of the requests of an arm."),
		ends:     counters("requests_ended_total", "Requests of an arm whose end was told, by outcome; refused: this service answered itself.", "outcome"),
		ttft: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "firsttoken_arm_ttft_seconds", Buckets: ttftBuckets,
			Help: "Time from the first part of a request to its first token, measured on streamed answers, by the request's arm, whoever picked.",
		}, []string{"arm"}),
	}
	m.series.Store(&map[string]*armSeries{})
	reg.MustRegister(m.requests, m.tokens, m.cached, m.ends, m.ttft)
	return m
}

// set makes series for these arms. Those of an arm that stays go on, those of one
// that is gone are forgotten. Calls must not overlap.
func (m *armMetrics) set(arms []string) {
	before := *m.series.Load()
	series := make(map[string]*armSeries, len(arms))
	for _, arm := range arms {
		if s := before[arm]; s != nil {
			series[arm] = s
			continue
		}
		s := &armSeries{
			requests: m.requests.WithLabelValues(arm), tokens: m.tokens.WithLabelValues(arm), cached: m.cached.WithLabelValues(arm),
			ttft: m.ttft.WithLabelValues(arm), ends: map[scoring.Outcome]prometheus.Counter{},
		}
		for _, outcome := range []scoring.Outcome{scoring.OutcomeComplete, scoring.OutcomeError, scoring.OutcomeCancelled, outcomeRefused} {
			s.ends[outcome] = m.ends.WithLabelValues(arm, string(outcome))
		}
		series[arm] = s
	}
	m.series.Store(&series)
	for arm := range before {
		if series[arm] == nil {
			gone := prometheus.Labels{"arm": arm}
			for _, vec := range []interface {
				DeletePartialMatch(labels prometheus.Labels) int
			}{m.requests, m.tokens, m.cached, m.ends, m.ttft} {
				vec.DeletePartialMatch(gone)
			}
		}
	}
}

// of are the series of an arm; nil where it is none of now.
func (m *armMetrics) of(arm string) *armSeries { return (*m.series.Load())[arm] }

// answered counts a request whose arm is told, or which is refused. One that the
// client or the switch takes back before that has no end by which to compare arms.
func (m *armMetrics) answered(arm string) {
	if s := m.of(arm); s != nil {
		s.requests.Inc()
	}
}

func (m *armMetrics) decided(d *scoring.Decision) {
	if s := m.of(d.Arm); s != nil {
		s.tokens.Add(float64(d.Prompt.Length()))
		s.cached.Add(float64(hits(&d.Candidates[0])))
	}
}

func (m *armMetrics) firstToken(arm string, ttft time.Duration) {
	if s := m.of(arm); s != nil {
		s.ttft.Observe(ttft.Seconds())
	}
}

func (m *armMetrics) ended(arm string, outcome scoring.Outcome) {
	if s := m.of(arm); s != nil && s.ends[outcome] != nil {
		s.ends[outcome].Inc()
	}
}

func (m *armMetrics) refused(arm string) { m.ended(arm, outcomeRefused) }
