package extproc

import (
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// dialect is how one client speaks and wants to be answered. It is told from
// the first message of each stream, so that one server serves every config.
type dialect struct {
	// request and response say how bodies come.
	request, response bodyMode
	// declared is false where the client did not say; whether and how it
	// sends the response is then unknown until it does.
	declared bool
	// observed: the client shows us the messages and ignores our answers.
	observed bool
}

// bodyMode is how a body comes and how it must be answered.
type bodyMode uint8

const (
	// bodyNone: no body is sent.
	bodyNone bodyMode = iota
	// bodyStreamed: in chunks, each passed on when it is answered. Headers
	// have left by then.
	bodyStreamed
	// bodyBuffered: whole, in one message, before anything leaves.
	bodyBuffered
	// bodyPartial: as buffered, but cut where the client's buffer is full.
	bodyPartial
	// bodyDuplex: in chunks that the client lets go of; what we send back is
	// what leaves.
	bodyDuplex
)

// leavesAtHeaders reports whether the request goes on its way once its headers
// are answered, so that the choice must be made without the body.
func (m bodyMode) leavesAtHeaders() bool { return m == bodyStreamed || m == bodyNone }

// dialectOf reads the first message of a stream.
func dialectOf(first *extprocv3.ProcessingRequest) dialect {
	d := dialect{observed: first.GetObservabilityMode()}
	if c := first.GetProtocolConfig(); c != nil {
		d.declared = true
		d.request, d.response = modeOf(c.GetRequestBodyMode()), modeOf(c.GetResponseBodyMode())
		return d
	}
	// Clients that are not Envoy send no config and speak full duplex, which
	// begins with headers. A body without headers comes from an Envoy too old
	// to declare itself, whose headers are skipped: it knows no full duplex.
	d.request, d.response = bodyDuplex, bodyDuplex
	if first.GetRequestBody() != nil {
		d.request, d.response = bodyBuffered, bodyStreamed
	}
	return d
}

func modeOf(m filterv3.ProcessingMode_BodySendMode) bodyMode {
	switch m {
	case filterv3.ProcessingMode_NONE:
		return bodyNone
	case filterv3.ProcessingMode_STREAMED:
		return bodyStreamed
	case filterv3.ProcessingMode_BUFFERED:
		return bodyBuffered
	case filterv3.ProcessingMode_BUFFERED_PARTIAL:
		return bodyPartial
	default: // FULL_DUPLEX_STREAMED, and GRPC, which is answered alike.
		return bodyDuplex
	}
}

// end is what the end of a stream says of its request.
type end uint8

const (
	// endSilent: nothing; the request may go on for minutes.
	endSilent end = iota
	// endOver: the request is over, and nothing says how.
	endOver
	// endCut: the request is over, and its answer did not come to its end.
	endCut
)

// streamEnd is what it means that the client ended the stream after our
// answer, before the end of the response was seen. responded: some of the
// response was seen.
func (d dialect) streamEnd(responded bool) end {
	switch {
	case d.response != bodyNone && (d.declared || responded):
		return endCut
	case d.request == bodyBuffered || d.request == bodyPartial:
		return endOver
	}
	return endSilent
}
