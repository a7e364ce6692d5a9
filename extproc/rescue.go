package extproc

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// RescueConfig sets how long a request waits for its first token before it goes
// to the next best endpoint, while its client has not got a byte. Envoy needs
// the filter for it, which "firsttoken envoy bootstrap" and xDS write where it is
// enabled, and routes of override-host.
type RescueConfig struct {
	// Enabled gives requests such a deadline.
	Enabled bool `yaml:"enabled"`
	// Floor is the shortest deadline of a try. Write what an idle engine may take
	// for a short prompt on a bad day.
	Floor time.Duration `yaml:"floor"`
	// Factor is the deadline as a multiple of the time to first token that is
	// estimated, of the slowest endpoint that may be tried.
	Factor float64 `yaml:"factor"`
	// Max is the longest deadline: of a request that would have a longer one none
	// is asked for. It is the deadline while too few first tokens have come for
	// estimates to be relied on.
	Max time.Duration `yaml:"max"`
	// Tries is on how many other endpoints a request is tried: 1 or 2, and never
	// more than server.fallbacks. So often more than once it may be computed.
	Tries int `yaml:"tries"`
	// Unstreamed is the deadline of answers that are not streamed, which begin
	// when all of them is generated; 0s: none.
	Unstreamed time.Duration `yaml:"unstreamed"`
}

func defaultRescue() RescueConfig {
	return RescueConfig{Floor: 2 * time.Second, Factor: 4, Max: time.Minute, Tries: maxFallbacks}
}

// Longest is the longest deadline that is ever set.
func (c RescueConfig) Longest() time.Duration { return max(c.Max, c.Unstreamed) }

// Validate joins all faults, each beginning with its path below path. fallbacks
// is how many addresses Envoy is told besides the choice.
func (c RescueConfig) Validate(path string, fallbacks int) error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if c.Floor < time.Millisecond {
		fault("floor", "is %s; write a duration of at least 1ms, such as 2s", c.Floor)
	}
	if !(c.Factor >= 1) { // nor NaN
		fault("factor", "is %g; write 1 or more, such as 4", c.Factor)
	}
	if c.Max < c.Floor || c.Max > envoy.MaxRescueDeadline {
		fault("max", "is %s; write at least %s.floor (%s) and at most %s", c.Max, path, c.Floor, envoy.MaxRescueDeadline)
	}
	if c.Tries < 1 || c.Tries > maxFallbacks {
		fault("tries", "is %d; write 1 or %d", c.Tries, maxFallbacks)
	} else if c.Enabled && c.Tries > fallbacks {
		fault("tries", "is %d, but Envoy is told %d addresses besides the choice; write as many in fallbacks, or %s.enabled: false", c.Tries, fallbacks, path)
	}
	if c.Unstreamed < 0 || c.Unstreamed > envoy.MaxRescueDeadline {
		fault("unstreamed", "is %s; write 0s for none, at most %s", c.Unstreamed, envoy.MaxRescueDeadline)
	}
	return errors.Join(faults...)
}

// plan is where a request is tried, in this order, and how long at each.
type plan struct {
	deadline  time.Duration
	endpoints []scoring.Endpoint
}

