package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
)

// An engine that answers probes and gives no first token is left out after its
// first missed deadline: /status says so, the record of the request too, and no
// further request is sent there.
func TestHangingEngineIsLeftOut(t *testing.T) {
	const models = `{"data":[{"id":"m"}]}`
	engines := []string{fakeEngine(t, models), fakeEngine(t, models)}
	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{{Address: engines[0]}, {Address: engines[1]}}
	cfg.Server.Rescue.Enabled, cfg.Server.Rescue.Floor, cfg.Server.Rescue.Max = true, 100*time.Millisecond, 300*time.Millisecond
	cfg.Server.Fallbacks, cfg.Server.Rescue.Tries = 1, 1
	b := startService(t, cfg)
	g := newGateway(t, b, false)

	r := g.ask(t.Context(), 1, 100, 1, true)
	// As Envoy shows a try of which the headers came and then nothing.
	shown, err := g.external.Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := shown.Send(&extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{
			Headers: []*corev3.HeaderValue{{Key: ":status", RawValue: []byte("200")}},
		}}},
		Attributes: map[string]*structpb.Struct{"hold": {Fields: map[string]*structpb.Value{
			envoy.AttributeAttempt: structpb.NewNumberValue(1), envoy.AttributeUpstream: structpb.NewStringValue(r.address),
		}}},
		MetadataContext: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			envoy.Metadata: {Fields: map[string]*structpb.Value{envoy.KeyID: structpb.NewStringValue(r.id)}},
		}},
	}); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, b, func(s status) bool {
		return slices.ContainsFunc(s.Fleet, func(e endpointStatus) bool {
			return e.Address == r.address && e.Suspended && !e.Ready && e.Trial != nil
		})
	})
	for i := range 4 {
		if next := g.ask(t.Context(), 1000*(i+1), 100, 1, true); next.address == r.address {
			t.Errorf("request %d was sent to the engine that hangs", i)
		}
	}
	text := get(t, b, "/decisions", nil)
	if !strings.Contains(text, `"missed_endpoints"`) || !strings.Contains(text, `"deadline_seconds"`) {
		t.Errorf("/decisions tells nothing of the deadline: %s", text)
	}
	metrics := get(t, b, "/metrics", nil)
	for _, want := range []string{
		`firsttoken_deadline_misses_total{cause="silent"} 1`, `firsttoken_endpoint_deadline_misses_total{cause="silent",endpoint="` + r.address + `"} 1`,
		`firsttoken_endpoint_suspended{endpoint="` + r.address + `"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in /metrics", want)
		}
	}
	if err := shown.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := shown.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream of the try ended with %v", err)
	}
}
