package extproc

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/envoy"
)

// histogram is how many observations a histogram has, and their sum.
func histogram(t *testing.T, h prometheus.Observer) (count uint64, sum float64) {
	t.Helper()
	var m dto.Metric
	if err := h.(prometheus.Metric).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
}

// What the client waits for begins with the first part of its request; what was
// estimated, with the answer that lets the request go.
func TestFirstTokenIsMeasuredFromTheRequestAndComparedFromTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		time.Sleep(300 * time.Millisecond) // the body is long
		c.one(t, reqBody("{}", true))
		time.Sleep(2 * time.Second)
		c.say(t, with(respBody("data: x\n\n", false), 200, "10.0.0.1:8000"))

		if n, sum := histogram(t, f.metrics.ttft); n != 1 || math.Abs(sum-2.3) > 1e-6 {
			t.Errorf("time to first token: %d of %v s, want one of 2.3 s", n, sum)
		}
		if len(f.tokens) != 1 || f.tokens[0] != 2*time.Second {
			t.Errorf("observers were told %v, want 2s since the answer", f.tokens)
		}
		off := math.Abs(f.decided[0].Estimate().Seconds() - 2)
		if n, sum := histogram(t, f.metrics.errorTime.WithLabelValues("m")); n != 1 || math.Abs(sum-off) > 1e-6 {
			t.Errorf("error: %d of %v s, want one of %v s", n, sum, off)
		}
		if n, sum := histogram(t, f.metrics.errorShare.WithLabelValues("m")); n != 1 || math.Abs(sum-off/2) > 1e-6 {
			t.Errorf("error: %d of %v, want one of %v", n, sum, off/2)
		}
	})
}

// A second filter that only watches the response finds the booking, and with it
// when the request came.
func TestFirstTokenOfAnotherStreamIsMeasuredFromTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(1))
		decides := f.open(t, buffered, none)
		decides.one(t, completion())
		time.Sleep(time.Second)
		decides.one(t, reqBody("{}", true))
		id := f.decided[0].ID
		time.Sleep(time.Second)
		watches := f.open(t, none, streamed)
		m := respBody("data: x\n\n", false)
		m.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			envoy.Metadata: {Fields: map[string]*structpb.Value{envoy.KeyID: structpb.NewStringValue(id)}},
		}}
		watches.say(t, m)
		if n, sum := histogram(t, f.metrics.ttft); n != 1 || math.Abs(sum-2) > 1e-6 {
			t.Errorf("time to first token: %d of %v s, want one of 2 s", n, sum)
		}
	})
}

// Nobody estimated the time that a request lost elsewhere before it was tried
// on the endpoint that answers.
func TestRetriedRequestsAreNotComparedWithTheirEstimate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		c := f.open(t, buffered, streamed)
		c.one(t, completion())
		c.one(t, reqBody("{}", true))
		time.Sleep(time.Second)
		c.say(t, with(respBody("data: x\n\n", false), 200, f.decided[0].Candidates[1].Endpoint.Address))
		if n, _ := histogram(t, f.metrics.ttft); n != 1 {
			t.Errorf("%d first tokens, want 1", n)
		}
		if n, _ := histogram(t, f.metrics.errorShare.WithLabelValues("m")); n != 0 {
			t.Errorf("%d errors of estimates, want none", n)
		}
	})
}
