package extproc

import (
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// holdCause says why a request is held no longer. The values label a metric.
type holdCause string

const (
	holdEvent     holdCause = "event"     // an endpoint was ready for it, or none is left
	holdMax       holdCause = "max_hold"  // it was held for as long as is allowed
	holdDrain     holdCause = "drain"     // this service is about to end
	holdOff       holdCause = "off"       // this service was told to make no choices
	holdCancelled holdCause = "cancelled" // the client left, or Envoy waited no longer
)

// release is what the picker says of a request that it held.
type release struct {
	decision *scoring.Decision
	err      error
}

// offered is a request as the picker took it: decided, refused, or held.
type offered struct {
	release
	// held is nil where release is known already; otherwise it comes by released.
	held     *scoring.Held
	released <-chan release
}

// offer hands a prompt to the picker. Once the service drains nothing is held.
func (st *stream) offer(p *scoring.Prompt) offered {
	if st.shadow != nil {
		d, err := st.picker.Shadow(newID(), p, st.shadow.arrived)
		return offered{release: release{d, err}}
	}
	if st.draining.Err() != nil {
		d, err := st.picker.Pick(newID(), p)
		return offered{release: release{d, err}}
	}
	// Whoever releases the request must not wait for this stream.
	released := make(chan release, 1)
	d, held, err := st.picker.Offer(newID(), p, func(d *scoring.Decision, err error) { released <- release{d, err} })
	return offered{release{d, err}, held, released}
}

// await waits until a request that is held is released. The client is asked to
// be patient where it would not be, and nothing waits longer than the picker's
// own limit: in full duplex Envoy's message_timeout does not apply. An error may
// be that the client is gone; nothing is booked then.
func (st *stream) await(o offered) (*scoring.Decision, error) {
	if o.held == nil {
		return o.decision, o.err
	}
	began := time.Now()
	st.enter(phaseHeld)
	defer st.enter(phaseDeciding)
	if st.dialect.request != bodyDuplex {
		if !st.renamed {
			st.body = nil // it is not sent back, and may wait for long
		}
		if err := st.send(st.patience()); err != nil {
			st.drop(o, began, holdCancelled)
			return nil, err
		}
	}
	limit := time.NewTimer(st.picker.MaxHold())
	defer limit.Stop()
	var r release
	cause := holdEvent
	select {
	case r = <-o.released:
	case <-limit.C:
		r, cause = st.dispatch(o, holdMax)
	case <-st.draining.Done():
		r, cause = st.dispatch(o, holdDrain)
	case <-st.period.over:
		st.drop(o, began, holdOff)
		return nil, errOff
	case <-st.conn.Context().Done():
		st.drop(o, began, holdCancelled)
		return nil, st.conn.Context().Err()
	}
	st.metrics.held(cause, time.Since(began))
	return r.decision, r.err
}

// dispatch ends the hold of a request, unless it was released meanwhile.
func (st *stream) dispatch(o offered, because holdCause) (release, holdCause) {
	cause := holdEvent
	if o.held.Dispatch() {
		cause = because
	}
	return <-o.released, cause
}

// drop gives up a request that is held: its client is gone, or Envoy chooses.
func (st *stream) drop(o offered, began time.Time, cause holdCause) {
	st.metrics.held(cause, time.Since(began))
	if o.held.Cancel() {
		return
	}
	// It was released at this very moment. Nobody was told of the decision.
	if r := <-o.released; r.decision != nil {
		r.decision.Reservation.End()
	}
}

// patience asks Envoy to wait for the answer to a body for as long as a request
// may be held: "when the ext_proc server [...] needs more time to process it, it
// sends back a ProcessingResponse message with a new timeout value", and nothing
// else in it.
func (s *Server) patience() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{OverrideMessageTimeout: durationpb.New(s.picker.MaxHold() + envoy.HoldMargin)}
}
