package lmcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsttoken/firsttoken/lmcache/zmq"
)

// Controller is what LMCache workers take for their controller. It listens on
// three sockets, follows the protocol in a registry and keeps an Index of what
// each worker reports.
//
// Three goroutines live in Run: one owns the sockets whose messages are answered
// and answers within a millisecond, one owns PULL, where one message may take
// tens of milliseconds to read, and one changes the Index. All methods are safe
// for concurrent use.
type Controller struct {
	cfg     ControllerConfig
	log     *slog.Logger
	metrics *Metrics
	index   *Index
	queue   *changes

	// Each socket and its poller belong to a goroutine of Run, before and after
	// it to NewController and Close.
	context            *zmq.Context
	reports, questions *zmq.Poller
	pull               *zmq.Socket // read by way of reports
	reply, heartbeat   *zmq.Socket // by way of questions; heartbeat is nil where there is none
	addresses          Addresses   // set once
	close              sync.Once

	mu       sync.Mutex // guards the following fields; never held over I/O
	registry *registry
	badLog   throttle

	// generation is the registry's, roster what Instances returned last.
	generation atomic.Uint64
	roster     atomic.Pointer[roster]
}

// Addresses are the "IP:port" that the sockets are bound to. Heartbeat is empty
// where there is none.
type Addresses struct{ Pull, Reply, Heartbeat string }

// turn is how long one socket is read before the others have theirs.
const turn = 200 * time.Microsecond

// maxQuestion is the largest message in bytes on the sockets that answer: all
// others wait while it is read. A lookup of a million tokens takes 40 KB.
const maxQuestion = 1 << 20

// NewController binds the sockets: from here on workers' messages wait for Run
// and are not lost. It ends with Run, or with Close where Run is never called.
func NewController(cfg ControllerConfig, index *Index, log *slog.Logger, metrics *Metrics) (*Controller, error) {
	if err := cfg.Validate("controller"); err != nil {
		return nil, err
	}
	c := &Controller{
		cfg: cfg, log: log, metrics: metrics, index: index,
		queue:    newChanges(queueKeys),
		registry: newRegistry(log, cfg.WorkerTimeout, cfg.SilentAfter),
	}
	c.registry.emit = c.queue.push
	c.registry.match = index.Match
	if err := c.bind(); err != nil {
		c.Close()
		return nil, fmt.Errorf("LMCache controller: %w", err)
	}
	c.registry.heartbeatURL = func(ip string) string {
		if c.addresses.Heartbeat == "" {
			return ""
		}
		url := cfg.advertise(c.addresses.Heartbeat, ip)
		if url == "" {
			log.Warn("no address of ours leads to this LMCache worker; it is told none for heartbeats: set advertise_heartbeat", "ip", ip)
		}
		return url
	}
	return c, nil
}

func (c *Controller) bind() error {
	var err error
	if c.context, err = zmq.NewContext(); err != nil {
		return err
	}
	// Linger: a worker whose answer got lost with us waits 30 s before it asks
	// the next one.
	opts := zmq.Options{RecvHWM: c.cfg.ReceiveQueue, Linger: 250 * time.Millisecond}
	var questions []*zmq.Socket
	for _, s := range []struct {
		name, address string
		kind          zmq.Kind
		socket        **zmq.Socket
		bound         *string
	}{
		// In this order they have their turns: who waits for an answer first.
		{"heartbeat", c.cfg.Heartbeat, zmq.Router, &c.heartbeat, &c.addresses.Heartbeat},
		{"reply", c.cfg.Reply, zmq.Router, &c.reply, &c.addresses.Reply},
		{"pull", c.cfg.Pull, zmq.Pull, &c.pull, &c.addresses.Pull},
	} {
		if s.address == "" {
			continue
		}
		at, err := endpoint(s.address)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		opts.MaxPart = maxQuestion
		if s.kind == zmq.Pull {
			opts.MaxPart = MaxMessage
		}
		if *s.socket, err = c.context.Socket(s.kind, opts); err != nil {
			return err
		}
		bound, err := (*s.socket).Bind(at)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		*s.bound = strings.TrimPrefix(bound, "tcp://")
		if s.kind != zmq.Pull {
			questions = append(questions, *s.socket)
		}
	}
	if c.questions, err = c.context.NewPoller(questions...); err != nil {
		return err
	}
	c.reports, err = c.context.NewPoller(c.pull)
	return err
}

// Close closes the sockets of a controller that will never Run.
func (c *Controller) Close() {
	c.close.Do(func() {
		for _, p := range []*zmq.Poller{c.reports, c.questions} {
			if p != nil {
				_ = p.Close()
			}
		}
		for _, s := range []*zmq.Socket{c.pull, c.reply, c.heartbeat} {
			if s != nil {
				_ = s.Close()
			}
		}
		if c.context != nil {
			_ = c.context.Close()
		}
	})
}

// Addresses are where workers reach the controller.
func (c *Controller) Addresses() Addresses { return c.addresses }

