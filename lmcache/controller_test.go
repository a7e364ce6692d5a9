//go:build cgo && !nozmq

package lmcache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
)

const patience = 20 * time.Second

var discard = slog.New(slog.DiscardHandler)

// rig is a running controller and a worker's sockets to it.
type rig struct {
	testing.TB
	*lmcache.Controller
	index   *lmcache.Index
	metrics *prometheus.Registry
	ctx     *zmq.Context
	push    *zmq.Socket
	sent    int // messages and bad parts pushed
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	cfg := lmcache.DefaultControllerConfig()
	cfg.Pull, cfg.Reply, cfg.Heartbeat = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	return newRigOf(tb, cfg)
}

func newRigOf(tb testing.TB, cfg lmcache.ControllerConfig) *rig {
	tb.Helper()
	r := &rig{TB: tb, index: lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 1_000_000}), metrics: prometheus.NewRegistry()}
	var err error
	if r.Controller, err = lmcache.NewController(cfg, r.index, discard, lmcache.NewMetrics(r.metrics)); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }() // ended by the clean-up below
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	if r.ctx, err = zmq.NewContext(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.ctx.Close() })
	r.push = r.dial(zmq.Push, r.Addresses().Pull)
	return r
}

func (r *rig) dial(kind zmq.Kind, address string) *zmq.Socket {
	r.Helper()
	s, err := r.ctx.Socket(kind, zmq.Options{SendHWM: 10_000})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { s.Close() })
	if err := s.Connect("tcp://" + address); err != nil {
		r.Fatal(err)
	}
	return s
}

// eventually polls what only another goroutine can bring about.
func (r *rig) eventually(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("never happened: %s", what)
		}
	}
}

// pushes sends one multipart message and waits until the index has it all.
func (r *rig) pushes(parts ...[]byte) {
	r.Helper()
	r.eventually("the connection", func() bool {
		err := r.push.Send(parts...)
		if err != nil && !errors.Is(err, zmq.ErrAgain) {
			r.Fatal(err)
		}
		return err == nil
	})
	r.sent += len(parts)
	r.eventually("the controller taking in what was pushed", func() bool { return r.taken() >= r.sent && r.Idle() })
}

// taken is how many messages came on PULL or were answered.
func (r *rig) taken() int {
	return int(r.sum("firsttoken_lmcache_messages_total") + r.sum("firsttoken_lmcache_bad_frames_total"))
}

