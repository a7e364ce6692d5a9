package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/simulator"
)

// LMCacheConfig makes the engine report to an LMCache controller. Without Pull
// the engine has no LMCache, and no tier behind its KV memory.
type LMCacheConfig struct {
	// Pull and Reply are the controller's addresses, host:port.
	Pull, Reply string
	// Instance is the instance id; empty: the engine's first model name and a
	// random suffix.
	Instance string
	// WorkerPort is the port that is registered as the worker's own. Nothing
	// listens there.
	WorkerPort int
	// Heartbeat is the time between heartbeats, which are sent if the controller
	// wants any; 0: none.
	Heartbeat time.Duration
	// Keys decides how chunks are named; empty fields are LMCache's defaults.
	Keys lmcache.KeyGroup
	// Tokens is the size of the tier; 0: the profile's.
	Tokens int
}

// complete fills in what follows from the rest.
func (c LMCacheConfig) complete(model string, p simulator.Profile) LMCacheConfig {
	if c.Instance == "" {
		c.Instance = model + "-" + randomHex(4)
	}
	if c.Tokens == 0 {
		c.Tokens = p.HostTokens
	}
	c.Keys = c.Keys.Or(lmcache.DefaultKeyGroup())
	return c
}

// validate joins all faults of a complete configuration.
func (c LMCacheConfig) validate(path string) error {
	var faults []error
	for flag, address := range map[string]string{"pull": c.Pull, "reply": c.Reply} {
		if _, _, err := net.SplitHostPort(address); err != nil {
			faults = append(faults, fmt.Errorf("%slmcache-controller-%s: %q is no host:port: %w", path, flag, address, err))
		}
	}
	if c.Heartbeat < 0 {
		faults = append(faults, fmt.Errorf("%slmcache-heartbeat: is %s; write a duration, or 0 for none", path, c.Heartbeat))
	}
	if err := c.Keys.Validate(path + "lmcache"); err != nil {
		faults = append(faults, err)
	}
	if c.Tokens < c.Keys.ChunkSize {
		faults = append(faults, fmt.Errorf("%slmcache-tokens: is %d; write at least one chunk of %d tokens", path, c.Tokens, c.Keys.ChunkSize))
	}
	return errors.Join(faults...)
}

// Sizes and times of LMCache's own worker, but for statusEvery (there 5 s, for
// which a stand-in need not keep its tier frozen) and registerAgain (it gives up
// for ever).
const (
	flushAfter    = 10 * time.Millisecond
	flushOps      = 50
	syncBatch     = 2000 // keys
	startAgain    = time.Second
	startTries    = 3
	statusEvery   = 200 * time.Millisecond
	statusTries   = 60
	resendTries   = 3
	registerAgain = 30 * time.Second
	// pushAgain is when a push that found no room is tried again.
	pushAgain = 100 * time.Millisecond
	// maxQueued bounds the operations that wait for a controller; further ones
	// are lost, which the controller sees by their sequence numbers.
	maxQueued = 1 << 20
)

// worker is the engine's LMCache worker: rank 0 of an instance that keeps chunks
// in host memory, talking to a controller of era D (LMCache 0.3.12 to 0.5.6).
// One goroutine, in run, owns everything that is not said to be guarded.
type worker struct {
	cfg    LMCacheConfig
	log    *slog.Logger
	loop   *loop
	id     lmcache.WorkerID
	ip     string
	hasher *lmcache.Hasher
	wire   func(lmcache.Key) lmcache.WireKey

	context           *zmq.Context
	push, reply, beat *zmq.Socket
	poller            *zmq.Poller // Wake may be called by anyone

	registered bool
	beating    bool      // beat is connected
	nextCall   time.Time // next try to register, or the next heartbeat
	outbox     [][]byte  // what comes before everything queued
	sync       *fullSync // nil: none under way

	mu     sync.Mutex // guards the following
	queue  []lmcache.KVOp
	since  time.Time // when the first of queue came
	seq    int64
	missed int // operations lost since the last message
}

