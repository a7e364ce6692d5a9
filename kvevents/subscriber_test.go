//go:build cgo && !nozmq

package kvevents

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/scoring"
)

const patience = 20 * time.Second

// fake publishes as vLLM does: PUB or, to see who subscribes, XPUB, and a ROUTER
// for replays. Its goroutine owns the sockets.
type fake struct {
	t      *testing.T
	poller *zmq.Poller
	calls  chan func()
	done   chan struct{}

	// The following are the goroutine's.
	pub, router *zmq.Socket
	publisher   publisher
	topic       string
	early       bool // answers replays as vLLM did until 0.25
	mute        bool // does not answer replays at all
	subscribed  int

	address, replay string
}

// startFake starts an engine. at is where the subscriber listens, where the
// engine is to connect; empty: it binds. port 0: any.
func startFake(t *testing.T, at, topic string, port int) *fake {
	t.Helper()
	ctx, err := zmq.NewContext()
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, calls: make(chan func()), done: make(chan struct{}), topic: topic, publisher: publisher{keeps: 100}}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	f.pub, err = ctx.Socket(zmq.XPub, zmq.Options{Linger: time.Second})
	check(err)
	f.router, err = ctx.Socket(zmq.Router, zmq.Options{})
	check(err)
	if at != "" {
		check(f.pub.Connect(at))
	} else {
		f.address, err = f.pub.Bind(fmt.Sprintf("tcp://127.0.0.1:%d", port))
		check(err)
	}
	f.replay, err = f.router.Bind("tcp://127.0.0.1:0")
	check(err)
	f.poller, err = ctx.NewPoller(f.pub, f.router)
	check(err)
	go f.run(ctx) // ended by stop
	t.Cleanup(f.stop)
	return f
}

func (f *fake) run(ctx *zmq.Context) {
	defer close(f.done)
	for call := range f.calls {
		if call == nil {
			break
		}
		call()
	}
	_ = f.poller.Close()
	_ = f.pub.Close()
	_ = f.router.Close()
	_ = ctx.Close()
}

func (f *fake) stop() {
	select {
	case f.calls <- nil:
	case <-f.done:
	}
	<-f.done
}

// do runs call in the goroutine, having taken what came meanwhile.
func (f *fake) do(call func()) {
	done := make(chan struct{})
	f.calls <- func() {
		defer close(done)
		f.receive()
		call()
	}
	<-done
}

// receive takes subscriptions and answers replays.
func (f *fake) receive() {
	for {
		frames, err := f.pub.Recv()
		if err != nil {
			break
		}
		if frames[0][0] == 1 {
			f.subscribed++
		}
	}
	for {
		frames, err := f.router.Recv()
		if err != nil {
			return
		}
		if f.mute {
			continue
		}
		from := binary.BigEndian.Uint64(frames[2])
		for _, m := range f.publisher.buffer {
			if m.seq >= from {
				f.answer(frames[0], f.topic, m)
			}
		}
		f.answer(frames[0], "", message{seq: endSequence})
	}
}

func (f *fake) answer(to []byte, topic string, m message) {
	frames := [][]byte{to, nil, []byte(topic), number8(m.seq), m.payload}
	if f.early {
		frames = [][]byte{to, nil, number8(m.seq), m.payload}
	}
	if err := f.router.Send(frames...); err != nil {
		f.t.Errorf("replay: %v", err)
	}
}

func number8(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// publish sends n steps; lose makes n that nobody hears.
func (f *fake) publish(n int) {
	f.do(func() {
		for range n {
			m := f.publisher.step()
			if err := f.pub.Send([]byte(f.topic), number8(m.seq), m.payload); err != nil {
				f.t.Error(err)
			}
		}
	})
}

func (f *fake) lose(n int) { f.do(func() { steps(&f.publisher, n) }) }

// subscriber is a running Subscriber.
type subscriber struct {
	*Subscriber
	t *testing.T
}

func start(t *testing.T, set func(*Subscriber), endpoints ...scoring.Endpoint) *subscriber {
	t.Helper()
	s, err := New(DefaultConfig(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if set != nil {
		set(s)
	}
	s.SetEndpoints(endpoints)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // ended by cancel
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &subscriber{s, t}
}

// endpoint publishes at those addresses.
func endpoint(id int, feed scoring.EventFeed) scoring.Endpoint {
	return scoring.Endpoint{
		ID: scoring.EndpointID(id), Name: fmt.Sprint("e", id), Address: "127.0.0.1:8000", Ready: true,
		Cache: scoring.CacheIdentity{Events: feed},
	}
}

func (f *fake) feed(replay bool) scoring.EventFeed {
	feed := scoring.EventFeed{Endpoint: f.address, Topic: f.topic}
	if replay {
		feed.Replay = f.replay
	}
	return feed
}

// eventually waits for the engine's goroutine and ours.
func (s *subscriber) eventually(what string, ok func() bool, engines ...*fake) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		for _, f := range engines {
			f.do(func() {})
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("never happened: %s; %+v", what, s.Status())
		}
	}
}

// joins waits until the engine has the subscription: what it publishes from
// then on is not lost.
func (s *subscriber) joins(f *fake) {
	s.t.Helper()
	s.eventually("subscription", func() bool {
		joined := false
		f.do(func() { joined = f.subscribed > 0 })
		return joined
	})
}

// knows waits until exactly those steps of the engine's present life are held.
func (s *subscriber) knows(f *fake, e scoring.Endpoint, from, to uint64) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("steps %d to %d are known", from, to), func() bool {
		for seq := range to + 5 {
			row := s.Match(sequenceOf(stepPrompt(f.publisher.life, seq)), []scoring.Endpoint{e})[0]
			if row == nil || (row[0].Cached > 0) != (seq >= from && seq < to) {
				return false
			}
		}
		return true
	}, f)
}

