package extproc

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/scoring"
)

// conn is the client's side of one stream.
type conn interface {
	Context() context.Context
	Recv() (*extprocv3.ProcessingRequest, error)
	Send(*extprocv3.ProcessingResponse) error
}

// errDone ends a stream from our side: what the client does further with the
// request is no longer of interest.
var errDone = errors.New("nothing more to learn from this stream")

// stream is one request's progress. Its goroutine owns it.
type stream struct {
	*Server
	conn    conn
	dialect dialect
	phase   phase

	head head
	// body is the request's body as far as it came, at most the body limit.
	body []byte
	// began is when the first part of the request came.
	began time.Time
	// headersWait: the client waits for the answer to the headers until we have
	// seen the body.
	headersWait bool
	// model is what the client asked for, once that is known.
	model string
	// subset are the addresses that the gateway restricts the request to; nil: any.
	subset []string
	// unread: the body came, but the encoder failed on it.
	unread bool
	// decided: the choice was made, or left to Envoy.
	decided bool
	// renamed: body names another model than the client did, and takes the place of
	// what came.
	renamed bool
	// booking is the decision's; nil where there is none.
	booking *scoring.Reservation
	// period is the time of choosing that the request was taken into; never nil.
	period *period
	// arm is which one the request belongs to.
	arm armed

	// shadow is nil where the request goes by our word.
	shadow *shadow

	// The following belong to the response.
	responded bool // some of it was seen
	announced bool // a stream on /v1/responses began
	begun     bool // a chunk with content was seen
	events    bool // that chunk began a stream of events
	over      bool // its end was seen
}

// Process is one ext_proc stream, one HTTP request.
func (s *Server) Process(conn extprocv3.ExternalProcessor_ProcessServer) error {
	return s.process(conn)
}

func (s *Server) process(conn conn) error {
	first, err := conn.Recv()
	if err != nil {
		return closed(err)
	}
	if showsTry(first) {
		return s.try(conn, first)
	}
	st := &stream{Server: s, conn: conn, dialect: dialectOf(first), began: time.Now(), period: s.period.Load()}
	st.enter(phaseReceiving)
	defer st.enter(phaseGone)
	if showsRequest(st.dialect, first) {
		defer st.endShadow()
		if err := st.beginShadow(); err != nil {
			return nil // not watched, and counted
		}
	}
	for msg := first; ; {
		if err := st.handle(msg); err != nil {
			if errors.Is(err, errDone) {
				return nil
			}
			st.ended()
			return err
		}
		if msg, err = conn.Recv(); err != nil {
			st.ended()
			return closed(err)
		}
	}
}

// closed is the stream's own status once the client has ended it: a clean end
// is no error.
func closed(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// handle takes one message and answers it as the dialect wants. It returns
// errDone when the stream should end.
func (st *stream) handle(msg *extprocv3.ProcessingRequest) error {
	switch m := msg.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return st.requestHeaders(msg, m.RequestHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		return st.requestBody(msg, m.RequestBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return st.requestTrailers()
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return st.responseHeaders(msg, m.ResponseHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		return st.responseBody(msg, m.ResponseBody)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return st.responseTrailers(msg)
	}
	// Flow control and whatever comes later ask for no answer.
	return nil
}

// send answers, unless the client would ignore it.
func (st *stream) send(reply *extprocv3.ProcessingResponse) error {
	if st.dialect.observed {
		return nil
	}
	return st.conn.Send(reply)
}

// ended is called when the client ended the stream. A request whose answer was
// not sent has no booking.
func (st *stream) ended() {
	if st.booking == nil || st.over {
		return
	}
	if st.shadow != nil && st.shownEnded() {
		return
	}
	end := st.dialect.streamEnd(st.responded)
	if end == endCut && !st.responded && !st.generation() {
		// HEAD, /health and the like may be answered without a body, of which
		// nothing is shown to us: not seeing one is no sign of a cut.
		end = endOver
	}
	if end == endSilent {
		return
	}
	if t := st.followed.find(st.booking.Decision().ID); t != nil {
		t.left()
	}
	if end == endOver {
		st.releaseLater(scoring.OutcomeComplete)
		return
	}
	st.release(scoring.OutcomeCancelled)
}

// release ends the booking, if there is one.
func (st *stream) release(outcome scoring.Outcome) {
	if st.booking != nil {
		st.end(st.booking, outcome)
	}
}

// phase is what a stream is at. The names label a metric.
type phase string

const (
	phaseReceiving phase = "receiving" // the request comes in
	phaseDeciding  phase = "deciding"
	phaseHeld      phase = "held"      // until an endpoint is ready for it
	phaseWaiting   phase = "waiting"   // for the first chunk of the response
	phaseAnswering phase = "answering" // the response goes on
	phaseTry       phase = "try"       // one try is watched until its first chunk
	phaseGone      phase = ""          // before and after
)

// enter moves the stream to a phase and counts it there.
func (st *stream) enter(p phase) {
	if p == st.phase {
		return
	}
	if st.phase != phaseGone {
		st.metrics.streamsIn[st.phase].Dec()
	}
	if p != phaseGone {
		st.metrics.streamsIn[p].Inc()
	}
	st.phase = p
}

// newID is a decision's id: 128 random bits, so that it neither repeats nor
// can be guessed by a client that wants to disturb another's booking.
func newID() string { return rand.Text() }
