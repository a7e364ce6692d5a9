package overhead_test

import (
	"errors"
	"fmt"
	"io"
	"net"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// empty speaks ext_proc as the service does, message for message, answers each
// at once and decides nothing: what it costs is what ext_proc costs by itself.
// The access log comes to it as well.
type empty struct {
	extprocv3.UnimplementedExternalProcessorServer
	accesslogv3.UnimplementedAccessLogServiceServer
}

// serveEmpty is the child's main; it prints its address.
func serveEmpty() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	extprocv3.RegisterExternalProcessorServer(server, empty{})
	accesslogv3.RegisterAccessLogServiceServer(server, empty{})
	h := health.NewServer()
	h.SetServingStatus(extprocv3.ExternalProcessor_ServiceDesc.ServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(server, h)
	fmt.Printf("{\"listen\":%q}\n", l.Addr())
	return server.Serve(l)
}

// The answers, made once.
var (
	passHeaders = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}
	passBody    = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}
	passAnswer  = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}
)

// Process implements ExternalProcessorServer.
func (empty) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	duplex := false
	for first := true; ; first = false {
		msg, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if first {
			duplex = msg.GetProtocolConfig().GetRequestBodyMode() == filterv3.ProcessingMode_FULL_DUPLEX_STREAMED
		}
		switch m := msg.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_RequestHeaders:
			err = stream.Send(passHeaders)
		case *extprocv3.ProcessingRequest_RequestBody:
			if duplex {
				err = echo(stream, m.RequestBody)
			} else {
				err = stream.Send(passBody)
			}
		case *extprocv3.ProcessingRequest_ResponseBody:
			// As the service: the first chunk is all that is learnt from.
			return stream.Send(passAnswer)
		}
		if err != nil {
			return err
		}
	}
}

// echo sends a piece of a body back: in full duplex that is what leaves.
func echo(stream extprocv3.ExternalProcessor_ProcessServer, b *extprocv3.HttpBody) error {
	return stream.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
		RequestBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
			Mutation: &extprocv3.BodyMutation_StreamedResponse{
				StreamedResponse: &extprocv3.StreamedBodyResponse{Body: b.GetBody(), EndOfStream: b.GetEndOfStream()},
			},
		}}},
	}})
}

// StreamAccessLogs implements AccessLogServiceServer.
func (empty) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}
