package extproc

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// attempt is one stream of the filter in the pool's cluster: one try of a request
// at one engine, from the engine's headers to the first chunk of its body. Where
// the request has a deadline the headers are kept back until then, so that Envoy
// can still give the try up. Its goroutine owns it but for what mu guards.
type attempt struct {
	*Server
	conn conn
	path string
	// number and address are which try it is and who answers.
	number  int
	address string
	// booking is nil where the request is none of ours; tries where it has no
	// deadline.
	booking *scoring.Reservation
	tries   *tries
	// announced: a stream on /v1/responses began.
	announced bool
	// chunks counts those kept back.
	chunks int

	// mu guards the following fields, and calls of conn.Send: a timer may let the
	// headers go.
	mu sync.Mutex
	// withheld: the headers wait for our answer.
	withheld bool
	// gone: the stream is over, nothing may be sent.
	gone bool
}

// showsTry reports whether a stream is one of that filter: it begins with an
// answer's headers, and only there is the number of the try asked for.
func showsTry(first *extprocv3.ProcessingRequest) bool {
	return first.GetResponseHeaders() != nil && !first.GetObservabilityMode() && attribute(first, envoy.AttributeAttempt) != nil
}

// try serves such a stream. Once the first chunk is through, or there is none to
// wait for, the stream is ended: the rest of the answer costs nothing.
func (s *Server) try(conn conn, first *extprocv3.ProcessingRequest) error {
	s.holds.Store(true)
	a := &attempt{
		Server: s, conn: conn,
		path:    attribute(first, envoy.AttributePath).GetStringValue(),
		number:  int(attribute(first, envoy.AttributeAttempt).GetNumberValue()),
		address: attribute(first, envoy.AttributeUpstream).GetStringValue(),
	}
	if id := decisionID(first.GetMetadataContext().GetFilterMetadata()[envoy.Metadata]); id != "" {
		a.booking, a.tries = s.picker.Find(id), s.followed.find(id)
	}
	s.metrics.streamsIn[phaseTry].Inc()
	defer s.metrics.streamsIn[phaseTry].Dec()
	defer a.leave()
	for msg := first; ; {
		done, err := a.take(msg)
		if done || err != nil {
			return err
		}
		if msg, err = conn.Recv(); err != nil {
			if a.tries != nil {
				a.tries.closed(a.number)
			}
			return closed(err)
		}
	}
}

// leave forbids the timer to send.
func (a *attempt) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
}

// take takes one message. It reports whether the stream has told all it can.
func (a *attempt) take(msg *extprocv3.ProcessingRequest) (done bool, err error) {
	switch m := msg.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return a.headers(m.ResponseHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		return a.body(m.ResponseBody)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return true, a.conn.Send(pass(responseTrailers)) // not asked for
	}
	return false, nil
}

func (a *attempt) headers(h *extprocv3.HttpHeaders) (done bool, err error) {
	code := 0
	for _, kv := range h.GetHeaders().GetHeaders() {
		if kv.GetKey() == ":status" {
			code, _ = strconv.Atoi(headerValue(kv))
		}
	}
	if a.tries != nil {
		a.tries.opened(a.number, a.address)
	}
	if a.booking != nil {
		a.served(a.booking, a.address)
	}
	switch good := code >= http.StatusOK && code < http.StatusBadRequest; {
	case a.booking == nil, h.GetEndOfStream(), !good:
		// There is no first token to wait for. How it ends the access log tells.
		if a.tries != nil {
			a.tries.refused(a.number)
		}
		return true, a.conn.Send(pass(responseHeaders))
	case a.tries == nil:
		return false, a.conn.Send(pass(responseHeaders))
	}
	a.mu.Lock()
	a.withheld = true
	a.mu.Unlock()
	if a.number >= len(a.tries.endpoints) {
		// Ends by itself once it has let the headers go or the stream is over.
		time.AfterFunc(time.Duration(relentAfter*float64(a.tries.deadline)), a.relent)
	}
	return false, nil
}

// The last try is not given up while its engine gives others first tokens: it
// has much to do, and there is nowhere else to go. That is looked at from three
// quarters of the deadline on.
const (
	relentAfter = 0.75
	relentStep  = 1.0 / 32
)

// relent lets the headers of a last try go, which lifts its deadline, or looks
// again later.
func (a *attempt) relent() {
	_, began := a.tries.present()
	alive := a.picker.Heard(a.address).After(began)
	a.mu.Lock()
	if a.gone || !a.withheld {
		a.mu.Unlock()
		return
	}
	if !alive {
		a.mu.Unlock()
		time.AfterFunc(time.Duration(relentStep*float64(a.tries.deadline)), a.relent)
		return
	}
	a.withheld = false
	// Envoy ends the stream where it cannot be told; the other goroutine sees it.
	_ = a.conn.Send(pass(responseHeaders))
	a.mu.Unlock()
	a.tries.lifted()
}

func (a *attempt) body(b *extprocv3.HttpBody) (done bool, err error) {
	a.chunks++
	if !b.GetEndOfStream() && (len(b.GetBody()) == 0 || a.announces(b.GetBody())) {
		return false, nil
	}
	if err := a.letGo(); err != nil {
		if a.tries != nil {
			a.tries.closed(a.number)
		}
		return true, err
	}
	if a.tries != nil {
		a.tries.answered()
	}
	if a.booking != nil && len(b.GetBody()) > 0 {
		// It may have been taken for lost meanwhile.
		a.served(a.booking, a.address)
		a.firstToken(a.booking)
	}
	return true, nil
}

// letGo answers all that was kept back.
func (a *attempt) letGo() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.withheld {
		a.withheld = false
		if err := a.conn.Send(pass(responseHeaders)); err != nil {
			return err
		}
	}
	for ; a.chunks > 0; a.chunks-- {
		if err := a.conn.Send(pass(responseBody)); err != nil {
			return err
		}
	}
	return nil
}

// announces is that of a stream which follows the answer.
func (a *attempt) announces(chunk []byte) bool {
	if !announcement(a.path, a.announced, chunk) {
		return false
	}
	a.announced = true
	return true
}
