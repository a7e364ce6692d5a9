//go:build cgo && !nozmq

package zmq

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	zmq4 "github.com/pebbe/zmq4"
)

var kinds = map[Kind]zmq4.Type{
	Pull: zmq4.PULL, Push: zmq4.PUSH, Router: zmq4.ROUTER, Dealer: zmq4.DEALER,
	Req: zmq4.REQ, Rep: zmq4.REP, Pub: zmq4.PUB, XPub: zmq4.XPUB, Sub: zmq4.SUB,
}

// Context owns the I/O thread that its sockets share. Safe for concurrent use.
type Context struct {
	ctx *zmq4.Context
	// wakers numbers the inproc addresses of pollers.
	wakers atomic.Int64
}

// NewContext starts a context. Close it after all its sockets and pollers.
func NewContext() (*Context, error) {
	ctx, err := zmq4.NewContext()
	if err != nil {
		return nil, fmt.Errorf("zmq context: %w", err)
	}
	return &Context{ctx: ctx}, nil
}

// Close ends the context. It blocks until every socket is closed and its
// Linger has passed.
func (c *Context) Close() error { return c.ctx.Term() }

// Socket sends and receives messages, each a list of frames. It belongs to one
// goroutine at a time.
type Socket struct {
	soc *zmq4.Socket
}

// Socket opens a socket. Close it before the context.
func (c *Context) Socket(kind Kind, opts Options) (*Socket, error) {
	soc, err := c.ctx.NewSocket(kinds[kind])
	if err != nil {
		return nil, fmt.Errorf("zmq %s: %w", kind, err)
	}
	errs := []error{
		soc.SetLinger(opts.Linger),
		// A peer whose machine vanished never closes its connection; keepalive
		// frees the file descriptor.
		soc.SetTcpKeepalive(1),
		soc.SetTcpKeepaliveIdle(60),
	}
	if opts.RecvHWM > 0 {
		errs = append(errs, soc.SetRcvhwm(opts.RecvHWM))
	}
	if opts.SendHWM > 0 {
		errs = append(errs, soc.SetSndhwm(opts.SendHWM))
	}
	if opts.MaxPart > 0 {
		errs = append(errs, soc.SetMaxmsgsize(opts.MaxPart))
	}
	if kind == Router {
		// Handover: a client that reconnects under its old identity takes the
		// place of its dead connection instead of being refused. Mandatory: a
		// reply to a peer that is gone is an error that can be counted.
		errs = append(errs, soc.SetRouterHandover(true), soc.SetRouterMandatory(1))
	}
	for _, topic := range opts.Topics {
		errs = append(errs, soc.SetSubscribe(topic))
	}
	if err := errors.Join(errs...); err != nil {
		_ = soc.Close()
		return nil, fmt.Errorf("zmq %s: set options: %w", kind, err)
	}
	return &Socket{soc: soc}, nil
}

// Bind listens on endpoint ("tcp://127.0.0.1:0", "tcp://*:8300",
// "inproc://name") and returns the address bound, with the real port.
func (s *Socket) Bind(endpoint string) (string, error) {
	if err := s.prepare(endpoint); err != nil {
		return "", err
	}
	if err := s.soc.Bind(endpoint); err != nil {
		return "", fmt.Errorf("zmq bind %s: %w", endpoint, err)
	}
	address, err := s.soc.GetLastEndpoint()
	if err != nil {
		return "", fmt.Errorf("zmq bind %s: %w", endpoint, err)
	}
	return address, nil
}

// Connect dials endpoint in the background, again and again while the peer is
// away.
func (s *Socket) Connect(endpoint string) error {
	if err := s.prepare(endpoint); err != nil {
		return err
	}
	if err := s.soc.Connect(endpoint); err != nil {
		return fmt.Errorf("zmq connect %s: %w", endpoint, err)
	}
	return nil
}

func (s *Socket) prepare(endpoint string) error {
	// Only where it is asked for: with IPv6 on, "*" means [::], which fails on
	// hosts that have it compiled in but switched off.
	if !strings.Contains(endpoint, "[") {
		return nil
	}
	if err := s.soc.SetIpv6(true); err != nil {
		return fmt.Errorf("zmq %s: %w", endpoint, err)
	}
	return nil
}

// Recv returns the next message without waiting; ErrAgain where there is none.
// The caller owns the frames.
func (s *Socket) Recv() ([][]byte, error) {
	frames, err := s.soc.RecvMessageBytes(zmq4.DONTWAIT)
	if err != nil {
		return nil, translate("recv", err)
	}
	return frames, nil
}