func (s *subscriber) counts(rank int) Counts { return s.Status()[rank].Counts }

func TestLateSubscriberAndGap(t *testing.T) {
	for _, early := range []bool{true, false} {
		t.Run(map[bool]string{true: "until 0.25", false: "from 0.26"}[early], func(t *testing.T) {
			f := startFake(t, "", "kv@e@m", 0)
			f.early = early
			f.publish(5) // Nobody listens yet.
			e := endpoint(1, f.feed(true))
			s := start(t, nil, e)
			s.knows(f, e, 0, 5)
			s.joins(f)
			f.publish(2)
			s.knows(f, e, 0, 7)
			f.lose(3)
			f.publish(1)
			s.knows(f, e, 0, 11)
			if c := s.counts(0); c.Gaps != 1 || c.Replays != 2 || c.FailedReplays != 0 || len(c.Cleared) != 0 || c.Batches != 11 {
				t.Errorf("%+v", c)
			}
		})
	}
}

func TestGapWithoutReplay(t *testing.T) {
	f := startFake(t, "", "", 0)
	e := endpoint(1, f.feed(false))
	s := start(t, nil, e)
	s.joins(f)
	f.publish(3)
	s.knows(f, e, 0, 3)
	f.lose(1)
	f.publish(2)
	s.knows(f, e, 4, 6)
	if c := s.counts(0); c.Gaps != 1 || c.Replays != 0 || c.Cleared["gap"] != 1 {
		t.Errorf("%+v", c)
	}
}

func TestEngineRestarts(t *testing.T) {
	f := startFake(t, "", "", 0)
	e := endpoint(1, f.feed(false))
	s := start(t, nil, e)
	s.joins(f)
	f.publish(3)
	s.knows(f, e, 0, 3)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(f.address, "tcp://"))
	f.stop()
	var n int
	fmt.Sscan(port, &n)
	again := startFake(t, "", "", n)
	again.publisher.life = 1
	s.joins(again) // ZeroMQ connects again by itself.
	again.publish(2)
	s.knows(again, e, 0, 2)
	if c := s.counts(0); c.Restarts != 1 || c.Cleared["restart"] != 1 {
		t.Errorf("%+v", c)
	}
	if n := s.Status()[0].Blocks["gpu"]; n != 2 {
		t.Errorf("%d blocks, want those of the new life alone", n)
	}
}

// The engines connect to us, two to the same socket: their topics tell them
// apart.
func TestBind(t *testing.T) {
	s := start(t, nil)
	feed := scoring.EventFeed{Endpoint: "tcp://127.0.0.1:0", Bind: true}
	one, two := endpoint(1, feed), endpoint(2, feed)
	one.Cache.Events.Topic, two.Cache.Events.Topic = "kv@1", "kv@11"
	s.SetEndpoints([]scoring.Endpoint{one, two})
	s.eventually("bound", func() bool {
		st := s.Status()
		return len(st) == 2 && !strings.HasSuffix(st[1].Address, ":0") && st[0].Address == st[1].Address
	})
	at := s.Status()[0].Address
	first, second, stray := startFake(t, at, "kv@1", 0), startFake(t, at, "kv@11", 0), startFake(t, at, "kv@111", 0)
	for i, f := range []*fake{first, second, stray} {
		s.joins(f)
		f.publish(i + 2)
	}
	s.knows(first, one, 0, 2)
	s.knows(second, two, 0, 3)
	s.eventually("stray messages are counted", func() bool { return s.Strays() == 4 })
	s.SetEndpoints([]scoring.Endpoint{two})
	s.eventually("one is gone", func() bool { return len(s.Status()) == 1 })
	if rows := s.Match(sequenceOf(stepPrompt(0, 0)), []scoring.Endpoint{one, two}); rows[0] != nil || rows[1] == nil {
		t.Errorf("%+v", rows)
	}
	second.publish(1)
	s.knows(second, two, 0, 4)
}

