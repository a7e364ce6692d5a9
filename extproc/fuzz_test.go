package extproc

import (
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// FuzzStream says the messages of ext_proc in any order, in any mode, and ends
// at any point. Each byte of order is one message. Whatever comes: no panic, no
// booking that nothing can end, at most one decision, one answer a message
// outside full duplex, and every byte of a full-duplex body comes back in order.
func FuzzStream(f *testing.F) {
	f.Add(uint8(2), uint8(1), false, []byte{0, 2, 6, 7})       // buffered, streamed answer
	f.Add(uint8(4), uint8(4), false, []byte{0, 1, 1, 2, 6, 7}) // full duplex both ways
	f.Add(uint8(4), uint8(0), false, []byte{0, 1, 4})          // trailers
	f.Add(uint8(255), uint8(0), false, []byte{2})              // undeclared, body first
	f.Add(uint8(0), uint8(1), true, []byte{11, 6})             // observed
	f.Add(uint8(3), uint8(2), false, []byte{0, 0, 8, 5, 9, 3, 10})
	f.Fuzz(func(t *testing.T, request, response uint8, observed bool, order []byte) {
		fx := newFixture(t, pool(2), func(c *Config, _ *Deps) { c.BodyLimit = 300 })
		c := &script{ctx: t.Context(), end: errCancelled}
		for i, kind := range order[:min(len(order), 64)] {
			m := message(kind)
			m.ObservabilityMode = observed
			if i == 0 && request != 255 {
				m.ProtocolConfig = &extprocv3.ProtocolConfiguration{
					RequestBodyMode:  filterv3.ProcessingMode_BodySendMode(request % 6),
					ResponseBodyMode: filterv3.ProcessingMode_BodySendMode(response % 6),
				}
			}
			c.in = append(c.in, m)
		}
		said := append([]*extprocv3.ProcessingRequest{}, c.in...)
		_ = fx.process(c)
		said = said[:len(said)-len(c.in)]

		if len(said) > 0 {
			checkAnswers(t, dialectOf(said[0]), said, c.out)
		}
		if len(fx.decided) > 1 || len(fx.ends) > len(fx.decided) || len(fx.tokens) > len(fx.decided) {
			t.Errorf("%d decisions, %d first tokens, %d ends", len(fx.decided), len(fx.tokens), len(fx.ends))
		}
		if streams := streamsOpen(t, fx); streams != 0 {
			t.Errorf("%v streams are open", streams)
		}
		// What is still booked, the access log can end, and nothing is left.
		for _, d := range fx.decided {
			fx.record(record(d.ID, "10.0.0.1", 200, nil))
		}
		stats := fx.picker.Stats()
		if stats.Open != 0 || len(fx.ends) != len(fx.decided) {
			t.Errorf("%d reservations are left, %d ends of %d decisions", stats.Open, len(fx.ends), len(fx.decided))
		}
		for _, e := range stats.Endpoints {
			if e.QueuedArea != 0 || e.Waiting != 0 || e.Decoding != 0 {
				t.Errorf("left behind: %+v", e)
			}
		}
	})
}

// checkAnswers compares what came back with what was said.
func checkAnswers(t *testing.T, d dialect, said []*extprocv3.ProcessingRequest, out []*extprocv3.ProcessingResponse) {
	t.Helper()
	if d.observed {
		if len(out) != 0 {
			t.Errorf("%d answers to a client that only shows", len(out))
		}
		return
	}
	var asked, answered [6]int
	for _, m := range said {
		if p, ok := partOf(m); ok {
			asked[p]++
		}
	}
	refused := false
	var sent, back [2][]byte
	for _, m := range said {
		sent[0] = append(sent[0], m.GetRequestBody().GetBody()...)
		sent[1] = append(sent[1], m.GetResponseBody().GetBody()...)
	}
	for i, m := range out {
		if m.GetImmediateResponse() != nil {
			refused = true
			if i != len(out)-1 {
				t.Error("the server went on after an immediate response")
			}
			continue
		}
		answered[partAnswered(m)]++
		back[0] = append(back[0], m.GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()...)
		back[1] = append(back[1], m.GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()...)
	}
	for p, n := range asked {
		p := part(p)
		if (p <= requestTrailers && d.request == bodyDuplex) || (p == responseBody && d.response == bodyDuplex) {
			continue
		}
		if answered[p] != n && !refused {
			t.Errorf("part %d: %d answers to %d messages", p, answered[p], n)
		}
	}
	if d.response == bodyDuplex && !refused && string(back[1]) != string(sent[1]) {
		t.Errorf("response body: %q came back of %q", back[1], sent[1])
	}
	if d.request == bodyDuplex && string(back[0]) != string(sent[0][:min(len(sent[0]), len(back[0]))]) {
		t.Errorf("request body: %q came back of %q", back[0], sent[0])
	}
}

// message is one of the messages that a client can say.
func message(kind byte) *extprocv3.ProcessingRequest {
	big := string(make([]byte, 200))
	switch kind % 14 {
	case 0:
		return completion()
	case 1:
		return reqBody("{a ", false)
	case 2:
		return reqBody("{b}", true)
	case 3:
		return reqHeaders(true, ":method", "GET", ":path", "/v1/models")
	case 4:
		return reqTrailers()
	case 5:
		return reqBody("", true)
	case 6:
		return with(respBody("data: x\n\n", false), 200, "10.0.0.2:8000")
	case 7:
		return respBody("", true)
	case 8:
		return with(respBody("{}", false), 500, "10.9.9.9:1")
	case 9:
		return respHeaders("404", false)
	case 10:
		return respTrailers()
	case 11:
		m := respHeaders("200", kind%2 == 0)
		m.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"firsttoken": {Fields: map[string]*structpb.Value{"id": structpb.NewStringValue("unknown")}},
		}}
		return m
	case 12:
		return reqBody(big, kind%2 == 0)
	}
	return &extprocv3.ProcessingRequest{} // nothing that is known today
}