// plan is the one for a decision; ok is false where no try has a deadline. A
// request that could go nowhere else has none: giving it up would help nobody.
func (c RescueConfig) plan(d *scoring.Decision, fallbacks int) (p plan, ok bool) {
	n := min(len(d.Candidates), 1+min(c.Tries, fallbacks))
	if !c.Enabled || n < 2 {
		return plan{}, false
	}
	if d.Prompt.Source == scoring.TokensNone {
		// Of a request that is chosen for at its headers, or is too long to be read,
		// the body may still come: Envoy's deadline begins when it is whole.
		return plan{}, false
	}
	switch {
	case !d.Prompt.Streamed:
		p.deadline = c.Unstreamed
	case !d.Pool.Settled:
		p.deadline = c.Max
	default:
		// Envoy takes one deadline for all tries. Were it the choice's, a request
		// that is long but for the choice's cache would be cut off wherever it goes.
		var slowest time.Duration
		for i := range d.Candidates[:n] {
			slowest = max(slowest, d.Candidates[i].Estimate)
		}
		if wanted := max(c.Floor.Seconds(), c.Factor*slowest.Seconds()); wanted <= c.Max.Seconds() {
			p.deadline = time.Duration(wanted * float64(time.Second))
		}
	}
	// Envoy counts in milliseconds.
	if p.deadline = p.deadline.Round(time.Millisecond); p.deadline <= 0 {
		return plan{}, false
	}
	for i := range d.Candidates[:n] {
		p.endpoints = append(p.endpoints, d.Candidates[i].Endpoint)
	}
	return p, true
}

// bound tells Envoy the deadline of d's tries and their number, or takes away
// what a client would set.
func (r replies) bound(m *extprocv3.HeaderMutation, d *scoring.Decision) {
	if !r.rescue.Enabled {
		return
	}
	if d != nil {
		if p, ok := r.rescue.plan(d, r.fallbacks); ok {
			m.SetHeaders = append(m.SetHeaders,
				setHeader(envoy.HeaderTryTimeout, strconv.FormatInt(p.deadline.Milliseconds(), 10)),
				setHeader(envoy.HeaderMaxRetries, strconv.Itoa(len(p.endpoints)-1)))
			return
		}
	}
	m.RemoveHeaders = append(slices.Clip(m.GetRemoveHeaders()), envoy.HeaderTryTimeout)
	if d != nil && d.Prompt.Only != nil && len(d.Candidates) == 1 {
		// A pin's answer is its engine's, errors too: the route's own retries would go
		// where the request must not.
		m.SetHeaders = append(m.SetHeaders, setHeader(envoy.HeaderMaxRetries, "0"))
		return
	}
	m.RemoveHeaders = append(m.RemoveHeaders, envoy.HeaderMaxRetries)
}

// Rescue is what became of the tries of one request so far.
type Rescue struct {
	// Deadline is how long each try had for its first token.
	Deadline time.Duration
	// Tries is how many there were, as far as it is known.
	Tries int
	// Missed are the names of the endpoints that missed it, in order.
	Missed []string
	// Outcome is empty while the request waits, or where no try was given up.
	Outcome RescueOutcome
}

// accessLogGrace is how long the access log may take to say how a request ended
// of whose answer nothing was seen but that it is over.
const accessLogGrace = time.Second

// releaseLater is release where only the stream's end is known. With rescue on
// Envoy shows the answer to another filter, so this stream's end is all that it
// ever tells; where there is an access log, that knows how the request ended.
func (st *stream) releaseLater(outcome scoring.Outcome) {
	if !st.cfg.Rescue.Enabled {
		st.release(outcome)
		return
	}
	server, booking := st.Server, st.booking
	time.AfterFunc(accessLogGrace, func() { server.end(booking, outcome) }) // ends by itself
}

// RescueOutcome says how it went with a request of which a try was given up. The
// values label a metric.
type RescueOutcome string

const (
	// rescueAnswered: another endpoint gave the first token.
	rescueAnswered RescueOutcome = "answered"
	// rescueExhausted: none did that was tried; the client got an error.
	rescueExhausted RescueOutcome = "exhausted"
	// rescueLifted: the last endpoint missed the deadline too, but gave others
	// first tokens meanwhile, so it was waited for.
	rescueLifted RescueOutcome = "lifted"
	// rescueCancelled: the client left before a first token.
	rescueCancelled RescueOutcome = "cancelled"
)

// missCause says what an engine that missed a deadline did meanwhile. The
// values label a metric.
type missCause string

const (
	missSilent missCause = "silent" // it gave no first token at all
	missLate   missCause = "late"   // it gave others theirs
)