// newWorker opens the sockets; run has to be called to close them.
func newWorker(cfg LMCacheConfig, hasher *lmcache.Hasher, l *loop, log *slog.Logger) (*worker, error) {
	w := &worker{
		cfg: cfg, log: log, loop: l, hasher: hasher, wire: lmcache.UnsignedKey,
		id: lmcache.WorkerID{Instance: cfg.Instance}, ip: outboundIP(cfg.Reply),
	}
	if cfg.Keys.Algorithm == "builtin" {
		w.wire = lmcache.SignedKey
	}
	if err := w.open(); err != nil {
		w.close()
		return nil, fmt.Errorf("LMCache worker: %w", err)
	}
	return w, nil
}

func (w *worker) open() (err error) {
	if w.context, err = zmq.NewContext(); err != nil {
		return err
	}
	for _, s := range []struct {
		socket **zmq.Socket
		kind   zmq.Kind
	}{{&w.push, zmq.Push}, {&w.reply, zmq.Dealer}, {&w.beat, zmq.Dealer}} {
		if *s.socket, err = w.context.Socket(s.kind, zmq.Options{}); err != nil {
			return err
		}
	}
	if err := errors.Join(w.push.Connect("tcp://"+w.cfg.Pull), w.reply.Connect("tcp://"+w.cfg.Reply)); err != nil {
		return err
	}
	w.poller, err = w.context.NewPoller(w.reply, w.beat)
	return err
}

func (w *worker) close() {
	if w.poller != nil {
		_ = w.poller.Close()
	}
	for _, s := range []*zmq.Socket{w.push, w.reply, w.beat} {
		if s != nil {
			_ = s.Close()
		}
	}
	if w.context != nil {
		_ = w.context.Close()
	}
}

// outboundIP is the address of ours from which the controller is reached.
func outboundIP(controller string) string {
	c, err := net.Dial("udp", controller) //nolint:noctx // sends nothing
	if err != nil {
		return "127.0.0.1"
	}
	defer c.Close()
	host, _, _ := net.SplitHostPort(c.LocalAddr().String())
	return host
}

// report queues what changed in the host tier. It does not block.
func (w *worker) report(changes []simulator.HostChange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		w.since = time.Now()
	}
	for _, c := range changes {
		if len(w.queue) < maxQueued {
			w.queue = append(w.queue, lmcache.KVOp{Key: w.wire(lmcache.Key(c.Key)), Seq: w.seq, Evict: c.Evicted})
		} else {
			w.missed++
		}
		w.seq++
	}
	w.poller.Wake()
}

// run talks to the controller until ctx ends, then closes the sockets. Like
// LMCache's worker it does not say goodbye.
func (w *worker) run(ctx context.Context) {
	defer w.close()
	defer context.AfterFunc(ctx, w.poller.Wake)()
	for ctx.Err() == nil {
		wait := w.act(time.Now())
		ready, err := w.poller.Poll(wait)
		if err != nil {
			w.log.Error("LMCache worker stopped", "error", err)
			return
		}
		for _, s := range ready {
			w.receive(s, time.Now())
		}
	}
}

// act does what is due and tells how long nothing will be, unless something
// comes; negative: for ever.
func (w *worker) act(now time.Time) time.Duration {
	wait := time.Duration(-1)
	until := func(d time.Duration) {
		if wait < 0 || d < wait {
			wait = max(0, d)
		}
	}
	if !w.registered || w.beating {
		if !now.Before(w.nextCall) {
			w.call(now)
		}
		until(w.nextCall.Sub(now))
	}
	if w.registered {
		w.pack(now, until)
		if !w.flush() {
			until(pushAgain)
		}
	}
	if w.sync != nil {
		until(w.sync.act(w, now))
	}
	return wait
}