// Send queues one message without waiting. ErrAgain: the peer's queue is full,
// or a Push or Dealer has no peer yet. ErrUnreachable: the Router's peer is
// gone. The frames are copied.
func (s *Socket) Send(frames ...[]byte) error {
	for i, frame := range frames {
		flags := zmq4.DONTWAIT
		if i < len(frames)-1 {
			flags |= zmq4.SNDMORE
		}
		if _, err := s.soc.SendBytes(frame, flags); err != nil {
			return translate("send", err)
		}
	}
	return nil
}

// Close closes the socket. What is queued is delivered for Linger.
func (s *Socket) Close() error { return s.soc.Close() }

func translate(op string, err error) error {
	switch zmq4.AsErrno(err) {
	case zmq4.Errno(syscall.EAGAIN):
		return ErrAgain
	case zmq4.Errno(syscall.EHOSTUNREACH):
		return ErrUnreachable
	default:
		return fmt.Errorf("zmq %s: %w", op, err)
	}
}

// Poller waits for messages on several sockets. All methods but Wake belong to
// the goroutine that owns the sockets.
type Poller struct {
	// poller waits on inner first, then on sockets in their order.
	poller  *zmq4.Poller
	sockets []*Socket
	inner   *zmq4.Socket

	// mu guards outer, which any goroutine may send on.
	mu    sync.Mutex
	outer *zmq4.Socket // nil once closed
	// pending: a wake-up is on its way; more would only fill the pipe.
	pending atomic.Bool
}

// NewPoller waits on sockets, all of this context. Close it before them.
func (c *Context) NewPoller(sockets ...*Socket) (*Poller, error) {
	p := &Poller{poller: zmq4.NewPoller(), sockets: slices.Clone(sockets)}
	name := fmt.Sprintf("inproc://waker-%d", c.wakers.Add(1))
	var err error
	if p.inner, err = c.ctx.NewSocket(zmq4.PAIR); err != nil {
		return nil, fmt.Errorf("zmq poller: %w", err)
	}
	if p.outer, err = c.ctx.NewSocket(zmq4.PAIR); err != nil {
		_ = p.inner.Close()
		return nil, fmt.Errorf("zmq poller: %w", err)
	}
	if err := errors.Join(p.inner.SetLinger(0), p.outer.SetLinger(0), p.inner.Bind(name), p.outer.Connect(name)); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("zmq poller: %w", err)
	}
	p.poller.Add(p.inner, zmq4.POLLIN)
	for _, s := range p.sockets {
		p.poller.Add(s.soc, zmq4.POLLIN)
	}
	return p, nil
}

// Add waits on one more socket of this context from the next Poll on.
func (p *Poller) Add(s *Socket) {
	p.sockets = append(p.sockets, s)
	p.poller.Add(s.soc, zmq4.POLLIN)
}

// Remove waits on s no longer; a socket must be removed before it is closed. One
// that is not waited on is ignored.
func (p *Poller) Remove(s *Socket) {
	i := slices.Index(p.sockets, s)
	if i < 0 {
		return
	}
	p.sockets = slices.Delete(p.sockets, i, i+1)
	_ = p.poller.Remove(i + 1) // The only error is an index out of range.
}

// Poll waits until a socket has a message, Wake is called or the timeout has
// passed (negative: never), and returns the sockets that can Recv.
func (p *Poller) Poll(timeout time.Duration) ([]*Socket, error) {
	if timeout > 0 {
		// libzmq counts in milliseconds; rounding down would spin.
		timeout = (timeout + time.Millisecond - 1).Truncate(time.Millisecond)
	}
	polled, err := p.poller.PollAll(timeout)
	if err != nil {
		return nil, fmt.Errorf("zmq poll: %w", err)
	}
	var ready []*Socket
	for i, item := range polled {
		if item.Events&zmq4.POLLIN == 0 {
			continue
		}
		if i > 0 {
			ready = append(ready, p.sockets[i-1])
			continue
		}
		_, err := p.inner.RecvBytes(zmq4.DONTWAIT)
		// After the receive: a Wake from here on sends anew. One that came
		// before is answered by this very return.
		p.pending.Store(false)
		if err != nil && !errors.Is(translate("", err), ErrAgain) {
			return nil, fmt.Errorf("zmq poll: %w", err)
		}
	}
	return ready, nil
}

// Wake makes the running or next Poll return at once. It never blocks, and is
// safe for concurrent use, also after Close.
func (p *Poller) Wake() {
	if p.pending.Swap(true) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.outer != nil {
		_, _ = p.outer.SendBytes([]byte{0}, zmq4.DONTWAIT)
	}
}

// Close ends the poller; the sockets stay open.
func (p *Poller) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.outer == nil {
		return nil
	}
	err := errors.Join(p.outer.Close(), p.inner.Close())
	p.outer = nil
	return err
}
