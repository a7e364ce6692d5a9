package kvevents

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/scoring"
)

const (
	// defaultReplayTimeout is ample: an engine looks for questions at least
	// every 0.1 s.
	defaultReplayTimeout = 5 * time.Second
	// retryInterval is the time after which a socket that could not be opened
	// is tried again.
	retryInterval = 5 * time.Second
	// queueMessages is how many messages ZeroMQ keeps for us per engine before
	// the engine drops them: what vLLM keeps for its subscribers by default.
	queueMessages = 100_000
	// maxMessage is the largest part of a message in bytes; an engine that sends
	// more is disconnected. A step of a million tokens is some five megabytes.
	maxMessage = 64 << 20
	// turnMessages is how many messages of one socket are taken before the
	// others get their turn.
	turnMessages = 256
)

// Subscriber follows the events of all engines that publish any, and answers
// as scoring.CacheIndex what they hold. Safe for concurrent use.
//
// One goroutine, Run, owns all sockets and is the only writer of what is known.
type Subscriber struct {
	log     *slog.Logger // set once
	index   *index       // set once
	context *zmq.Context // set once
	poller  *zmq.Poller  // Run's, but for Wake
	// replayTimeout is how long an engine may take for the next answer of a
	// replay; set before Run.
	replayTimeout time.Duration
	closed        sync.Once
	batch         batch // Run's
	// listeners and replays find whose message a socket has; Run's.
	listeners map[*zmq.Socket]*listener
	replays   map[*zmq.Socket]*tap

	mu sync.Mutex // guards the following fields
	// wanted are the endpoints to follow; stale says that Run has not seen them.
	wanted []scoring.Endpoint
	stale  bool
	// taps are what is followed; only Run changes them.
	taps []*tap
	// strays counts messages under a topic that is no endpoint's.
	strays uint64
}

// tap is one rank of one endpoint.
type tap struct {
	endpoint    scoring.Endpoint // set once
	rank        int              // set once
	live, after string           // addresses of events and replay; set once
	stream      stream           // Run's

	listener *listener // Run's; nil while it cannot be opened
	retry    time.Time // Run's: when to try that again

	// The following are Run's: the running replay, its socket, and when it has
	// taken too long.
	replay   *replay
	socket   *zmq.Socket
	deadline time.Time

	// The following are guarded by Subscriber.mu.
	bound string // where we listen, with the real port; empty: we connect
	fault string // why there is no socket
}

// listener is one SUB socket. One that connects has one tap. One that binds may
// have several engines, which are told apart by their topics.
type listener struct {
	socket *zmq.Socket
	bound  string // as configured; empty: it connects
	actual string
	taps   []*tap
}

// New makes a Subscriber that follows nobody yet. ErrNoZMQ says that this
// build cannot. End it by Run's context, or by Close where Run was never
// called.
func New(cfg Config, log *slog.Logger) (*Subscriber, error) {
	ctx, err := zmq.NewContext()
	if err != nil {
		return nil, err
	}
	poller, err := ctx.NewPoller()
	if err != nil {
		return nil, errors.Join(err, ctx.Close())
	}
	return &Subscriber{
		log: log, index: newIndex(cfg), context: ctx, poller: poller, replayTimeout: defaultReplayTimeout,
		listeners: make(map[*zmq.Socket]*listener), replays: make(map[*zmq.Socket]*tap),
	}, nil
}

// Close frees the sockets of a Subscriber whose Run was not called. After Run
// it does nothing.
func (s *Subscriber) Close() {
	s.closed.Do(func() {
		_ = s.poller.Close()
		_ = s.context.Close()
	})
}

// SetEndpoints tells which endpoints there are; those that publish events are
// followed from then on, and what those that are gone held is forgotten. It
// does not wait for either.
func (s *Subscriber) SetEndpoints(endpoints []scoring.Endpoint) {
	s.mu.Lock()
	s.wanted, s.stale = slices.Clone(endpoints), true
	s.mu.Unlock()
	s.poller.Wake()
}

// Match implements scoring.CacheIndex. It waits at most for the writing of some
// tens of blocks.
func (s *Subscriber) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	return s.index.match(p, endpoints)
}

