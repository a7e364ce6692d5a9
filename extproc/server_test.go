package extproc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/firsttoken/firsttoken/scoring"
)

// quiet drops the fixture's own bookkeeping, which is for one stream at a time.
func quiet(c *Config, d *Deps) {
	d.Observer, d.Probe, c.DrainDelay = nil, nil, 0
}

// serve runs a server over memory until the test ends.
func serve(tb testing.TB, f *fixture) *grpc.ClientConn {
	tb.Helper()
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- f.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = conn.Close()
		now, cancel := context.WithCancel(context.Background())
		cancel()
		f.Drain(now)
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return conn
}

// "Serve all five. Readiness = pool and endpoints synced. While draining:
// readiness NOT_SERVING, liveness SERVING".
func TestHealth(t *testing.T) {
	f := newFixture(t, pool(1), quiet)
	health := grpc_health_v1.NewHealthClient(serve(t, f))
	check := func(when string, ready grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for service, want := range map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
			"": ready, "readiness": ready, "envoy.service.ext_proc.v3.ExternalProcessor": ready, "inference-extension": ready,
			"liveness": grpc_health_v1.HealthCheckResponse_SERVING,
		} {
			got, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
			if err != nil || got.GetStatus() != want {
				t.Errorf("%s: %q is %v (%v), want %v", when, service, got.GetStatus(), err, want)
			}
		}
		if want := ready == grpc_health_v1.HealthCheckResponse_SERVING; f.Ready() != want {
			t.Errorf("%s: Ready is %v, want %v", when, !want, want)
		}
	}
	check("at the start", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	f.SetReady(true)
	check("ready", grpc_health_v1.HealthCheckResponse_SERVING)
	f.SetReady(false)
	check("no longer ready", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
}

// Drain reports NOT_SERVING, lets requests finish, and is not held up by
// streams that never end.
func TestDrain(t *testing.T) {
	f := newFixture(t, pool(1), quiet)
	conn := serve(t, f)
	f.SetReady(true)
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "readiness"})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || m.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("%v, %v", m, err)
	}
	records, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := records.Send(&accesslogv3.StreamAccessLogsMessage{}); err != nil {
		t.Fatal(err)
	}
	stream := process(t, conn)
	stream.send(completion())
	stream.receive()

	drained := make(chan struct{})
	go func() { f.Drain(t.Context()); close(drained) }()
	if m, err := watch.Recv(); err != nil || m.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Fatalf("while draining: %v, %v", m, err)
	}
	f.SetReady(true) // has no effect any more
	if m, err := watch.Recv(); err == nil {
		t.Fatalf("the watch goes on: %v", m)
	}
	if err := records.RecvMsg(&accesslogv3.StreamAccessLogsResponse{}); status.Code(err) != codes.Unavailable {
		t.Errorf("the access log ends with %v", err)
	}
	select {
	case <-drained:
		t.Fatal("drained before the request has ended")
	default:
	}
	stream.send(reqBody("{}", true))
	stream.receive()
	stream.send(respBody("data: x\n\n", true))
	stream.receive()
	<-drained
}

// Run ends cleanly when its context does.
func TestRun(t *testing.T) {
	f := newFixture(t, pool(1), quiet)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, l) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A socket that a killed process left behind is taken over; one in use is not.
func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), "unix:"+path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a socket in use: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if _, err := Listen(t.Context(), "nonsense"); err == nil {
		t.Error("listens on nonsense")
	}
}

// gRPC's own limit is above ours, so that too long a body gets our answer.
func TestBodyJustOverTheLimit(t *testing.T) {
	f := newFixture(t, pool(1), quiet)
	conn := serve(t, f)
	body := "{" + strings.Repeat("x", f.cfg.BodyLimit-2) + "}"
	stream := process(t, conn)
	stream.send(completion())
	stream.receive()
	stream.send(reqBody(body, true))
	if m := stream.receive(); m.GetRequestBody() == nil {
		t.Errorf("a body of the limit: %v", m)
	}
	stream = process(t, conn)
	stream.send(completion())
	stream.receive()
	stream.send(reqBody(body+"x", true))
	if m := stream.receive(); m.GetImmediateResponse().GetStatus().GetCode() != 413 {
		t.Errorf("a byte more: %v", m)
	}
}