// call registers, or sends a heartbeat.
func (w *worker) call(now time.Time) {
	r := lmcache.Registration{Worker: w.id, IP: w.ip, Port: w.cfg.WorkerPort}
	if w.registered {
		w.nextCall = now.Add(w.cfg.Heartbeat)
		w.ask(w.beat, &lmcache.HeartbeatMsg{Registration: r})
		return
	}
	w.nextCall = now.Add(registerAgain)
	w.ask(w.reply, &lmcache.RegisterMsg{Registration: r})
}

// ask sends a request; who does not get it cannot answer, and we ask again.
func (w *worker) ask(s *zmq.Socket, m lmcache.Message) {
	if err := s.Send(nil, m.Append(nil)); err != nil && !errors.Is(err, zmq.ErrAgain) {
		w.log.Warn("LMCache request not sent", "type", m.Type(), "error", err)
	}
}

// pack makes messages of the queue when it is old or long enough.
func (w *worker) pack(now time.Time, until func(time.Duration)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 || len(w.outbox) > 0 {
		return
	}
	if age := now.Sub(w.since); age < flushAfter && len(w.queue) < flushOps {
		until(flushAfter - age)
		return
	}
	for ops := w.queue; len(ops) > 0; {
		n := min(len(ops), flushOps)
		m := lmcache.BatchedKVOperationMsg{Worker: w.id, Location: lmcache.LocationCPU, Operations: ops[:n]}
		w.outbox = append(w.outbox, m.Append(nil))
		ops = ops[n:]
	}
	w.queue = w.queue[:0]
	if w.missed > 0 {
		w.log.Warn("LMCache reports lost, the controller does not take them", "operations", w.missed)
		w.missed = 0
	}
}

// flush sends the outbox; false: there is no room now.
func (w *worker) flush() bool {
	for len(w.outbox) > 0 {
		err := w.push.Send(w.outbox[0])
		if errors.Is(err, zmq.ErrAgain) {
			return false
		}
		if err != nil {
			w.log.Warn("LMCache report not sent", "error", err)
		}
		w.outbox[0] = nil
		w.outbox = w.outbox[1:]
	}
	w.outbox = nil
	return true
}

// receive handles the answers that wait on a socket.
func (w *worker) receive(s *zmq.Socket, now time.Time) {
	for {
		frames, err := s.Recv()
		if err != nil {
			return // nothing more
		}
		m, err := lmcache.Decode(frames[len(frames)-1])
		if err != nil {
			w.log.Warn("LMCache controller answered what is not a message", "error", err)
			continue
		}
		switch m := m.(type) {
		case *lmcache.RegisterRetMsg:
			w.welcome(m, now)
		case *lmcache.HeartbeatRetMsg:
			for _, c := range m.Commands {
				if c.Type == lmcache.CommandFullSync && w.sync == nil {
					w.sync = newFullSync(w, now, c.Reason)
				}
			}
		case *lmcache.FullSyncStartRetMsg:
			w.sync.started(w, m, now)
		case *lmcache.FullSyncStatusRetMsg:
			w.sync.status(w, m)
		case *lmcache.ErrorMsg:
			w.log.Warn("LMCache controller refused", "reason", m.Error)
		default:
			w.log.Warn("LMCache controller sent what is no answer", "type", m.Type())
		}
	}
}

// welcome begins to report, and to send heartbeats where they are wanted.
func (w *worker) welcome(m *lmcache.RegisterRetMsg, now time.Time) {
	if w.registered {
		return
	}
	w.registered = true
	url := m.ExtraConfig["heartbeat_url"]
	if url == "" || w.cfg.Heartbeat <= 0 {
		return
	}
	if err := w.beat.Connect("tcp://" + strings.TrimPrefix(url, "tcp://")); err != nil {
		w.log.Warn("LMCache heartbeats impossible", "error", err)
		return
	}
	w.beating, w.nextCall = true, now.Add(w.cfg.Heartbeat)
}