func partOf(m *extprocv3.ProcessingRequest) (part, bool) {
	switch m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return requestHeaders, true
	case *extprocv3.ProcessingRequest_RequestBody:
		return requestBody, true
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return requestTrailers, true
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return responseHeaders, true
	case *extprocv3.ProcessingRequest_ResponseBody:
		return responseBody, true
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return responseTrailers, true
	}
	return 0, false
}

func partAnswered(m *extprocv3.ProcessingResponse) part {
	switch m.GetResponse().(type) {
	case *extprocv3.ProcessingResponse_RequestHeaders:
		return requestHeaders
	case *extprocv3.ProcessingResponse_RequestBody:
		return requestBody
	case *extprocv3.ProcessingResponse_RequestTrailers:
		return requestTrailers
	case *extprocv3.ProcessingResponse_ResponseHeaders:
		return responseHeaders
	case *extprocv3.ProcessingResponse_ResponseBody:
		return responseBody
	}
	return responseTrailers
}

// FuzzTryStream says the messages of a try in any order: the first byte is the
// headers' status and the number of the try, each further one a message. No part
// is answered twice, or a body before its headers; once the access log has told
// the request's end nothing of it is left.
func FuzzTryStream(f *testing.F) {
	f.Add(uint8(0), uint8(1), true, []byte{0, 1})       // a first token
	f.Add(uint8(0), uint8(3), true, []byte{2, 2, 3, 1}) // announcements before it
	f.Add(uint8(1), uint8(1), true, []byte{0, 1})       // an error
	f.Add(uint8(0), uint8(2), false, []byte{0, 5, 4, 0, 6})
	f.Fuzz(func(t *testing.T, status, number uint8, known bool, order []byte) {
		fx := newFixture(t, pool(3), func(c *Config, _ *Deps) { c.Rescue.Enabled, c.Rescue.Max = true, time.Hour/2 })
		d, err := fx.picker.Pick("id", &scoring.Prompt{Model: "m", Streamed: status%2 == 0, Sequences: []scoring.Sequence{{Length: 10, Copies: 1}}})
		if err != nil {
			t.Fatal(err)
		}
		fx.follow(d)
		r := &tried{fixture: fx, id: d.ID}
		if !known {
			r.id = "another"
		}
		fx.decided = []*scoring.Decision{d}
		first := r.begins(1, []string{"200", "503", "404", "101", "204", "", "x"}[status%7])
		first.Attributes["hold"].Fields[envoy.AttributeAttempt] = structpb.NewNumberValue(float64(number))
		first.Attributes["hold"].Fields[envoy.AttributePath] = structpb.NewStringValue([]string{"/v1/completions", "/v1/responses"}[number%2])
		first.GetResponseHeaders().EndOfStream = status >= 128
		c := &script{ctx: t.Context(), end: errCancelled, in: []*extprocv3.ProcessingRequest{first}}
		for _, kind := range order[:min(len(order), 64)] {
			c.in = append(c.in, []*extprocv3.ProcessingRequest{
				respBody("", false), respBody("data: x\n\n", false), respBody("event: response.created\ndata: {}\n\n", false),
				respBody("rest\n\n", false), respBody("", true), respTrailers(), respHeaders("200", false), completion(),
				{},
			}[kind%9])
		}
		said := append([]*extprocv3.ProcessingRequest{}, c.in...)
		_ = fx.process(c)
		said = said[:len(said)-len(c.in)]

		var asked, answered [6]int
		for _, m := range said {
			if p, ok := partOf(m); ok {
				asked[p]++
			}
		}
		for _, m := range c.out {
			answered[partAnswered(m)]++
			if m.GetResponseBody() != nil && answered[responseHeaders] == 0 {
				t.Error("a body is answered before its headers")
			}
		}
		for p := range asked {
			if answered[p] > asked[p] {
				t.Errorf("part %d: %d answers to %d messages", p, answered[p], asked[p])
			}
		}
		if len(fx.tokens) > 1 {
			t.Errorf("%d first tokens", len(fx.tokens))
		}
		fx.record(record(d.ID, "10.0.0.1", 200, nil))
		if open := fx.picker.Stats().Open; open != 0 || len(fx.followed.byID) != 0 || streamsOpen(t, fx) != 0 {
			t.Errorf("left: %d bookings, %d followed, %v streams", open, len(fx.followed.byID), streamsOpen(t, fx))
		}
	})
}
