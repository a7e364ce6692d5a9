package extproc

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// errOff ends the work on a choice that is no longer wanted.
var errOff = errors.New("the service was told to make no choices")

// period is a time in which choices are made. A new one begins each time that they
// are wanted again, so that whoever waits in one that is over cannot miss its end.
type period struct{ over chan struct{} }

func newPeriod() *period { return &period{make(chan struct{})} }

// ended reports whether it is over.
func (p *period) ended() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

// SetChoosing says whether choices are made. While they are not, every request is
// answered at once by leaving it to Envoy: the client's control headers are removed
// and nothing is told, so that Envoy's own balancer picks. What is held, or still
// being sized, is let go in the same way. Choices that were told before stay:
// their bookings and streams go on. Safe for concurrent use.
func (s *Server) SetChoosing(choose bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.period.Load()
	switch {
	case choose && now.ended():
		s.period.Store(newPeriod())
		s.metrics.off.choosing.Set(1)
	case !choose && !now.ended():
		close(now.over)
		s.metrics.off.choosing.Set(0)
	}
}

// Choosing reports whether choices are made.
func (s *Server) Choosing() bool { return !s.period.Load().ended() }

// beginPeriod takes the request into the present period. It reports whether choices
// are made in it. What is only shown to us is weighed all the same: that changes
// nothing for a request.
func (st *stream) beginPeriod() bool {
	if st.dialect.observed {
		st.period = newPeriod()
		return true
	}
	st.period = st.Server.period.Load()
	return !st.period.ended()
}

// alone leaves a request to Envoy that is not to be chosen for, and counts why; what
// is only shown to us was never ours to leave. The answer is a reply without decision.
func (st *stream) alone(cause leftCause) (*scoring.Decision, error) {
	if st.shadow == nil {
		st.metrics.off.left(cause)
	}
	if cause == leftOff {
		st.arm = armed{} // What becomes of it is not the arm's doing.
	}
	return nil, nil //nolint:nilnil // no decision, and no fault: Envoy chooses
}

// leftCause says why a request was left to Envoy. Beside these it is the cause of a
// fallback. The values label a metric.
type leftCause string

const (
	// leftOff: the service was told to make no choices.
	leftOff leftCause = "off"
	// leftArm: the request belongs to an arm in which Envoy picks.
	leftArm leftCause = "arm"
)

// offMetrics tell who chooses.
type offMetrics struct {
	choosing prometheus.Gauge
	lefts    *prometheus.CounterVec
}

func newOffMetrics(reg prometheus.Registerer) offMetrics {
	m := offMetrics{
		choosing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "firsttoken_choosing",
			Help: "1 while this service makes choices, 0 while it was told to leave them to Envoy.",
		}),
		lefts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_left_to_envoy_total",
			Help: "Requests that were left to Envoy's own balancer, by cause: off (the service was told to make no choices), " +
				"arm (of an arm in which Envoy picks), or that of the fallback.",
		}, []string{"cause"}),
	}
	m.choosing.Set(1)
	for _, cause := range []leftCause{leftOff, leftArm} {
		m.lefts.WithLabelValues(string(cause)) // known before it happens
	}
	reg.MustRegister(m.choosing, m.lefts)
	return m
}

func (m offMetrics) left(cause leftCause) { m.lefts.WithLabelValues(string(cause)).Inc() }