// Run serves until ctx ends, then closes the sockets; it returns nil then. Call
// it once.
func (c *Controller) Run(ctx context.Context) error {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		c.reports.Wake()
		c.questions.Wake()
	})()

	var writer, reader sync.WaitGroup
	done := make(chan struct{})
	writer.Go(func() { c.write(done) })
	var failed error // of the reader, until it has ended
	reader.Go(func() {
		defer cancel()
		failed = c.serve(ctx, c.reports, nil)
	})
	err := c.serve(ctx, c.questions, c.check)
	cancel()
	reader.Wait()
	close(done)
	writer.Wait()
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("LMCache controller: %w", err)
	}
	return nil
}

// serve takes in what comes on the poller's sockets until ctx ends, and calls
// check, where there is one, every CheckInterval.
func (c *Controller) serve(ctx context.Context, poller *zmq.Poller, check func(now time.Time)) error {
	timeout, next := time.Duration(-1), time.Now().Add(c.cfg.CheckInterval)
	for ctx.Err() == nil {
		if check != nil {
			timeout = max(0, time.Until(next))
		}
		ready, err := poller.Poll(timeout)
		if err != nil {
			return err
		}
		for _, s := range ready {
			if err := c.drain(s); err != nil {
				return err
			}
		}
		if now := time.Now(); check != nil && !now.Before(next) {
			next = now.Add(c.cfg.CheckInterval)
			check(now)
		}
	}
	return nil
}

// write changes the Index until done.
func (c *Controller) write(done <-chan struct{}) {
	var batch []change
	var scratch []Key
	for {
		select {
		case <-done:
			return
		case <-c.queue.ready:
		}
		batch = c.queue.take(batch)
		for _, change := range batch {
			scratch = apply(c.index, change, scratch)
			c.queue.done(change)
		}
	}
}

// drain takes in what waits on a socket, for one turn at most.
func (c *Controller) drain(s *zmq.Socket) error {
	for begin := time.Now(); time.Since(begin) < turn; {
		frames, err := s.Recv()
		if errors.Is(err, zmq.ErrAgain) {
			return nil
		}
		if err != nil {
			return err
		}
		if s == c.pull {
			// Each part is a message of its own; a bad one costs only itself.
			for _, part := range frames {
				c.take(part)
			}
		} else {
			c.request(s, frames)
		}
	}
	return nil
}

// take handles a message that nobody waits for an answer to.
func (c *Controller) take(part []byte) {
	m, err := Decode(part)
	if err != nil {
		c.bad(err, "pull")
		return
	}
	c.handle(m, false)
}

// request answers one message. REQ and DEALER clients look the same: the
// message is the last frame, what is before it leads the answer back.
func (c *Controller) request(s *zmq.Socket, frames [][]byte) {
	last := len(frames) - 1
	socket := "reply"
	if s == c.heartbeat {
		socket = "heartbeat"
	}
	m, err := Decode(frames[last])
	var answer Message
	switch {
	case err != nil:
		c.bad(err, socket)
		answer = &ErrorMsg{Error: err.Error()}
		if unknown, ok := errors.AsType[*UnknownTypeError](err); ok {
			answer = unknownType(unknown.Class)
		}
	case s == c.heartbeat && m.Type() != "HeartbeatMsg":
		c.metrics.message(m.Type())
		answer = &ErrorMsg{Error: "Expected HeartbeatMsg, got " + m.Type()}
	default:
		answer = c.handle(m, true)
	}
	frames[last] = answer.Append(nil)
	if err := s.Send(frames...); err != nil {
		c.metrics.unanswered.Inc()
		c.log.Debug("answer not sent", "type", answer.Type(), "error", err)
	}
}

func (c *Controller) handle(m Message, answers bool) Message {
	now := time.Now()
	c.metrics.message(m.Type())
	c.metrics.lastMessage.Store(now.UnixNano())
	c.mu.Lock()
	defer c.unlock()
	return c.registry.handle(now, m, answers)
}

// unlock lets go of mu after the registry may have changed.
func (c *Controller) unlock() {
	c.generation.Store(c.registry.generation)
	c.mu.Unlock()
}

// bad counts a message that could not be read.
func (c *Controller) bad(err error, socket string) {
	c.metrics.bad.WithLabelValues(socket).Inc()
	c.mu.Lock()
	tell := c.badLog.allow(time.Now())
	c.mu.Unlock()
	if tell {
		c.log.Warn("a message could not be read; it is skipped", "socket", socket, "error", err)
	}
}

// check runs every CheckInterval.
func (c *Controller) check(now time.Time) {
	c.mu.Lock()
	c.registry.check(now)
	counts, workers, silent := c.registry.counts.clone(), len(c.registry.workers), c.registry.silent()
	c.unlock()
	c.metrics.update(counts, workers, silent, c.queue.depth(), c.index.Stats())
}

// DropInstance forgets an instance and all its keys: its endpoint was removed.
// What its workers report afterwards counts anew.
func (c *Controller) DropInstance(name string) {
	c.mu.Lock()
	defer c.unlock()
	c.registry.dropInstance(time.Now(), name, droppedEndpoint)
}

// Claim implements Roster.
func (c *Controller) Claim(generation uint64, instances map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.registry.claim(generation, instances)
}

// throttle lets one log line through in logPeriod. Not safe for concurrent use.
type throttle struct{ next time.Time }

const logPeriod = 10 * time.Second

func (t *throttle) allow(now time.Time) bool {
	if now.Before(t.next) {
		return false
	}
	t.next = now.Add(logPeriod)
	return true
}
