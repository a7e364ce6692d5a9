package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/simulator"
)

// EventsConfig makes the engine publish its KV events as vLLM does with
// --kv-events-config. Without Endpoint it publishes none.
type EventsConfig struct {
	// Endpoint is the ZeroMQ address, tcp://host:port. With * or :: in it the
	// engine binds; otherwise it connects.
	Endpoint string
	// Replay is the address of the socket that repeats what was published, which
	// is always bound; empty: nothing is repeated.
	Replay string
	// Topic is what subscribers can choose by.
	Topic string
	// BufferSteps is how many messages are kept for Replay.
	BufferSteps int
	// VLLMVersion is the release whose wire form is published: arrays before
	// 0.24, maps since; replies of Replay without the topic before 0.26.
	VLLMVersion string
	// BytesHashes: blocks are named by digests of 32 bytes instead of integers,
	// as with VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0.
	BytesHashes bool
	// StoreOnly: what is stored is told and what goes is not, as by engines
	// whose publisher has no removals.
	StoreOnly bool
}

// DefaultEventsConfig publishes nothing; what else it says are vLLM's defaults.
func DefaultEventsConfig() EventsConfig {
	return EventsConfig{BufferSteps: 10_000, VLLMVersion: Version}
}

func (c EventsConfig) validate(path string) error {
	var faults []error
	for flag, address := range map[string]string{"endpoint": c.Endpoint, "replay-endpoint": c.Replay} {
		if address != "" && !strings.HasPrefix(address, "tcp://") {
			faults = append(faults, fmt.Errorf("%skv-events-%s: %q is no address; write such as tcp://*:5557", path, flag, address))
		}
	}
	if c.Endpoint == "" && c.Replay != "" {
		faults = append(faults, fmt.Errorf("%skv-events-endpoint: is missing; without it there is nothing to repeat at %s", path, c.Replay))
	}
	if c.BufferSteps < 1 {
		faults = append(faults, fmt.Errorf("%skv-events-buffer-steps: is %d; write 1 or more", path, c.BufferSteps))
	}
	if _, err := parseRelease(c.VLLMVersion); err != nil {
		faults = append(faults, fmt.Errorf("%skv-events-vllm-version: %w", path, err))
	}
	return errors.Join(faults...)
}

// Bounds as vLLM has them.
const (
	// eventsHWM is how many messages wait for one subscriber before further
	// ones are lost to it.
	eventsHWM = 100_000
	// maxUnpublished bounds the messages on their way to the socket.
	maxUnpublished = 100_000
)

// publisher sends what changes in the prefix cache. One goroutine, in run, owns
// everything that is not said to be guarded.
type publisher struct {
	cfg  EventsConfig
	form eventForm
	log  *slog.Logger

	context *zmq.Context
	pub     *zmq.Socket
	replay  *zmq.Socket // nil: none
	poller  *zmq.Poller // Wake may be called by anyone
	// live and again are the addresses of pub and replay, as subscribers of this
	// machine connect to them. Set once.
	live, again string

	// kept are the last cfg.BufferSteps messages, the first of which has the
	// number first.
	kept  [][]byte
	first uint64

	mu    sync.Mutex // guards the following
	queue [][]byte   // nil where a message was lost for want of room
}

// newPublisher opens the sockets; run has to be called to close them. live and
// again are where an engine's former life was bound; empty: it had none.
func newPublisher(cfg EventsConfig, form eventForm, live, again string, log *slog.Logger) (*publisher, error) {
	p := &publisher{cfg: cfg, form: form, log: log}
	if err := p.open(live, again); err != nil {
		p.close()
		return nil, fmt.Errorf("KV events: %w", err)
	}
	return p, nil
}