func (r *rig) sum(name string) (sum float64) {
	families, err := r.metrics.Gather()
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// asks sends a request as a DEALER does and decodes the answer.
func (r *rig) asks(s *zmq.Socket, request []byte) lmcache.Message {
	r.Helper()
	answer := r.exchange(s, nil, request)
	if len(answer) != 2 || len(answer[0]) != 0 {
		r.Fatalf("answer %q, want an empty frame and a payload", answer)
	}
	r.sent++
	m, err := lmcache.Decode(answer[1])
	if err != nil {
		r.Fatal(err)
	}
	return m
}

func (r *rig) exchange(s *zmq.Socket, frames ...[]byte) [][]byte {
	r.Helper()
	r.eventually("the connection", func() bool { return s.Send(frames...) == nil })
	poller, err := r.ctx.NewPoller(s)
	if err != nil {
		r.Fatal(err)
	}
	defer poller.Close()
	if ready, err := poller.Poll(patience); err != nil || len(ready) == 0 {
		r.Fatalf("no answer: %v", err)
	}
	answer, err := s.Recv()
	if err != nil {
		r.Fatal(err)
	}
	return answer
}

func registration(instance string) lmcache.Registration {
	return lmcache.Registration{Worker: lmcache.WorkerID{Instance: instance, Worker: 0}, IP: "127.0.0.1", Port: 22800}
}

func batch(w lmcache.WorkerID, seq int64, keys ...lmcache.Key) *lmcache.BatchedKVOperationMsg {
	m := &lmcache.BatchedKVOperationMsg{Worker: w, Location: lmcache.LocationCPU}
	for i, k := range keys {
		m.Operations = append(m.Operations, lmcache.KVOp{Key: lmcache.SignedKey(k), Seq: seq + int64(i)})
	}
	return m
}

func (r *rig) holds(instance string, keys ...lmcache.Key) int {
	return r.index.Match(nil, keys, []string{instance})[0].Chunks
}

// "One undecodable frame on PULL kills the real controller's PULL task for
// good … Ours: count, log, continue, per part".
func TestBadPartsCostOnlyThemselves(t *testing.T) {
	r := newRig(t)
	a := registration("a")
	r.asks(r.dial(zmq.Dealer, r.Addresses().Reply), (&lmcache.RegisterMsg{Registration: a}).Append(nil))
	r.pushes(
		batch(a.Worker, 0, 1).Append(nil),
		[]byte{0xc1, 'b', 'a', 'd'},
		nil,
		(&lmcache.BatchedKVOperationMsg{Worker: a.Worker}).Append(nil)[:10],
		batch(a.Worker, 1, 2).Append(nil),
	)
	if got := r.holds("a", 1, 2); got != 2 {
		t.Errorf("%d chunks held, want the good parts' 2", got)
	}
	if n := r.sum("firsttoken_lmcache_bad_frames_total"); n != 3 {
		t.Errorf("%v bad frames counted, want 3", n)
	}
}

func TestReqClientsOfOlderErasAreAnswered(t *testing.T) {
	r := newRig(t)
	req := r.dial(zmq.Req, r.Addresses().Reply)
	r.eventually("the connection", func() bool { return req.Send((&lmcache.BatchedP2PLookupMsg{}).Append(nil)) == nil })
	poller, err := r.ctx.NewPoller(req)
	if err != nil {
		t.Fatal(err)
	}
	defer poller.Close()
	if _, err := poller.Poll(patience); err != nil {
		t.Fatal(err)
	}
	frames, err := req.Recv()
	if err != nil {
		t.Fatal(err)
	}
	got, err := lmcache.Decode(frames[0])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&lmcache.BatchedP2PLookupRetMsg{LayoutInfo: []lmcache.P2PHit{{}}}, got); diff != "" {
		t.Error(diff)
	}
}

func TestRegisteredWorkerLearnsWhereHeartbeatsGo(t *testing.T) {
	r := newRig(t)
	answer := r.asks(r.dial(zmq.Dealer, r.Addresses().Reply), (&lmcache.RegisterMsg{Registration: registration("a")}).Append(nil))
	want := &lmcache.RegisterRetMsg{ExtraConfig: map[string]string{"heartbeat_url": r.Addresses().Heartbeat}}
	if diff := cmp.Diff(want, answer); diff != "" {
		t.Fatal(diff)
	}
	beat := r.asks(r.dial(zmq.Dealer, want.ExtraConfig["heartbeat_url"]), (&lmcache.HeartbeatMsg{Registration: registration("a")}).Append(nil))
	if diff := cmp.Diff(&lmcache.HeartbeatRetMsg{}, beat); diff != "" {
		t.Error(diff)
	}
}

// The golden sessions of LMCache's own controllers, played to ours. Where ours
// answers otherwise it does so on purpose:
//
//   - a worker whose registration it saw is not asked for a full sync;
//   - refusals and errors have other words, progress counts other workers;
//   - what made the older ones fall silent is answered by an error.
func TestGoldenControllerSessions(t *testing.T) {
	for _, session := range readGolden(t).LiveController {
		t.Run(session.LMCache, func(t *testing.T) { playControllerSession(t, session) })
	}
}

