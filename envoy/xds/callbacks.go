package xds

import (
	"context"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/firsttoken/firsttoken/envoy"
)

// sotwCallbacks tell what happens on state-of-the-world streams.
type sotwCallbacks struct{ envoys *envoys }

func sotwKey(id int64) streamKey { return streamKey{envoy.StateOfTheWorld, id} }

// OnStreamOpen is called once a stream is open.
func (c sotwCallbacks) OnStreamOpen(ctx context.Context, id int64, _ string) error {
	c.envoys.opened(ctx, sotwKey(id))
	return nil
}

// OnStreamClosed is called when it has ended.
func (c sotwCallbacks) OnStreamClosed(id int64, _ *corev3.Node) { c.envoys.closed(sotwKey(id)) }

// OnStreamRequest is called with every message from Envoy. What Envoy refuses it
// must not be sent again at once, as the cache would, since Envoy names the
// version that it goes on with: it would refuse thousands of times a second.
func (c sotwCallbacks) OnStreamRequest(id int64, r *discoveryv3.DiscoveryRequest) error {
	version, refused := c.envoys.heard(sotwKey(id), r.GetNode(), r.GetTypeUrl(), r.GetResponseNonce(), r.GetErrorDetail())
	if refused {
		r.VersionInfo = version
	}
	return nil
}

// OnStreamResponse is called before every message to Envoy.
func (c sotwCallbacks) OnStreamResponse(_ context.Context, id int64, _ *discoveryv3.DiscoveryRequest, r *discoveryv3.DiscoveryResponse) {
	c.envoys.sent(sotwKey(id), r.GetTypeUrl(), r.GetNonce(), r.GetVersionInfo())
}

// deltaCallbacks tell what happens on delta streams.
type deltaCallbacks struct{ envoys *envoys }

func deltaKey(id int64) streamKey { return streamKey{envoy.Delta, id} }

// OnDeltaStreamOpen is called once a stream is open.
func (c deltaCallbacks) OnDeltaStreamOpen(ctx context.Context, id int64, _ string) error {
	c.envoys.opened(ctx, deltaKey(id))
	return nil
}

// OnDeltaStreamClosed is called when it has ended.
func (c deltaCallbacks) OnDeltaStreamClosed(id int64, _ *corev3.Node) {
	c.envoys.closed(deltaKey(id))
}

// OnStreamDeltaRequest is called with every message from Envoy.
func (c deltaCallbacks) OnStreamDeltaRequest(id int64, r *discoveryv3.DeltaDiscoveryRequest) error {
	c.envoys.heard(deltaKey(id), r.GetNode(), r.GetTypeUrl(), r.GetResponseNonce(), r.GetErrorDetail())
	return nil
}

// OnStreamDeltaResponse is called before every message to Envoy.
func (c deltaCallbacks) OnStreamDeltaResponse(id int64, _ *discoveryv3.DeltaDiscoveryRequest, r *discoveryv3.DeltaDiscoveryResponse) {
	c.envoys.sent(deltaKey(id), r.GetTypeUrl(), r.GetNonce(), r.GetSystemVersionInfo())
}
