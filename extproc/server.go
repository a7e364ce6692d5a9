package extproc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/goroutine"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// Encoder turns a request body into the tokens that the engine will see. It is
// called from many goroutines.
type Encoder interface {
	// Encode returns at the latest when ctx ends, with what is known by then.
	// A *prompt.RequestError is for what no engine would accept; any other
	// error says that we could not size the request. The body is only read. One
	// that comes back much later is no longer waited for.
	Encode(ctx context.Context, r prompt.Request) (*scoring.Prompt, error)
}

// Observer is told what becomes of every decision, from many goroutines. It
// must not block.
type Observer interface {
	Decided(d *scoring.Decision)
	// FirstToken comes at most once a decision, and only for streamed answers.
	FirstToken(d *scoring.Decision, ttft time.Duration)
	// Ended comes at most once. served is the address that answered, empty
	// where it is not known.
	Ended(d *scoring.Decision, outcome scoring.Outcome, served string)
}

// Deps are what a Server works with.
type Deps struct {
	Picker  *scoring.Picker
	Encoder Encoder
	Metrics *Metrics
	Log     *slog.Logger
	// Ask lets cache sources ask somebody else what is cached of a prompt; they
	// answer from it until done, which is never nil, is called. It must return
	// when ctx ends; one that comes back later is no longer waited for. It may be
	// nil.
	Ask func(ctx context.Context, p *scoring.Prompt) (done func())
	// Answer answers a path of Config.Answers in place of an engine; false leaves it
	// to one. authorization is the client's header. It must not block, and may be
	// nil.
	Answer func(path, authorization string) (Answer, bool)
	// Instance is the LMCache instance that was found to be the endpoint's, by which
	// a client may ask for it; empty: none is known. It may be nil.
	Instance func(scoring.EndpointID) string
	// Observer may be nil.
	Observer Observer
	// Probe is called with the address of an endpoint that Envoy could not
	// reach or had to leave for another. It must not block. It may be nil.
	Probe func(address string)
	// Tracer makes a span of each decision; nil: none is made.
	Tracer trace.Tracer
	// Missed is called where an endpoint gave a request no first token before its
	// deadline; silent: nor any other, so that it may hang. Alive is called at the
	// next first token of one that was silent. Rescued is told what became of the
	// tries of a decision: when it has a deadline, when one was missed, and at the
	// end. None must block or call the Server; each may be nil.
	Missed  func(address string, silent bool)
	Alive   func(address string)
	Rescued func(id string, r Rescue)
}

// Server serves Envoy's external processor, its access log service and gRPC
// health on one port.
type Server struct {
	extprocv3.UnimplementedExternalProcessorServer
	accesslogv3.UnimplementedAccessLogServiceServer

	// The following are set once in NewServer.
	cfg      Config
	picker   *scoring.Picker
	encoder  Encoder
	ask      func(context.Context, *scoring.Prompt) func()
	answer   func(path, authorization string) (Answer, bool)
	lmcache  func(scoring.EndpointID) string
	observer Observer
	probe    func(address string)
	tracer   trace.Tracer
	metrics  *Metrics
	log      *slog.Logger
	replies  replies
	grpc     *grpc.Server
	health   *health.Server
	// stopping is done when streams that would never end must be let go.
	stopping context.Context //nolint:containedctx // the server's life, not a call's
	stop     context.CancelFunc
	// draining is done once Drain has begun: nothing is held from then on.
	draining   context.Context //nolint:containedctx // the server's life, not a call's
	beginDrain context.CancelFunc

	// encoders run the encoder, each call in a goroutine that may outlive its
	// stream.
	encoders *goroutine.Pool

	sampler sampler
	shadows *shadows

	missed      func(address string, silent bool) // set once
	alive       func(address string)              // set once
	rescued     func(id string, r Rescue)         // set once
	followed    followed
	suspects    suspects
	missSampler sampler
	// holds: Envoy has shown a try.
	holds   atomic.Bool
	unshown sync.Once

	// period is the present time of choosing, or the last one; never nil.
	period atomic.Pointer[period]
	// split shares requests out to arms; never nil.
	split atomic.Pointer[canary.Split]
	// instance tells the access-log records of our own requests from those of other
	// services, where a request has no decision to be known by.
	instance string

	mu sync.Mutex // guards the order of readiness and drain, of periods and of splits
}

// idleGoroutines is how many goroutines are kept for the next streams, and as
// many for their encoders: more than decide at once. Others are started as they
// are needed.
const idleGoroutines = 64

// messageOverhead is what a message may hold besides the body: headers,
// attributes and metadata. Envoy's own limit on headers is 60 KiB.
const messageOverhead = 1 << 20

// NewServer makes a Server that reports NOT_SERVING until SetReady(true).
func NewServer(cfg Config, deps Deps) *Server {
	s := &Server{
		cfg:      cfg,
		picker:   deps.Picker,
		encoder:  deps.Encoder,
		ask:      deps.Ask,
		answer:   deps.Answer,
		lmcache:  deps.Instance,
		observer: deps.Observer,
		probe:    deps.Probe,
		tracer:   deps.Tracer,
		metrics:  deps.Metrics,
		log:      deps.Log,
		replies:  newReplies(cfg),
		health:   health.NewServer(),
		shadows:  newShadows(),
		encoders: goroutine.NewPool(idleGoroutines),
		sampler:  sampler{limit: int64(cfg.DecisionLogs)},

		missed: deps.Missed, alive: deps.Alive, rescued: deps.Rescued,
		followed:    followed{byID: make(map[string]*tries)},
		missSampler: sampler{limit: missLogs},
		instance:    newID(),
	}
	s.period.Store(newPeriod())
	s.split.Store(&canary.Split{})
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.draining, s.beginDrain = context.WithCancel(s.stopping)
	s.grpc = grpc.NewServer(transport(cfg)...)
	extprocv3.RegisterExternalProcessorServer(s.grpc, s)
	accesslogv3.RegisterAccessLogServiceServer(s.grpc, s)
	grpc_health_v1.RegisterHealthServer(s.grpc, healthService{s.health, s.stopping})
	s.SetReady(false)
	return s
}

// unixScheme begins an address that is a file.
const unixScheme = "unix:"

// Listen opens the address of Config.Listen. A socket file that a dead process
// left behind is replaced; one that answers is an error.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(address, unixScheme)
	if !isUnix {
		l, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, fmt.Errorf("ext_proc: %w", err)
		}
		return l, nil
	}
	l, err := lc.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(ctx, path) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("ext_proc: replace the socket of a dead process: %w", err)
		}
		l, err = lc.Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("ext_proc: %w", err)
	}
	return l, nil
}

// abandoned reports whether nobody accepts at the socket.
func abandoned(ctx context.Context, path string) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Serve answers on l until Drain, or until l fails. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("ext_proc on %s: %w", l.Addr(), err)
	}
	return nil
}

// Run serves on l until ctx is done, then drains.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ends when Drain stops the server
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainDelay+s.cfg.DrainTimeout)
	defer cancel()
	s.Drain(drain)
	return <-served
}