// 20,000 streams, each left at another point: no booking, goroutine or memory
// stays.
func TestAbortedStreamsLeaveNothing(t *testing.T) {
	f := newFixture(t, pool(3), quiet, func(c *Config, _ *Deps) { c.DrainDelay = time.Nanosecond })
	conn := serve(t, f)
	abort := func(i int) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := extprocv3.NewExternalProcessorClient(conn).Process(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		mode := []*extprocv3.ProtocolConfiguration{
			{RequestBodyMode: buffered, ResponseBodyMode: streamed},
			{RequestBodyMode: duplex, ResponseBodyMode: duplex},
			{RequestBodyMode: streamed, ResponseBodyMode: streamed},
		}[i%3]
		first := completion()
		first.ProtocolConfig = mode
		script := []*extprocv3.ProcessingRequest{first, reqBody("{"+strings.Repeat("x", 1000)+"}", true), respBody("{", false)}
		for _, m := range script[:i/3%4] {
			if stream.Send(m) != nil {
				break
			}
		}
		if i%2 == 0 { // the others are cut without a word
			_ = stream.CloseSend()
			_, _ = stream.Recv()
		}
	}
	many := func(n int) {
		var clients sync.WaitGroup
		for c := range 16 {
			clients.Go(func() {
				for i := range n / 16 {
					abort(c + 16*i)
				}
			})
		}
		clients.Wait()
	}
	settle := func() (goroutines int, heap uint64) {
		waitFor(t, "all streams are over", func() bool { return f.picker.Stats().Open == 0 && streamsOpen(t, f) == 0 })
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	many(1600) // fills pools and caches
	// As many goroutines as are ever kept idle, so that none is added to them.
	release := make(chan struct{})
	for range idleGoroutines {
		f.encoders.Go(func() { <-release })
	}
	close(release)
	goroutines, heap := settle()
	many(20_000)
	var after int
	waitFor(t, "goroutines are back to "+strconv.Itoa(goroutines), func() bool {
		after, _ = settle()
		return after <= goroutines+2
	})
	if _, now := settle(); now > heap+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", heap, now)
	}
}

// streamsOpen is the sum of the gauge of streams.
func streamsOpen(t *testing.T, f *fixture) float64 {
	t.Helper()
	var sum float64
	for _, p := range []phase{phaseReceiving, phaseDeciding, phaseWaiting, phaseAnswering} {
		sum += gaugeValue(t, f, p)
	}
	return sum
}

// waitFor polls a condition that other goroutines make true.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !is() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// rpc is a real stream.
type rpc struct {
	tb     testing.TB
	stream extprocv3.ExternalProcessor_ProcessClient
	first  bool
}

func process(tb testing.TB, conn *grpc.ClientConn) *rpc {
	tb.Helper()
	stream, err := extprocv3.NewExternalProcessorClient(conn).Process(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return &rpc{tb, stream, true}
}

// send sends a message of a client that buffers requests and streams answers.
func (r *rpc) send(m *extprocv3.ProcessingRequest) {
	r.tb.Helper()
	if r.first {
		m.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: buffered, ResponseBodyMode: streamed}
		r.first = false
	}
	if err := r.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		r.tb.Fatal(err)
	}
}

func (r *rpc) receive() *extprocv3.ProcessingResponse {
	r.tb.Helper()
	m, err := r.stream.Recv()
	if err != nil {
		r.tb.Fatal(err)
	}
	return m
}

// BenchmarkProcess is one request in the recommended modes, over gRPC in
// memory: headers, body, first chunk of the answer, end.
func BenchmarkProcess(b *testing.B) {
	f := newFixture(b, pool(8), quiet, func(c *Config, d *Deps) {
		c.DecisionLogs = 10
		d.Log = slog.New(slog.NewJSONHandler(discard{}, nil)) // what a line costs counts
	})
	conn := serve(b, f)
	body := "{" + strings.Repeat("x", 1000) + "}"
	b.ReportAllocs()
	for b.Loop() {
		r := process(b, conn)
		r.send(completion())
		r.receive()
		r.send(reqBody(body, true))
		m := r.receive()
		r.send(with(respBody("data: x\n\n", false), 200, "10.0.0.1:8000"))
		r.receive()
		if _, err := r.stream.Recv(); !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		if booking := f.picker.Find(metadata(m, "firsttoken", "id")); booking != nil {
			f.end(booking, scoring.OutcomeComplete)
		}
	}
}

// BenchmarkStream is the same without gRPC: the state machine and its replies.
func BenchmarkStream(b *testing.B) {
	f := newFixture(b, pool(8), quiet)
	body := "{" + strings.Repeat("x", 1000) + "}"
	b.ReportAllocs()
	for b.Loop() {
		first := completion()
		first.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: buffered, ResponseBodyMode: streamed}
		c := &script{ctx: b.Context(), in: []*extprocv3.ProcessingRequest{
			first, reqBody(body, true), with(respBody("data: x\n\n", true), 200, "10.0.0.1:8000"),
		}}
		if err := f.process(c); err != nil {
			b.Fatal(err)
		}
	}
}

// discard takes what is logged.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// script is a client that says what is written and never waits.
type script struct {
	ctx context.Context
	in  []*extprocv3.ProcessingRequest
	out []*extprocv3.ProcessingResponse
	end error // after the last message
}

func (s *script) Context() context.Context { return s.ctx }

func (s *script) Recv() (*extprocv3.ProcessingRequest, error) {
	if len(s.in) == 0 {
		return nil, s.end
	}
	m := s.in[0]
	s.in = s.in[1:]
	return m, nil
}

func (s *script) Send(m *extprocv3.ProcessingResponse) error {
	s.out = append(s.out, m)
	return nil
}
