package envoy

import (
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// BodyMode is how Envoy shows the service a request's body.
type BodyMode string

// The modes.
const (
	// BodyBuffered: whole. Envoy keeps it, so that a request goes on without a
	// choice whenever the service fails. The default.
	BodyBuffered BodyMode = "buffered"
	// BodyFullDuplex: in pieces that Envoy lets go of, as gateways with an
	// InferencePool do. There is no limit to its length in Envoy, and none to how
	// long it waits for the choice; what it has sent to a service that dies is
	// lost, unless a standby is there to be asked.
	BodyFullDuplex BodyMode = "full-duplex"
)

// watcherName is the filter that shows the answer where the one that asks for a
// choice does not.
const watcherName = "firsttoken.watcher"

// duplex changes the filter that asks for a choice into one of full duplex. It has
// no part in the response: its stream is over with the request, so that a service
// that dies later cuts no answer.
func duplex(p *extprocv3.ExternalProcessor) {
	m := p.GetProcessingMode()
	m.RequestBodyMode, m.RequestTrailerMode = extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED, extprocv3.ProcessingMode_SEND
	m.ResponseBodyMode = extprocv3.ProcessingMode_NONE
	p.ResponseAttributes = nil
	// There is no going on without the body: what clients take for a fault that
	// passes, rather than 500.
	p.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable}
}

// watcher shows the service answers and waits for nothing. Its stream ends with
// the first chunk. It finds the decision by the id in dynamic metadata.
func watcher() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: watcherName, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&extprocv3.ExternalProcessor{
		GrpcService:       grpcService(clusterService),
		ObservabilityMode: true,
		// Without it an answer is cut when the service dies.
		FailureModeAllow: true,
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SKIP,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseHeaderMode:  extprocv3.ProcessingMode_SKIP,
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
		},
		ResponseAttributes: []string{AttributeCode, AttributeUpstream},
		MetadataOptions: &extprocv3.MetadataOptions{
			ForwardingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{Metadata}},
		},
		DeferredCloseTimeout: durationpb.New(deferredCloseTimeout),
	})}}
}
