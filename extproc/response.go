package extproc

import (
	"bytes"
	"strconv"
	"strings"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

func (st *stream) responseHeaders(msg *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders) error {
	st.respond(msg)
	for _, kv := range h.GetHeaders().GetHeaders() {
		if kv.GetKey() == ":status" {
			if code, err := strconv.Atoi(headerValue(kv)); err == nil && code >= 400 {
				st.refused()
			}
		}
	}
	if h.GetEndOfStream() {
		st.finish()
	}
	return st.send(pass(responseHeaders))
}

func (st *stream) responseBody(msg *extprocv3.ProcessingRequest, b *extprocv3.HttpBody) error {
	st.respond(msg)
	if len(b.GetBody()) > 0 && !st.begun && !st.announces(b.GetBody()) {
		st.begun = true
		st.events = beginsEvents(b.GetBody())
		st.firstChunk(msg, b.GetBody())
	}
	if b.GetEndOfStream() {
		st.finish()
	}
	if st.dialect.response == bodyDuplex && !st.dialect.observed {
		// What is sent back is what the client gets: never let go of early.
		return st.sendChunks(responseBody, b.GetBody(), b.GetEndOfStream())
	}
	if err := st.send(pass(responseBody)); err != nil {
		return err
	}
	if st.begun && st.learned() {
		// Every further chunk would cost both sides as much as the first.
		return errDone
	}
	return nil
}

func (st *stream) responseTrailers(msg *extprocv3.ProcessingRequest) error {
	st.respond(msg)
	st.finish()
	return st.send(pass(responseTrailers))
}

// respond takes in that a part of the response came, and who sent it. A
// stream that did not decide, such as that of a second filter which only
// watches, finds the booking by the decision's id.
func (st *stream) respond(msg *extprocv3.ProcessingRequest) {
	if st.booking == nil && !st.decided {
		id := decisionID(msg.GetMetadataContext().GetFilterMetadata()[envoy.Metadata])
		if id != "" {
			st.booking = st.picker.Find(id)
		}
	}
	if st.responded {
		return
	}
	st.responded = true
	st.enter(phaseAnswering)
	switch {
	case st.shadow != nil:
		st.placeByResponse(msg)
	case st.booking != nil:
		st.served(st.booking, attribute(msg, envoy.AttributeUpstream).GetStringValue())
	}
}

// firstChunk takes the first content of the response's body: the first token,
// unless the engine refused.
func (st *stream) firstChunk(msg *extprocv3.ProcessingRequest, chunk []byte) {
	switch {
	case st.booking == nil:
		st.armFirstChunk(msg)
	case refusal(attribute(msg, envoy.AttributeCode), st.booking.Decision().Prompt, chunk):
		st.refused()
	case st.dialect.response == bodyBuffered || st.dialect.response == bodyPartial:
		// It came with the last token; its time says nothing of the first.
	default:
		st.firstToken(st.booking)
	}
}

// refusal reports whether the answer is an error. Where the client does not
// send the status, an answer that should be events and is a JSON object is
// one: engines find faults before they stream.
func refusal(code *structpb.Value, p *scoring.Prompt, chunk []byte) bool {
	if code != nil {
		return code.GetNumberValue() >= 400
	}
	return p.Streamed && bytes.HasPrefix(chunk, []byte("{"))
}

// refused ends the booking of a request that the engine did not take.
func (st *stream) refused() {
	st.over = true
	st.release(scoring.OutcomeError)
}

// finish takes in the response's end.
func (st *stream) finish() {
	st.over = true
	st.release(scoring.OutcomeComplete)
}

// learned reports whether the rest of the response would tell nothing that the
// access log does not: the first token is known, or nothing is booked. Answers
// that are not streamed come in few chunks and are followed to their end. Of
// paths whose requests are not read, such as /v1/responses, the answer's own
// shape tells which it is.
func (st *stream) learned() bool {
	return st.over || st.booking == nil || st.events || st.booking.Decision().Prompt.Streamed
}

// announces reports whether a chunk holds no more than an announcement.
func (st *stream) announces(chunk []byte) bool {
	if !announcement(st.head.path, st.announced, chunk) {
		return false
	}
	st.announced = true // what follows may be the rest of a long event
	return true
}

// announcement reports whether a chunk of an answer on path holds no more than
// the events with which an engine begins a stream on /v1/responses before anything
// is computed: it sends response.created and response.in_progress at once. before:
// the chunk before was one.
func announcement(path string, before bool, chunk []byte) bool {
	if path, _, _ := strings.Cut(path, "?"); path != prompt.ResponsesPath || !before && !beginsEvents(chunk) {
		return false
	}
	for line := range bytes.Lines(chunk) {
		if event, ok := bytes.CutPrefix(line, []byte("event: ")); ok {
			switch string(bytes.TrimSpace(event)) {
			case "response.created", "response.in_progress", "response.queued":
			default:
				return false
			}
		}
	}
	return true
}

// beginsEvents reports whether a body is a stream of server-sent events.
func beginsEvents(body []byte) bool {
	return bytes.HasPrefix(body, []byte("data:")) || bytes.HasPrefix(body, []byte("event:")) || bytes.HasPrefix(body, []byte(":"))
}

// attribute is the value of an attribute of the request or response, nil where
// the client did not send it. Attributes come below the name of the filter,
// which is the client's to choose.
func attribute(msg *extprocv3.ProcessingRequest, name string) *structpb.Value {
	for _, filter := range msg.GetAttributes() {
		if v := filter.GetFields()[name]; v != nil {
			return v
		}
	}
	return nil
}

// decisionID is the id of a decision in our namespace of dynamic metadata.
func decisionID(metadata *structpb.Struct) string {
	return metadata.GetFields()[envoy.KeyID].GetStringValue()
}
