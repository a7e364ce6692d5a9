package extproc

import (
	"slices"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/firsttoken/firsttoken/scoring"
)

// record is an access-log record of a request that port 8000 of upstream
// answered; an empty id leaves our metadata out.
func record(id, upstream string, code uint32, flags *datav3.ResponseFlags) *datav3.HTTPAccessLogEntry {
	e := &datav3.HTTPAccessLogEntry{
		CommonProperties: &datav3.AccessLogCommon{
			ResponseFlags: flags,
			UpstreamRemoteAddress: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: upstream, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 8000},
			}}},
			AccessLogType: datav3.AccessLogType_DownstreamEnd,
		},
		Request:  &datav3.HTTPRequestProperties{RequestId: "a client's own"},
		Response: &datav3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(code)},
	}
	if id != "" {
		e.CommonProperties.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"firsttoken": {Fields: map[string]*structpb.Value{"id": structpb.NewStringValue(id)}},
		}}
	}
	return e
}

func TestAccessLogTellsTheEnd(t *testing.T) {
	for _, c := range []struct {
		name    string
		code    uint32
		flags   *datav3.ResponseFlags
		outcome scoring.Outcome
		probe   bool
	}{
		{"complete", 200, nil, scoring.OutcomeComplete, false},
		{"refused", 400, nil, scoring.OutcomeError, false},
		{"no answer", 0, nil, scoring.OutcomeError, false},
		{"cut by the engine", 200, &datav3.ResponseFlags{UpstreamConnectionTermination: true}, scoring.OutcomeError, false},
		{"client left", 200, &datav3.ResponseFlags{DownstreamConnectionTermination: true}, scoring.OutcomeCancelled, false},
		{"client reset", 0, &datav3.ResponseFlags{DownstreamRemoteReset: true}, scoring.OutcomeCancelled, false},
		{"not reached", 503, &datav3.ResponseFlags{UpstreamConnectionFailure: true}, scoring.OutcomeError, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(1))
				stream := f.open(t, duplex, none)
				stream.say(t, completion())
				stream.say(t, reqBody("{}", true))
				stream.close(errCancelled)
				d := f.decided[0]
				if fate, final := f.record(record(d.ID, "10.0.0.1", c.code, c.flags)); fate != recordMatched || !final {
					t.Errorf("record is %s, final %v", fate, final)
				}
				if want := []ending{{d.ID, c.outcome, "10.0.0.1:8000"}}; !slices.Equal(f.ends, want) {
					t.Errorf("ended %v, want %v", f.ends, want)
				}
				if (len(f.probes) == 1) != c.probe {
					t.Errorf("probed %v", f.probes)
				}
				if fate, _ := f.record(record(d.ID, "10.0.0.1", c.code, nil)); fate != recordUnknown || len(f.ends) != 1 {
					t.Errorf("the second record is %s, ended %v", fate, f.ends)
				}
			})
		})
	}
}

// Records that are not the end of a request of ours change nothing.
func TestForeignRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		c.one(t, reqBody("{}", true))
		id := f.decided[0].ID
		early := record(id, "10.0.0.1", 200, nil)
		early.CommonProperties.AccessLogType = datav3.AccessLogType_DownstreamStart
		if _, final := f.record(early); final {
			t.Error("a request that began has ended")
		}
		if fate, _ := f.record(record("", "10.0.0.1", 200, nil)); fate != recordForeign {
			t.Errorf("a record without id is %s", fate)
		}
		if fate, _ := f.record(record("guessed", "10.0.0.1", 200, nil)); fate != recordUnknown {
			t.Errorf("a record with another id is %s", fate)
		}
		if fate, _ := f.record(&datav3.HTTPAccessLogEntry{}); fate != recordForeign {
			t.Errorf("an empty record is %s", fate)
		}
		if f.picker.Find(id) == nil {
			t.Error("the request has ended")
		}
	})
}

// "events may come late, twice or out of order (access-log end before first
// chunk)".
func TestRecordBeforeFirstChunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		c.one(t, reqBody("{}", true))
		f.record(record(f.decided[0].ID, "10.0.0.1", 200, nil))
		c.one(t, with(respBody("data: x\n\n", true), 200, "10.0.0.1:8000"))
		if want := []scoring.Outcome{scoring.OutcomeComplete}; !slices.Equal(f.outcomes(), want) || len(f.tokens) != 0 {
			t.Errorf("outcomes %v, first tokens %v", f.outcomes(), f.tokens)
		}
	})
}

// A request that another endpoint served in the end moves there first.
func TestRecordOfARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, duplex, none)
		c.say(t, completion())
		c.say(t, reqBody("{}", true))
		d := f.decided[0]
		other := d.Candidates[1].Endpoint.Address
		f.record(record(d.ID, other[:len(other)-len(":8000")], 200, nil))
		if want := []ending{{d.ID, scoring.OutcomeComplete, other}}; !slices.Equal(f.ends, want) {
			t.Errorf("ended %v, want %v", f.ends, want)
		}
		if want := []string{d.Endpoint().Address}; !slices.Equal(f.probes, want) {
			t.Errorf("probed %v, want %v", f.probes, want)
		}
	})
}