func playControllerSession(t *testing.T, session goldenSession) {
	t.Helper()
	r := newRig(t)
	sockets := map[string]*zmq.Socket{
		"reply": r.dial(zmq.Dealer, r.Addresses().Reply), "heartbeat": r.dial(zmq.Dealer, r.Addresses().Heartbeat),
	}
	var answer, asked lmcache.Message
	note, answers, compared := "", 0, 0
	tool, registered := newToolClient(r, sessionKeys(session.LMCache)), map[string]string{} // by instance: ip
	played := 0
	for _, e := range session.Events {
		played++
		for i := range e.Frames {
			switch m, _ := lmcache.Decode(unhex(t, e.Frames[i])); m := m.(type) {
			case *lmcache.RegisterMsg:
				registered[m.Worker.Instance] = m.IP
			case *lmcache.DeRegisterMsg:
				delete(registered, m.Worker.Instance)
			}
		}
		switch {
		case e.HTTP != "":
			tool.replayHTTP(e, registered)
		case e.Socket == "PUSH->PULL":
			parts := make([][]byte, len(e.Frames))
			for i, f := range e.Frames {
				parts[i] = unhex(t, f)
			}
			r.pushes(parts...)
		case sockets[e.Socket] != nil && e.Dir == "worker->controller":
			// A REQ socket's delimiter was not recorded.
			request := unhex(t, e.Frames[len(e.Frames)-1])
			note = e.Note
			asked, _ = lmcache.Decode(request)
			answer = r.asks(sockets[e.Socket], request)
		case sockets[e.Socket] != nil && len(e.Frames) == 0: // "TIMEOUT: no reply"
			answers++
			if got, ok := answer.(*lmcache.ErrorMsg); !ok {
				t.Errorf("%s: answered %#v, want an error", note, got)
			}
			compared++
		case sockets[e.Socket] != nil:
			answers++
			want, err := lmcache.Decode(unhex(t, e.Frames[len(e.Frames)-1]))
			if err != nil {
				t.Fatal(err)
			}
			compared++
			switch want := want.(type) {
			case *lmcache.RegisterRetMsg:
				want.ExtraConfig["heartbeat_url"] = r.Addresses().Heartbeat
			case *lmcache.HeartbeatRetMsg:
				if strings.HasPrefix(note, "registered; controller is fresh") {
					want.Commands = nil
				}
			case *lmcache.ErrorMsg:
				if got, ok := answer.(*lmcache.ErrorMsg); ok && got.Error != "" {
					want.Error = got.Error
				}
			case *lmcache.FullSyncStartRetMsg:
				if got, ok := answer.(*lmcache.FullSyncStartRetMsg); ok && got.Error != "" && want.Error != "" {
					want.Error = got.Error
				}
			case *lmcache.FullSyncStatusRetMsg:
				if got, ok := answer.(*lmcache.FullSyncStatusRetMsg); ok {
					want.GlobalProgress = got.GlobalProgress
				}
			}
			if diff := cmp.Diff(want, answer, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: answer to %#v (-LMCache +ours):\n%s", note, asked, diff)
			}
		}
	}
	if compared != answers || played != len(session.Events) {
		t.Errorf("%d answers compared of %d, %d events played of %d", compared, answers, played, len(session.Events))
	}
}

func TestAddressInUseIsNamed(t *testing.T) {
	r := newRig(t)
	cfg := lmcache.DefaultControllerConfig()
	cfg.Pull, cfg.Reply, cfg.Heartbeat = r.Addresses().Pull, "127.0.0.1:0", ""
	_, err := lmcache.NewController(cfg, r.index, discard, lmcache.NewMetrics(prometheus.NewRegistry()))
	if err == nil || !strings.Contains(err.Error(), cfg.Pull) || !strings.Contains(err.Error(), "pull") {
		t.Errorf("got %v, want an error that names pull and %s", err, cfg.Pull)
	}
}

func TestControllerConfigNamesEveryFault(t *testing.T) {
	cfg := lmcache.ControllerConfig{Pull: "host:1", Reply: "127.0.0.1:99999", AdvertiseHeartbeat: "x", ReceiveQueue: 0}
	err := cfg.Validate("lmcache.controller")
	for _, key := range []string{"pull", "reply", "advertise_heartbeat", "worker_timeout", "check_interval", "silent_after", "receive_queue"} {
		if err == nil || !strings.Contains(err.Error(), "lmcache.controller."+key+": ") {
			t.Errorf("no fault named for %s: %v", key, err)
		}
	}
	if err := lmcache.DefaultControllerConfig().Validate("x"); err != nil {
		t.Error(err)
	}
}

