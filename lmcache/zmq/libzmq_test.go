//go:build cgo && !nozmq

package zmq_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache/zmq"
)

const patience = 10 * time.Second

func newContext(t *testing.T) *zmq.Context {
	t.Helper()
	ctx, err := zmq.NewContext()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ctx.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx
}

func open(t *testing.T, ctx *zmq.Context, kind zmq.Kind, opts zmq.Options) *zmq.Socket {
	t.Helper()
	s, err := ctx.Socket(kind, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func bind(t *testing.T, s *zmq.Socket) string {
	t.Helper()
	address, err := s.Bind("tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(address, "tcp://127.0.0.1:") || strings.HasSuffix(address, ":0") {
		t.Fatalf("bound address %q, want a real port", address)
	}
	return address
}

func connect(t *testing.T, s *zmq.Socket, address string) {
	t.Helper()
	if err := s.Connect(address); err != nil {
		t.Fatal(err)
	}
}

// send retries until the connection is made.
func send(t *testing.T, s *zmq.Socket, frames ...string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		raw := make([][]byte, len(frames))
		for i, f := range frames {
			raw[i] = []byte(f)
		}
		err := s.Send(raw...)
		if err == nil {
			return
		}
		if !errors.Is(err, zmq.ErrAgain) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func recv(t *testing.T, ctx *zmq.Context, s *zmq.Socket) []string {
	t.Helper()
	p, err := ctx.NewPoller(s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ready, err := p.Poll(patience)
	if err != nil || len(ready) != 1 || ready[0] != s {
		t.Fatalf("Poll: %v, %v", ready, err)
	}
	frames, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]string, len(frames))
	for i, f := range frames {
		out[i] = string(f)
	}
	return out
}

func TestPushPullKeepsFrames(t *testing.T) {
	ctx := newContext(t)
	pull, push := open(t, ctx, zmq.Pull, zmq.Options{RecvHWM: 10}), open(t, ctx, zmq.Push, zmq.Options{SendHWM: 10})
	connect(t, push, bind(t, pull))
	send(t, push, "a", "", "ccc")
	if diff := cmp.Diff([]string{"a", "", "ccc"}, recv(t, ctx, pull)); diff != "" {
		t.Error(diff)
	}
	if _, err := pull.Recv(); !errors.Is(err, zmq.ErrAgain) {
		t.Errorf("Recv on an empty socket: %v, want ErrAgain", err)
	}
}

func TestRouterServesDealerAndReqAlike(t *testing.T) {
	for _, kind := range []zmq.Kind{zmq.Dealer, zmq.Req} {
		t.Run(kind.String(), func(t *testing.T) {
			ctx := newContext(t)
			router, client := open(t, ctx, zmq.Router, zmq.Options{}), open(t, ctx, kind, zmq.Options{})
			connect(t, client, bind(t, router))
			if kind == zmq.Req {
				send(t, client, "question")
			} else {
				send(t, client, "", "question")
			}
			got := recv(t, ctx, router)
			if len(got) != 3 || got[1] != "" || got[2] != "question" {
				t.Fatalf("router saw %q", got)
			}
			send(t, router, got[0], "", "answer")
			answer := recv(t, ctx, client)
			if answer[len(answer)-1] != "answer" {
				t.Errorf("client saw %q", answer)
			}
		})
	}
}

func TestRouterSaysThatThePeerIsGone(t *testing.T) {
	ctx := newContext(t)
	router := open(t, ctx, zmq.Router, zmq.Options{})
	bind(t, router)
	if err := router.Send([]byte("nobody"), nil, []byte("x")); !errors.Is(err, zmq.ErrUnreachable) {
		t.Errorf("got %v, want ErrUnreachable", err)
	}
}

func TestSubSeesItsTopics(t *testing.T) {
	ctx := newContext(t)
	xpub, sub := open(t, ctx, zmq.XPub, zmq.Options{}), open(t, ctx, zmq.Sub, zmq.Options{Topics: []string{"kv"}})
	connect(t, sub, bind(t, xpub))
	if diff := cmp.Diff([]string{"\x01kv"}, recv(t, ctx, xpub)); diff != "" {
		t.Fatal(diff)
	}
	send(t, xpub, "other", "1")
	send(t, xpub, "kv", "2")
	if diff := cmp.Diff([]string{"kv", "2"}, recv(t, ctx, sub)); diff != "" {
		t.Error(diff)
	}
}

func TestBindConflictNamesTheAddress(t *testing.T) {
	ctx := newContext(t)
	address := bind(t, open(t, ctx, zmq.Pull, zmq.Options{}))
	_, err := open(t, ctx, zmq.Pull, zmq.Options{}).Bind(address)
	if err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("got %v, want an error that names %s", err, address)
	}
}

// Every Wake that starts after a Poll returned must end the next Poll: with
// none lost, the loop below sees all rounds and never waits out its timeout.
func TestWakeIsNeverLost(t *testing.T) {
	ctx := newContext(t)
	p, err := ctx.NewPoller(open(t, ctx, zmq.Pull, zmq.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const rounds = 2000
	work := make(chan int, rounds)
	var wakers sync.WaitGroup
	for w := range 2 {
		wakers.Go(func() {
			for i := range rounds / 2 {
				work <- w*rounds + i
				p.Wake()
			}
		})
	}
	for seen := 0; seen < rounds; {
		begin := time.Now()
		if _, err := p.Poll(patience); err != nil {
			t.Fatal(err)
		}
		if time.Since(begin) >= patience {
			t.Fatalf("a wake-up was lost after %d of %d items", seen, rounds)
		}
		for len(work) > 0 {
			<-work
			seen++
		}
	}
	wakers.Wait()
}

func TestPollerFollowsAddAndRemove(t *testing.T) {
	ctx := newContext(t)
	sockets := make([]*zmq.Socket, 3)
	pushes := make([]*zmq.Socket, 3)
	for i := range sockets {
		sockets[i], pushes[i] = open(t, ctx, zmq.Pull, zmq.Options{}), open(t, ctx, zmq.Push, zmq.Options{})
		connect(t, pushes[i], bind(t, sockets[i]))
	}
	p, err := ctx.NewPoller(sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// turn lets one socket have a message and returns who is found ready.
	turn := func(i int) []*zmq.Socket {
		send(t, pushes[i], "x")
		ready, err := p.Poll(patience)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range ready {
			if _, err := s.Recv(); err != nil {
				t.Errorf("ready, but %v", err)
			}
		}
		return ready
	}
	want := func(i int) {
		t.Helper()
		if ready := turn(i); len(ready) != 1 || ready[0] != sockets[i] {
			t.Errorf("socket %d has a message, %d others are ready", i, len(ready))
		}
	}
	p.Add(sockets[1])
	p.Add(sockets[2])
	for i := range sockets {
		want(i)
	}
	p.Remove(sockets[1])
	p.Remove(sockets[1])
	want(0)
	want(2)
	send(t, pushes[1], "unseen")
	p.Wake()
	if ready, err := p.Poll(patience); err != nil || len(ready) != 0 {
		t.Errorf("a removed socket is ready: %v %v", ready, err)
	}
}

func TestWakeAfterCloseIsHarmless(t *testing.T) {
	ctx := newContext(t)
	p, err := ctx.NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}
	p.Wake()
}

func TestOversizedPartClosesOnlyThatPeer(t *testing.T) {
	ctx := newContext(t)
	pull := open(t, ctx, zmq.Pull, zmq.Options{MaxPart: 1000})
	address := bind(t, pull)
	bad, good := open(t, ctx, zmq.Push, zmq.Options{}), open(t, ctx, zmq.Push, zmq.Options{})
	connect(t, bad, address)
	connect(t, good, address)
	send(t, bad, strings.Repeat("x", 1001))
	send(t, good, "fine")
	if diff := cmp.Diff([]string{"fine"}, recv(t, ctx, pull)); diff != "" {
		t.Error(diff)
	}
}

func ExamplePoller() {
	ctx, err := zmq.NewContext()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ctx.Close()
	pull, _ := ctx.Socket(zmq.Pull, zmq.Options{})
	defer pull.Close()
	address, _ := pull.Bind("tcp://127.0.0.1:0")
	push, _ := ctx.Socket(zmq.Push, zmq.Options{})
	defer push.Close()
	_ = push.Connect(address)
	for errors.Is(push.Send([]byte("hello")), zmq.ErrAgain) {
		continue // not connected yet
	}
	poller, _ := ctx.NewPoller(pull)
	defer poller.Close()
	ready, _ := poller.Poll(time.Minute)
	frames, _ := ready[0].Recv()
	fmt.Printf("%s\n", frames[0])
	// Output: hello
}
