package extproc

import (
	"context"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// livenessService is SERVING for as long as the process can answer at all.
const livenessService = "liveness"

// readinessServices are SERVING while Envoy should send requests here: the
// server as a whole, the names that kubelets and Envoy's own check ask for, and
// the one that the conformance manifests of the gateway API ask for.
var readinessServices = []string{
	"",
	"readiness",
	extprocv3.ExternalProcessor_ServiceDesc.ServiceName,
	"inference-extension",
}

// SetReady tells health checks whether Envoy should send requests here. It has
// no effect once Drain has begun. Safe for concurrent use.
func (s *Server) SetReady(ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setReadyLocked(ready && s.draining.Err() == nil)
}

// Ready reports what health checks are told. Safe for concurrent use.
func (s *Server) Ready() bool {
	answer, err := s.health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
	return err == nil && answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}

// setReadyLocked publishes readiness. Caller must hold mu.
func (s *Server) setReadyLocked(ready bool) {
	s.health.SetServingStatus(livenessService, grpc_health_v1.HealthCheckResponse_SERVING)
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if ready {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	for _, service := range readinessServices {
		s.health.SetServingStatus(service, status)
	}
}

// healthService is gRPC's own, whose watchers are let go when the server stops.
type healthService struct {
	*health.Server
	stopping context.Context //nolint:containedctx // the server's life, not a call's
}

// Watch sends the status of a service and every change of it.
func (h healthService) Watch(in *grpc_health_v1.HealthCheckRequest, stream grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(h.stopping, cancel)()
	return h.Server.Watch(in, watchStream{stream, ctx})
}

// watchStream is a stream that ends with its own context.
type watchStream struct {
	grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]
	ctx context.Context //nolint:containedctx // takes the place of the stream's
}

func (w watchStream) Context() context.Context { return w.ctx }

// errStopping ends streams that would never end by themselves.
var errStopping = status.Error(codes.Unavailable, "the server stops")

// Drain reports NOT_SERVING, sends on what is held, goes on serving for the
// configured delay so that every Envoy sees it, then takes no new stream and waits
// for the open ones. When ctx is done, what is still open is cut.
func (s *Server) Drain(ctx context.Context) {
	s.mu.Lock()
	s.beginDrain()
	s.setReadyLocked(false)
	s.mu.Unlock()

	seen := time.NewTimer(s.cfg.DrainDelay)
	defer seen.Stop()
	select {
	case <-seen.C:
	case <-ctx.Done():
	}
	s.stop()
	s.encoders.Close()
	defer context.AfterFunc(ctx, s.grpc.Stop)()
	s.grpc.GracefulStop()
}