func TestAdvertisedHeartbeatAddress(t *testing.T) {
	const worker = "127.0.0.1"
	for _, c := range []struct{ listen, advertise, worker, want string }{
		{"127.0.0.1:0", "", worker, "127.0.0.1:PORT"},
		{"*:0", "", worker, "127.0.0.1:PORT"}, // the way to the worker
		{"*:0", "", "localhost", ""},          // names are not looked up
		{"*:0", "router.example", worker, "router.example:PORT"},
		{"*:0", "router.example:8500", worker, "router.example:8500"},
	} {
		cfg := lmcache.DefaultControllerConfig()
		cfg.Pull, cfg.Reply, cfg.Heartbeat, cfg.AdvertiseHeartbeat = "127.0.0.1:0", "127.0.0.1:0", c.listen, c.advertise
		ctl, err := lmcache.NewController(cfg, lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 1}), discard, lmcache.NewMetrics(prometheus.NewRegistry()))
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := strings.Cut(ctl.Addresses().Heartbeat, ":")
		if got, want := ctl.HeartbeatURL(c.worker), strings.ReplaceAll(c.want, "PORT", port); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
		ctl.Close()
	}
}

func TestStatusDescribesWorkers(t *testing.T) {
	r := newRig(t)
	a := registration("a")
	r.asks(r.dial(zmq.Dealer, r.Addresses().Reply), (&lmcache.RegisterMsg{Registration: a}).Append(nil))
	r.asks(r.dial(zmq.Dealer, r.Addresses().Heartbeat), (&lmcache.HeartbeatMsg{Registration: a}).Append(nil))
	r.pushes(batch(a.Worker, 0, 1, 2).Append(nil), batch(lmcache.WorkerID{Instance: "b"}, 5, 1).Append(nil))
	want := []lmcache.WorkerStatus{
		{Instance: "a", IP: "127.0.0.1", Port: 22800, Registered: true, Keys: map[string]int{lmcache.LocationCPU: 2}, Sync: "none"},
		{Instance: "b", Keys: map[string]int{lmcache.LocationCPU: 1}, Sync: "none"},
	}
	got := r.Status()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(lmcache.WorkerStatus{}, "LastMessageSeconds", "LastHeartbeatSeconds")); diff != "" {
		t.Error(diff)
	}
	if got[0].LastHeartbeatSeconds == nil || got[1].LastHeartbeatSeconds != nil {
		t.Error("the heartbeat's age is told of the wrong worker")
	}
	if r.Heard("a").IsZero() || r.Heard("b").Before(r.Heard("a")) || !r.Heard("c").IsZero() {
		t.Errorf("heard of a %v, of b, the last, %v, of nobody %v", r.Heard("a"), r.Heard("b"), r.Heard("c"))
	}
	generation, instances := r.Instances()
	if len(instances) != 2 || instances[0].ID != "a" || len(instances[0].Workers) != 1 || len(instances[1].Workers) != 0 {
		t.Errorf("instances %+v", instances)
	}
	r.DropInstance("b")
	again, instances := r.Instances()
	if again == generation || len(instances) != 1 {
		t.Errorf("after the drop: generation %d then %d, %d instances", generation, again, len(instances))
	}
}

// Workers push from many goroutines while others read, drop and ask.
func TestManyWorkersAtOnce(t *testing.T) {
	r := newRig(t)
	const workers, batches = 8, 50
	var wg sync.WaitGroup
	for i := range workers {
		push, dealer := r.dial(zmq.Push, r.Addresses().Pull), r.dial(zmq.Dealer, r.Addresses().Reply)
		wg.Go(func() {
			g := registration(fmt.Sprintf("engine-%d", i))
			g.Port += i
			r.exchange(dealer, nil, (&lmcache.RegisterMsg{Registration: g}).Append(nil))
			for n := range batches {
				m := batch(g.Worker, int64(n), lmcache.Key(n+1)).Append(nil)
				r.eventually("room to push", func() bool { return push.Send(m) == nil })
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				r.Status()
				r.Instances()
				r.DropInstance("nobody")
			}
		}
	})
	wg.Wait()
	keys := make([]lmcache.Key, batches)
	for n := range keys {
		keys[n] = lmcache.Key(n + 1)
	}
	r.eventually("every report arriving", func() bool {
		for i := range workers {
			if r.holds(fmt.Sprintf("engine-%d", i), keys...) != batches {
				return false
			}
		}
		return true
	})
	close(stop)
	readers.Wait()
	for _, w := range r.Status() {
		if w.Gaps > 0 {
			t.Errorf("%s: %d gaps", w.Instance, w.Gaps)
		}
	}
}

