package extproc

import (
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/envoy"
)

// head is what is known of a request before its body.
type head struct {
	method, path                 string
	contentType, contentEncoding string
	contentLength                int
	traceparent, tracestate      string
	session                      string // the session key's header
	seen                         bool   // headers were sent to us
}

// maxAhead is the most memory set aside for a body before it comes: a client
// may promise any length.
const maxAhead = 1 << 20

func (st *stream) requestHeaders(msg *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders) error {
	if st.dialect.observed {
		return st.shownHeaders(msg, h)
	}
	if st.head.seen || st.decided {
		return st.send(pass(requestHeaders)) // out of order; answered, not read
	}
	st.head.seen = true
	st.head.readHeaders(h.GetHeaders(), st.cfg.SessionKey)
	st.head.readAttributes(msg)
	st.readArms(h.GetHeaders())
	st.readSubset(msg)
	choosing := st.beginPeriod()
	switch reply := st.ownAnswer(choosing, h.GetHeaders()); {
	case reply != nil:
		st.decided = true
		if err := st.send(reply); err != nil {
			return err
		}
		return errDone
	case !choosing:
		// What follows passes as it comes.
		st.decided = true
		st.metrics.off.left(leftOff)
		st.enter(phaseWaiting)
		return st.send(st.replies.headers(nil))
	case h.GetEndOfStream() || st.dialect.request.leavesAtHeaders():
		return st.decideThen(false, st.replies.headers)
	case st.dialect.request == bodyDuplex:
		st.headersWait = true
		st.body = make([]byte, 0, min(st.head.contentLength, maxAhead, st.cfg.BodyLimit))
		return nil
	}
	// The body comes only after this answer, and the choice with the body.
	return st.answerAhead(h.GetHeaders())
}

func (st *stream) requestBody(msg *extprocv3.ProcessingRequest, b *extprocv3.HttpBody) error {
	if st.dialect.observed {
		return st.shownBody(msg, b)
	}
	if !st.decided && !st.head.seen {
		st.head.readAttributes(msg)
		st.readSubset(msg)
		if st.dialect.request == bodyDuplex || st.dialect.request.leavesAtHeaders() {
			st.leave(causeHeadersLeft)
		}
	}
	if st.dialect.request == bodyDuplex {
		return st.duplexBody(b)
	}
	if st.decided {
		return st.send(pass(requestBody))
	}
	st.body = b.GetBody()
	// Before trailers a whole body comes without end_of_stream, a cut one
	// always does.
	whole := st.dialect.request == bodyBuffered || b.GetEndOfStream()
	err := st.decideThen(whole, st.replies.requestBody)
	st.body = nil // the stream may live for minutes
	return err
}

// duplexBody holds a body back until it has ended, then answers headers and
// body. What is too long to be read is passed on as it comes.
func (st *stream) duplexBody(b *extprocv3.HttpBody) error {
	if st.decided {
		return st.sendChunks(requestBody, b.GetBody(), b.GetEndOfStream())
	}
	st.body = append(st.body, b.GetBody()...)
	if !b.GetEndOfStream() && len(st.body) <= st.cfg.BodyLimit && st.beginPeriod() {
		return nil
	}
	return st.letGo(b.GetEndOfStream(), b.GetEndOfStream())
}

// letGo decides, then answers the headers and the body collected so far. whole:
// the request's body is complete; end: nothing follows it.
func (st *stream) letGo(whole, end bool) error {
	if err := st.decideThen(whole, st.replies.headers); err != nil {
		return err
	}
	body := st.body
	st.body = nil
	if len(body) > 0 || end {
		if err := st.sendChunks(requestBody, body, end); err != nil {
			return err
		}
	}
	if st.booking != nil {
		st.booking.Sent() // An engine begins when it has all of it.
	}
	return nil
}

func (st *stream) requestTrailers() error {
	switch {
	case st.dialect.observed:
		return st.shownTrailers()
	case st.decided:
	case st.headersWait:
		if err := st.letGo(true, false); err != nil {
			return err
		}
	default:
		st.leave(causeHeadersLeft)
	}
	return st.send(pass(requestTrailers))
}

// leave leaves the choice to Envoy: nothing that we could say now would be
// heard.
func (st *stream) leave(cause string) {
	st.decided = true
	st.metrics.fallback(cause)
	st.metrics.off.left(leftCause(cause))
	st.enter(phaseWaiting)
}

// sendChunks sends a body in the chunks that every client takes.
func (st *stream) sendChunks(p part, body []byte, end bool) error {
	for {
		n := min(len(body), maxChunk)
		last := n == len(body)
		if err := st.send(chunk(p, body[:n], end && last)); err != nil || last {
			return err
		}
		body = body[n:]
	}
}

// readHeaders keeps what the choice needs. Nothing else of a client's headers
// is looked at, its Authorization least of all. session is the session key.
func (h *head) readHeaders(headers *corev3.HeaderMap, session string) {
	for _, kv := range headers.GetHeaders() {
		value := headerValue(kv)
		if session != "" && strings.EqualFold(kv.GetKey(), session) {
			h.session = value
		}
		switch strings.ToLower(kv.GetKey()) {
		case ":method":
			h.method = value
		case ":path":
			h.path = value
		case "content-type":
			h.contentType = value
		case "content-encoding":
			h.contentEncoding = value
		case "traceparent":
			h.traceparent = value
		case "tracestate":
			h.tracestate = value
		case "content-length":
			if n, err := strconv.Atoi(value); err == nil && n > 0 {
				h.contentLength = n
			}
		}
	}
}

// headerValue: Envoy fills raw_value, some other clients value, some both
// kinds in one message.
func headerValue(kv *corev3.HeaderValue) string {
	if raw := kv.GetRawValue(); len(raw) > 0 {
		return string(raw)
	}
	return kv.GetValue()
}

// readAttributes fills in what the headers did not tell, for clients that skip
// them.
func (h *head) readAttributes(msg *extprocv3.ProcessingRequest) {
	if h.path == "" {
		h.path = attribute(msg, envoy.AttributePath).GetStringValue()
	}
	if h.method == "" {
		h.method = attribute(msg, envoy.AttributeMethod).GetStringValue()
	}
}