// Run follows the engines until ctx ends, then frees all sockets. Call it once.
func (s *Subscriber) Run(ctx context.Context) error {
	defer s.Close()
	defer s.follow(time.Time{}, nil)
	defer context.AfterFunc(ctx, s.poller.Wake)()
	for ctx.Err() == nil {
		now := time.Now()
		s.adopt(now)
		s.tend(now)
		ready, err := s.poller.Poll(s.wait(now))
		if err != nil {
			return fmt.Errorf("kv events: %w", err)
		}
		now = time.Now()
		for _, socket := range ready {
			s.drain(socket, now)
		}
	}
	return nil
}

// adopt follows the endpoints that SetEndpoints named last.
func (s *Subscriber) adopt(now time.Time) {
	s.mu.Lock()
	wanted, stale := s.wanted, s.stale
	s.stale = false
	s.mu.Unlock()
	if stale {
		s.follow(now, wanted)
	}
}

// follow opens taps for endpoints that are new, and closes those of endpoints
// that are gone or publish elsewhere now.
func (s *Subscriber) follow(now time.Time, endpoints []scoring.Endpoint) {
	present := make(map[scoring.EndpointID]scoring.Endpoint, len(endpoints))
	for _, e := range endpoints {
		if e.Cache.Events.Endpoint != "" {
			present[e.ID] = e
		}
	}
	var kept []*tap
	followed := make(map[scoring.EndpointID]bool)
	for _, t := range s.taps {
		if e, ok := present[t.endpoint.ID]; ok && e.Cache.Events == t.endpoint.Cache.Events && e.Address == t.endpoint.Address {
			kept = append(kept, t)
			followed[e.ID] = true
			continue
		}
		s.closeTap(t)
		s.index.close(t.endpoint.ID)
	}
	var added []*tap
	for _, e := range endpoints {
		if _, ok := present[e.ID]; ok && !followed[e.ID] {
			followed[e.ID] = true
			added = append(added, s.newTaps(e)...)
		}
	}
	s.mu.Lock()
	s.taps = append(kept, added...)
	s.mu.Unlock()
	for _, t := range added {
		s.openTap(t, now)
	}
}

// newTaps makes the taps of an endpoint's ranks.
func (s *Subscriber) newTaps(e scoring.Endpoint) []*tap {
	var taps []*tap
	for r, v := range s.index.open(e.ID, e.Cache.Events) {
		t := &tap{endpoint: e, rank: r}
		t.stream = stream{view: v, batch: &s.batch}
		var err error
		if t.live, t.after, err = addresses(e, r); err != nil {
			t.fault = err.Error()
		}
		t.stream.replayable = t.after != ""
		taps = append(taps, t)
	}
	return taps
}

// openTap opens the tap's socket, or shares the one that listens there
// already. What fails is tried again later.
func (s *Subscriber) openTap(t *tap, now time.Time) {
	l, err := s.listen(t)
	fault := ""
	if err != nil {
		fault = err.Error()
		t.retry = now.Add(retryInterval)
		s.log.Warn("cannot listen for KV events; trying again", "endpoint", t.endpoint.Name, "rank", t.rank, "address", t.live, "err", err)
	}
	s.mu.Lock()
	t.fault = fault
	if l != nil {
		t.bound = l.actual
	}
	s.mu.Unlock()
	if l == nil {
		return
	}
	t.listener = l
	l.taps = append(l.taps, t)
	t.stream.begin()
	s.chase(t, now)
}

func (s *Subscriber) listen(t *tap) (*listener, error) {
	feed := t.endpoint.Cache.Events
	if t.live == "" {
		_, _, err := addresses(t.endpoint, t.rank)
		return nil, err
	}
	if feed.Bind {
		for _, l := range s.listeners {
			if l.bound == t.live {
				return l, nil
			}
		}
	}
	topic := feed.Topic
	if feed.Bind {
		topic = "" // Other endpoints may share the socket.
	}
	socket, err := s.context.Socket(zmq.Sub, zmq.Options{RecvHWM: queueMessages, MaxPart: maxMessage, Topics: []string{topic}})
	if err != nil {
		return nil, err
	}
	l := &listener{socket: socket}
	if feed.Bind {
		l.bound = t.live
		l.actual, err = socket.Bind(t.live)
	} else {
		err = socket.Connect(t.live)
	}
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	s.listeners[socket] = l
	s.poller.Add(socket)
	return l, nil
}

func (s *Subscriber) closeTap(t *tap) {
	s.closeReplay(t)
	l := t.listener
	if l == nil {
		return
	}
	t.listener = nil
	l.taps = slices.DeleteFunc(l.taps, func(other *tap) bool { return other == t })
	if len(l.taps) == 0 {
		s.poller.Remove(l.socket)
		delete(s.listeners, l.socket)
		_ = l.socket.Close()
	}
}