// Answers must stay prompt while 200,000 operations come in each second, what
// some hundred engines report at their busiest.
func BenchmarkHeartbeatUnderLoad(b *testing.B) {
	r := newRig(b)
	a := registration("a")
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		keys := make([]lmcache.Key, 50)
		every := time.NewTicker(time.Millisecond)
		defer every.Stop()
		for seq := int64(0); ; {
			select {
			case <-stop:
				return
			case <-every.C:
			}
			for range 4 {
				for i := range keys {
					keys[i] = lmcache.Key(seq+int64(i)) % 500_000
				}
				_ = r.push.Send(batch(a.Worker, seq, keys...).Append(nil))
				seq += int64(len(keys))
			}
		}
	})
	benchmarkHeartbeats(b, r, a)
	close(stop)
	load.Wait()
}

// benchmarkHeartbeats asks again and again and reports how long answers take.
func benchmarkHeartbeats(b *testing.B, r *rig, a lmcache.Registration) {
	b.Helper()
	s := r.dial(zmq.Dealer, r.Addresses().Heartbeat)
	poller, err := r.ctx.NewPoller(s)
	if err != nil {
		b.Fatal(err)
	}
	defer poller.Close()
	request := (&lmcache.HeartbeatMsg{Registration: a}).Append(nil)
	r.exchange(s, nil, request)
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		if err := s.Send(nil, request); err != nil {
			b.Fatal(err)
		}
		if _, err := poller.Poll(patience); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

func BenchmarkController(b *testing.B) {
	r := newRig(b)
	a := registration("a")
	r.asks(r.dial(zmq.Dealer, r.Addresses().Reply), (&lmcache.RegisterMsg{Registration: a}).Append(nil))
	keys := make([]lmcache.Key, 50)
	seq := int64(0)
	begin := r.taken()
	parts := 0
	for b.Loop() {
		for i := range keys {
			keys[i] = lmcache.Key((seq+int64(i))%500_000) * 0x9e3779b97f4a7c15
		}
		m := batch(a.Worker, seq, keys...).Append(nil)
		seq += int64(len(keys))
		for errors.Is(r.push.Send(m), zmq.ErrAgain) {
			time.Sleep(10 * time.Microsecond)
		}
		parts++
	}
	for r.taken()-begin < parts || !r.Idle() {
		time.Sleep(10 * time.Microsecond)
	}
	b.ReportMetric(float64(seq)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(r.sum("firsttoken_lmcache_queue_overflows_total"), "overflows")
	if slices.ContainsFunc(r.Status(), func(w lmcache.WorkerStatus) bool { return w.Gaps > 0 }) {
		b.Error("reports got lost")
	}
}

// BenchmarkHeartbeatBesideHugeReports asks while reports of 7 MB are read, each
// what a worker sends that drops 170,000 chunks at once.
func BenchmarkHeartbeatBesideHugeReports(b *testing.B) {
	r := newRig(b)
	a := registration("a")
	keys := make([]lmcache.Key, 170_000)
	for i := range keys {
		keys[i] = lmcache.Key(i+1) * 0x9e3779b97f4a7c15
	}
	huge := batch(a.Worker, 0, keys...).Append(nil)
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			taken := r.taken()
			for errors.Is(r.push.Send(huge), zmq.ErrAgain) {
				time.Sleep(time.Millisecond)
			}
			for r.taken() == taken { // one at a time
				time.Sleep(time.Millisecond)
			}
		}
	})
	benchmarkHeartbeats(b, r, a)
	close(stop)
	load.Wait()
	b.ReportMetric(float64(len(huge))/1e6, "MB/report")
}