// An address in use is tried again, and the rest goes on.
func TestBindConflict(t *testing.T) {
	blocker, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close()
	f := startFake(t, "", "", 0)
	good := endpoint(1, f.feed(true))
	bad := endpoint(2, scoring.EventFeed{Endpoint: "tcp://" + blocker.Addr().String(), Bind: true})
	s := start(t, nil, bad, good)
	f.publish(1)
	s.knows(f, good, 0, 1)
	st := s.Status()
	if st[0].Fault == "" || st[0].Known || st[1].Fault != "" {
		t.Errorf("%+v", st)
	}
}

// Data-parallel ranks are one port apart, each with its own numbers and cache.
func TestTwoRanks(t *testing.T) {
	var first, second *fake
	for range 50 {
		first = startFake(t, "", "", 0)
		_, port, _ := net.SplitHostPort(strings.TrimPrefix(first.address, "tcp://"))
		var n int
		fmt.Sscan(port, &n)
		probe, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n+1))
		if err != nil {
			continue
		}
		_ = probe.Close()
		second = startFake(t, "", "", n+1)
		break
	}
	feed := first.feed(false)
	feed.Ranks = 2
	e := endpoint(1, feed)
	s := start(t, nil, e)
	s.joins(first)
	s.joins(second)
	first.publish(1)
	second.publish(3)
	s.knows(second, e, 0, 3)
	s.eventually("both ranks", func() bool { return s.counts(0).Batches == 1 && s.counts(1).Batches == 3 })
}

// An engine that never answers is given up after a while, not waited for.
func TestReplayIsNotWaitedForForEver(t *testing.T) {
	f := startFake(t, "", "", 0)
	f.mute = true
	e := endpoint(1, f.feed(true))
	s := start(t, func(s *Subscriber) { s.replayTimeout = 50 * time.Millisecond }, e)
	s.joins(f)
	f.lose(1)
	f.publish(2)
	s.knows(f, e, 1, 3)
	if c := s.counts(0); c.FailedReplays != 1 {
		t.Errorf("%+v", c)
	}
}

func TestMalformedFrames(t *testing.T) {
	f := startFake(t, "", "", 0)
	e := endpoint(1, f.feed(false))
	s := start(t, nil, e)
	s.joins(f)
	f.do(func() {
		for _, frames := range [][][]byte{{nil}, {nil, number8(0)}, {nil, {1, 2}, {0x90}}, {nil, number8(0), {0x90}, {0}}} {
			if err := f.pub.Send(frames...); err != nil {
				t.Error(err)
			}
		}
	})
	f.publish(1)
	s.knows(f, e, 0, 1)
	if c := s.counts(0); c.BadFrames != 4 || len(c.Cleared) != 0 {
		t.Errorf("%+v", c)
	}
}

func TestMetrics(t *testing.T) {
	f := startFake(t, "", "", 0)
	e := endpoint(1, f.feed(false))
	s := start(t, nil, e)
	reg := prometheus.NewPedanticRegistry()
	NewMetrics(reg, s.Subscriber)
	s.joins(f)
	f.publish(3)
	s.knows(f, e, 0, 3)
	want := `
# HELP firsttoken_kv_events_blocks Blocks that the engine holds, by medium.
# TYPE firsttoken_kv_events_blocks gauge
firsttoken_kv_events_blocks{endpoint="e1",medium="gpu"} 3
# HELP firsttoken_kv_events_events_total Events in them, by kind: stored, removed, cleared, other (unknown, skipped).
# TYPE firsttoken_kv_events_events_total counter
firsttoken_kv_events_events_total{endpoint="e1",kind="stored"} 3
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "firsttoken_kv_events_blocks", "firsttoken_kv_events_events_total"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	s.SetEndpoints(nil)
	s.eventually("the endpoint's series are gone", func() bool {
		n, err := testutil.GatherAndCount(reg, "firsttoken_kv_events_blocks", "firsttoken_kv_events_batches_total")
		return err == nil && n == 0
	})
}

func TestCloseWithoutRun(t *testing.T) {
	s, err := New(DefaultConfig(), slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	s.SetEndpoints([]scoring.Endpoint{endpoint(1, feed(1))})
	s.Close()
}