// tend does what time asks for: replays that take too long, sockets to be tried
// again.
func (s *Subscriber) tend(now time.Time) {
	for _, t := range s.taps {
		switch {
		case t.listener == nil && !now.Before(t.retry):
			s.openTap(t, now)
		case t.replay != nil && !now.Before(t.deadline):
			s.log.Warn("KV events replay timed out", "endpoint", t.endpoint.Name, "rank", t.rank, "address", t.after)
			t.stream.replayFailed(now)
			s.chase(t, now)
		}
	}
}

// wait is the time until tend has something to do; negative: for ever.
func (s *Subscriber) wait(now time.Time) time.Duration {
	wait := time.Duration(-1)
	for _, t := range s.taps {
		var due time.Time
		switch {
		case t.listener == nil:
			due = t.retry
		case t.replay != nil:
			due = t.deadline
		default:
			continue
		}
		if d := max(0, due.Sub(now)); wait < 0 || d < wait {
			wait = d
		}
	}
	return wait
}

// drain takes what a socket has, up to its turn.
func (s *Subscriber) drain(socket *zmq.Socket, now time.Time) {
	for range turnMessages {
		// Each message may end the socket: a replay, by its last answer.
		l, t := s.listeners[socket], s.replays[socket]
		if l == nil && t == nil {
			return
		}
		frames, err := socket.Recv()
		if err != nil {
			if !errors.Is(err, zmq.ErrAgain) {
				s.log.Warn("cannot receive KV events", "err", err)
			}
			return
		}
		if l != nil {
			s.message(l, frames, now)
		} else {
			s.answer(t, frames, now)
		}
	}
}

// message takes one live message.
func (s *Subscriber) message(l *listener, frames [][]byte, now time.Time) {
	t := l.find(frames[0])
	if t == nil {
		s.mu.Lock()
		s.strays++
		s.mu.Unlock()
		return
	}
	m, ok := liveFrames(frames)
	if !ok {
		t.stream.view.note(func(a *account) { a.badFrames++ })
		return
	}
	t.stream.message(now, m)
	s.chase(t, now)
}

// find is whose messages come under the topic: who asked for it by name, else
// who takes anything.
func (l *listener) find(topic []byte) *tap {
	var found *tap
	for _, t := range l.taps {
		switch t.endpoint.Cache.Events.Topic {
		case string(topic):
			return t
		case "":
			found = t
		}
	}
	return found
}

// answer takes one message of a replay.
func (s *Subscriber) answer(t *tap, frames [][]byte, now time.Time) {
	switch seq, payload, ok := replayFrames(frames); {
	case !ok:
		t.stream.view.note(func(a *account) { a.badFrames++ })
	case seq == endSequence:
		t.stream.replayed(now)
	default:
		t.deadline = now.Add(s.replayTimeout)
		t.stream.answer(now, seq, payload)
	}
	s.chase(t, now)
}

// chase lets the sockets follow the stream: it opens one for a new replay and
// closes that of one that is over. Each replay has its own, so that a late
// answer can reach nobody.
func (s *Subscriber) chase(t *tap, now time.Time) {
	if t.stream.asked == t.replay {
		return
	}
	s.closeReplay(t)
	if t.replay = t.stream.asked; t.replay == nil {
		return
	}
	t.deadline = now.Add(s.replayTimeout)
	if err := s.openReplay(t); err != nil {
		s.log.Warn("cannot ask for missed KV events", "endpoint", t.endpoint.Name, "rank", t.rank, "address", t.after, "err", err)
		t.deadline = now // tend gives up on it.
	}
}

func (s *Subscriber) openReplay(t *tap) error {
	socket, err := s.context.Socket(zmq.Dealer, zmq.Options{RecvHWM: queueMessages, MaxPart: maxMessage})
	if err != nil {
		return err
	}
	var from [8]byte
	binary.BigEndian.PutUint64(from[:], t.replay.from)
	if err := errors.Join(socket.Connect(t.after), socket.Send(nil, from[:])); err != nil {
		return errors.Join(err, socket.Close())
	}
	t.socket = socket
	s.replays[socket] = t
	s.poller.Add(socket)
	return nil
}

func (s *Subscriber) closeReplay(t *tap) {
	t.replay = nil
	if t.socket == nil {
		return
	}
	s.poller.Remove(t.socket)
	delete(s.replays, t.socket)
	_ = t.socket.Close()
	t.socket = nil
}