func (p *publisher) open(live, again string) (err error) {
	if p.context, err = zmq.NewContext(); err != nil {
		return err
	}
	if p.pub, err = p.context.Socket(zmq.Pub, zmq.Options{SendHWM: eventsHWM}); err != nil {
		return err
	}
	switch {
	case !strings.Contains(p.cfg.Endpoint, "*") && !strings.Contains(p.cfg.Endpoint, "::"):
		p.live = p.cfg.Endpoint
		err = p.pub.Connect(p.cfg.Endpoint)
	case live != "":
		p.live, err = p.pub.Bind(live)
	default:
		p.live, err = p.pub.Bind(p.cfg.Endpoint)
	}
	if err != nil {
		return err
	}
	var sockets []*zmq.Socket
	if p.cfg.Replay != "" {
		if p.replay, err = p.context.Socket(zmq.Router, zmq.Options{SendHWM: p.cfg.BufferSteps + 1}); err != nil {
			return err
		}
		if again == "" {
			again = p.cfg.Replay
		}
		if p.again, err = p.replay.Bind(again); err != nil {
			return err
		}
		sockets = append(sockets, p.replay)
	}
	p.poller, err = p.context.NewPoller(sockets...)
	return err
}

func (p *publisher) close() {
	if p.poller != nil {
		_ = p.poller.Close()
	}
	for _, s := range []*zmq.Socket{p.pub, p.replay} {
		if s != nil {
			_ = s.Close()
		}
	}
	if p.context != nil {
		_ = p.context.Close()
	}
}

// step queues the message of one engine step; generations finds those that the
// changes name. It does not block.
func (p *publisher) step(now time.Time, changes []simulator.BlockChange, generations func(simulator.ID) *generation) {
	payload := p.form.batch(now, changes, generations, p.cfg.StoreOnly)
	if payload == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) >= maxUnpublished {
		payload = nil // subscribers see the gap
	}
	p.queue = append(p.queue, payload)
	p.poller.Wake()
}

// run publishes until ctx ends, then closes the sockets.
func (p *publisher) run(ctx context.Context) {
	defer p.close()
	defer context.AfterFunc(ctx, p.poller.Wake)()
	for ctx.Err() == nil {
		ready, err := p.poller.Poll(-1)
		if err != nil {
			p.log.Error("KV events stopped", "error", err)
			return
		}
		p.publish()
		for range ready { // the only socket waited on is that of replays
			p.answer()
		}
	}
}

// publish sends what is queued.
func (p *publisher) publish() {
	p.mu.Lock()
	queue := p.queue
	p.queue = nil
	p.mu.Unlock()
	for _, payload := range queue {
		seq := p.first + uint64(len(p.kept))
		p.kept = append(p.kept, payload)
		if len(p.kept) > p.cfg.BufferSteps {
			p.kept[0] = nil
			p.kept, p.first = p.kept[1:], p.first+1
		}
		if payload == nil {
			p.log.Warn("KV events lost, they are not sent as fast as they come", "sequence", seq)
			continue
		}
		if err := p.pub.Send([]byte(p.cfg.Topic), number(seq), payload); err != nil && !errors.Is(err, zmq.ErrAgain) {
			p.log.Warn("KV events not sent", "sequence", seq, "error", err)
		}
	}
}

// answer repeats what is kept to whoever asks: from the number asked for on, or
// from the oldest kept.
func (p *publisher) answer() {
	for {
		frames, err := p.replay.Recv()
		if err != nil {
			return // nothing more
		}
		if len(frames) != 3 || len(frames[2]) != 8 {
			p.log.Warn("KV events asked for in a form that vLLM does not know", "frames", len(frames))
			continue
		}
		from := binary.BigEndian.Uint64(frames[2])
		for i, payload := range p.kept {
			if seq := p.first + uint64(i); seq >= from && payload != nil {
				p.reply(frames[0], p.cfg.Topic, seq, payload)
			}
		}
		p.reply(frames[0], "", math.MaxUint64, nil)
	}
}

func (p *publisher) reply(to []byte, topic string, seq uint64, payload []byte) {
	frames := [][]byte{to, nil}
	if p.form.release >= releaseTopicInReplay {
		frames = append(frames, []byte(topic))
	}
	if err := p.replay.Send(append(frames, number(seq), payload)...); err != nil && !errors.Is(err, zmq.ErrUnreachable) {
		p.log.Warn("KV events not repeated", "sequence", seq, "error", err)
	}
}

// number is a sequence number as it is on the wire.
func number(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
