package lmcache

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	cpu  = LocationCPU
	disk = "LocalDiskBackend"
)

// bench is a registry on an Index of its own, with a clock that stands still.
type bench struct {
	*testing.T
	*registry
	index *Index
	now   time.Time
	logs  strings.Builder
	// full makes the queue refuse everything.
	full bool
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, index: NewIndex(IndexConfig{MaxKeys: 1000}), now: time.Unix(1_800_000_000, 0)}
	b.registry = newRegistry(slog.New(slog.NewTextHandler(&b.logs, nil)), 30*time.Second, 2*time.Minute)
	b.emit = func(c change) bool {
		if !b.full {
			apply(b.index, c, nil)
		}
		return !b.full
	}
	b.match = b.index.Match
	b.heartbeatURL = func(ip string) string { return ip + ":8500" }
	return b
}

func worker0(instance string) WorkerID { return WorkerID{Instance: instance} }

func at(id WorkerID, ip string, port int) Registration {
	return Registration{Worker: id, IP: ip, Port: port}
}

// ops makes operations numbered from seq; negative keys are evictions.
func ops(seq int64, keys ...int) []KVOp {
	out := make([]KVOp, len(keys))
	for i, k := range keys {
		out[i] = KVOp{Key: SignedKey(Key(max(k, -k))), Seq: seq + int64(i), Evict: k < 0}
	}
	return out
}

func (b *bench) reports(id WorkerID, location string, operations []KVOp) {
	b.Helper()
	if answer := b.handle(b.now, &BatchedKVOperationMsg{id, location, operations}, false); answer != nil {
		b.Fatalf("a report was answered: %#v", answer)
	}
}

// asks sends a heartbeat as era D does and returns the reason of the full sync
// asked for; empty: none.
func (b *bench) asks(r Registration) string {
	b.Helper()
	answer, ok := b.handle(b.now, &HeartbeatMsg{r}, true).(*HeartbeatRetMsg)
	if !ok {
		b.Fatal("a heartbeat got no HeartbeatRetMsg")
	}
	if len(answer.Commands) == 0 {
		return ""
	}
	if answer.Commands[0].Type != CommandFullSync || len(answer.Commands) > 1 {
		b.Fatalf("commands %v", answer.Commands)
	}
	return answer.Commands[0].Reason
}

// holds is the run of keys from 1 on that the instance holds.
func (b *bench) holds(instance string) int {
	keys := make([]Key, 50)
	for i := range keys {
		keys[i] = Key(i + 1)
	}
	return b.index.Match(nil, keys, []string{instance})[0].Chunks
}

func (b *bench) wantHolds(instance string, want int) {
	b.Helper()
	if got := b.holds(instance); got != want {
		b.Errorf("%s holds %d chunks, want %d", instance, got, want)
	}
}

func (b *bench) wantAsks(r Registration, want string) {
	b.Helper()
	if got := b.asks(r); got != want {
		b.Errorf("heartbeat of %v: full sync asked for %q, want %q", r.Worker, got, want)
	}
}

// A worker that we saw register starts with an empty cache and reports from
// then on: freezing its engine for a full sync would gain nothing.
func TestRegisteredWorkerNeedsNoSync(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	answer := b.handle(b.now, &RegisterMsg{a}, true)
	if diff := cmp.Diff(&RegisterRetMsg{map[string]string{"heartbeat_url": "10.0.0.1:8500"}}, answer); diff != "" {
		t.Error(diff)
	}
	b.reports(a.Worker, cpu, ops(0, 1, 2, 3, -3))
	b.wantHolds("a", 2)
	b.wantAsks(a, "")
}

func TestRegisterWithoutHeartbeatSocketTellsNone(t *testing.T) {
	b := newBench(t)
	b.heartbeatURL = func(string) string { return "" }
	answer := b.handle(b.now, &RegisterMsg{at(worker0("a"), "10.0.0.1", 1)}, true)
	if diff := cmp.Diff(&RegisterRetMsg{}, answer, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

// "Duplicate RegisterMsg (same instance+worker): clear all its KV + seq state,
// answer OK".
func TestRegisteringAgainIsAnEngineRestart(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.reports(a.Worker, cpu, ops(0, 1, 2, 3))
	a.IP, a.Port = "10.0.0.2", 8002
	b.handle(b.now, &RegisterMsg{a}, true)
	b.wantHolds("a", 0)
	if w := b.workers[a.Worker]; w.IP != "10.0.0.2" || w.Port != 8002 {
		t.Errorf("address %s:%d was not updated", w.IP, w.Port)
	}
	b.reports(a.Worker, cpu, ops(0, 1))
	b.wantHolds("a", 1)
	b.wantAsks(a, "")
}

// "Reports from an unregistered worker … keep under a provisional worker (heals
// lost registrations)".
func TestReportsBeforeRegistrationAreKept(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.reports(a.Worker, cpu, ops(700, 1, 2))
	b.wantHolds("a", 2)
	if b.counts.gaps != 0 {
		t.Error("numbers that begin before us are no gap")
	}
	// Era C: the heartbeat comes on PULL, nobody reads an answer.
	b.handle(b.now, &HeartbeatMsg{a}, false)
	b.wantHolds("a", 2)
	if got := b.instances(); len(got) != 1 || len(got[0].Workers) != 1 {
		t.Errorf("instances %v", got)
	}
	// The same from era D asks for the rest.
	b.reports(worker0("d"), cpu, ops(700, 1, 2))
	b.wantAsks(at(worker0("d"), "10.0.0.2", 8001), reasonRestart)
	b.wantHolds("d", 2)
}

// "unknown worker -> register from the heartbeat's fields + command
// full_sync(reason "worker_re_registered")", again until the sync starts.
func TestHeartbeatOfAnUnknownWorkerRegistersIt(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.wantAsks(a, reasonReRegistered)
	b.wantAsks(a, reasonReRegistered)
	b.fullSync(a.Worker, "s1", []int{1, 2}, []int{3})
	b.wantHolds("a", 3)
	b.wantAsks(a, "")
}

// fullSync runs a whole sync without incident.
func (b *bench) fullSync(id WorkerID, syncID string, batches ...[]int) {
	b.Helper()
	b.start(id, syncID, len(batches), true)
	for i, keys := range batches {
		b.batch(id, syncID, i, keys...)
	}
	b.end(id, syncID)
	if s := b.status(id, syncID); !s.Complete || !s.CanExitFreeze || len(s.MissingBatches) > 0 {
		b.Fatalf("after a whole sync: %+v", s)
	}
}

func (b *bench) start(id WorkerID, syncID string, batches int, accepted bool) {
	b.Helper()
	answer := b.handle(b.now, &FullSyncStartMsg{id, cpu, syncID, 0, batches}, true).(*FullSyncStartRetMsg)
	if answer.Accepted != accepted || answer.SyncID != syncID || (answer.Error == "") != accepted {
		b.Fatalf("start of %s: %+v, want accepted %t", syncID, answer, accepted)
	}
}

func (b *bench) batch(id WorkerID, syncID string, batchID int, keys ...int) {
	wire := make([]WireKey, len(keys))
	for i, k := range keys {
		wire[i] = SignedKey(Key(k))
	}
	b.handle(b.now, &FullSyncBatchMsg{id, cpu, syncID, batchID, wire}, false)
}

func (b *bench) end(id WorkerID, syncID string) {
	b.handle(b.now, &FullSyncEndMsg{id, cpu, syncID, 0}, false)
}

func (b *bench) status(id WorkerID, syncID string) *FullSyncStatusRetMsg {
	return b.handle(b.now, &FullSyncStatusMsg{id, syncID}, true).(*FullSyncStatusRetMsg)
}

func TestFullSyncHoldsBackWhatComesMeanwhile(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.reports(a.Worker, cpu, ops(0, 1, 40))
	b.reports(a.Worker, disk, ops(0, 5))
	b.start(a.Worker, "s1", 2, true)
	b.wantHolds("a", 0) // start clears the location
	b.reports(a.Worker, cpu, ops(2, 4, -2))
	b.batch(a.Worker, "s1", 1, 3)
	b.batch(a.Worker, "s1", 0, 1, 2)
	b.wantHolds("a", 3) // 4 and the eviction of 2 wait
	b.end(a.Worker, "s1")
	b.wantHolds("a", 1) // 2 was evicted after the keys were listed
	b.reports(a.Worker, cpu, ops(4, 2))
	b.wantHolds("a", 5) // 4 was stored meanwhile, 5 is on disk all along
	if b.counts.gaps != 0 {
		t.Errorf("%d gaps", b.counts.gaps)
	}
}

func TestFullSyncNamesMissingBatches(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.asks(a)
	b.start(a.Worker, "s1", 3, true)
	b.batch(a.Worker, "s1", 1, 2)
	b.batch(a.Worker, "s1", 1, 2) // "batches are idempotent by batch_id"
	b.end(a.Worker, "s1")
	if diff := cmp.Diff(&FullSyncStatusRetMsg{SyncID: "s1", MissingBatches: []int{0, 2}}, b.status(a.Worker, "s1")); diff != "" {
		t.Error(diff)
	}
	b.batch(a.Worker, "s1", 0, 1)
	b.batch(a.Worker, "s1", 2, 3)
	// It completes without waiting for the end to be sent again.
	if diff := cmp.Diff(&FullSyncStatusRetMsg{SyncID: "s1", Complete: true, GlobalProgress: 1, CanExitFreeze: true}, b.status(a.Worker, "s1")); diff != "" {
		t.Error(diff)
	}
	b.wantHolds("a", 3)
}

func TestFullSyncRefuses(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.start(a.Worker, "s1", 1, false) // unknown worker
	b.reports(worker0("p"), cpu, ops(0, 1))
	b.start(worker0("p"), "s1", 1, false) // provisional worker
	b.handle(b.now, &RegisterMsg{a}, true)
	b.start(a.Worker, "huge", 1<<30, false)
	b.start(a.Worker, "s1", 2, true)
	b.batch(a.Worker, "s1", 0, 1)
	b.start(a.Worker, "s2", 1, false) // "already syncing with different sync_id"
	b.start(a.Worker, "s1", 2, true)  // the answer was lost and it asks again
	if s := b.status(a.Worker, "s1"); len(s.MissingBatches) != 2 {
		t.Errorf("a start repeated begins anew: %+v", s)
	}
	b.batch(a.Worker, "other", 0, 9)
	b.batch(a.Worker, "s1", 7, 9)
	b.wantHolds("a", 0)
}

// A worker repeats the end only together with missing batches.
func TestFullSyncWhoseEndGotLost(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.asks(a)
	b.start(a.Worker, "s1", 1, true)
	b.batch(a.Worker, "s1", 0, 1)
	if s := b.status(a.Worker, "s1"); !s.Complete || !s.CanExitFreeze {
		t.Errorf("%+v", s)
	}
}

// A frozen engine stores nothing: where waiting brings nothing, it may go on.
func TestFullSyncLetsTheEngineGo(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	if s := b.status(a.Worker, "of an earlier run of ours"); s.Complete || !s.CanExitFreeze {
		t.Errorf("unknown sync: %+v", s)
	}
	b.asks(a)
	b.start(a.Worker, "s1", 2, true)
	b.batch(a.Worker, "s1", 0, 1)
	b.end(a.Worker, "s1")
	for range maxAsked {
		if s := b.status(a.Worker, "s1"); s.CanExitFreeze || len(s.MissingBatches) != 1 {
			t.Fatalf("%+v", s)
		}
	}
	if s := b.status(a.Worker, "s1"); !s.CanExitFreeze || s.Complete {
		t.Errorf("a batch that never comes: %+v", s)
	}
	b.wantHolds("a", 1) // what came stays
	b.now = b.now.Add(syncPause)
	b.wantAsks(a, reasonRetry)
}

func TestFullSyncThatGetsStuckIsTriedAgain(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.asks(a)
	b.start(a.Worker, "s1", 1, true)
	b.reports(a.Worker, cpu, ops(3, 1))
	for range 7 {
		b.now = b.now.Add(10 * time.Second)
		b.wantAsks(a, "") // it is syncing
	}
	b.check(b.now)
	b.wantAsks(a, reasonRetry)
	b.wantHolds("a", 1) // what was held back came to the index
}

func TestGapAsksForFullSync(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.reports(a.Worker, cpu, ops(0, 1))
	b.reports(a.Worker, cpu, ops(1, 2))
	b.reports(a.Worker, disk, ops(5, 9)) // a full sync would not tell disk keys
	b.wantAsks(a, "")
	b.reports(a.Worker, cpu, ops(4, 3))
	b.wantHolds("a", 3)
	b.wantAsks(a, reasonGap)
	if b.counts.gaps != 2 || b.counts.lost != 7 || b.workers[a.Worker].gaps != 2 {
		t.Errorf("counts %+v", b.counts)
	}
	b.fullSync(a.Worker, "s1", []int{1, 2, 3, 4})
	b.wantAsks(a, "")
	b.reports(a.Worker, cpu, ops(90, 5)) // numbering is taken up wherever it is
	b.wantAsks(a, "")
	b.wantHolds("a", 5)
}

func TestLostFirstReportIsAGap(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.reports(a.Worker, cpu, ops(3, 1))
	b.wantAsks(a, reasonGap)
}

func TestRepeatedReportsAreSkipped(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.reports(a.Worker, cpu, ops(0, 1, 2, 3))
	b.reports(a.Worker, cpu, ops(3, -3))
	b.reports(a.Worker, cpu, ops(2, 3)) // came before
	b.wantHolds("a", 2)
	if b.counts.repeated != 1 || b.counts.gaps != 0 {
		t.Errorf("counts %+v", b.counts)
	}
	b.reports(a.Worker, cpu, ops(4, 3))
	b.wantHolds("a", 3)
}

// The engine restarted and its registration got lost: old keys are gone.
func TestNumberingThatBeginsAnewClears(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 8001)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.reports(a.Worker, cpu, ops(0, 1, 2, 3))
	b.reports(a.Worker, cpu, ops(0, 1))
	b.wantHolds("a", 1)
	// Its first reports got lost too: going back once may be a repetition,
	// twice is not.
	b.reports(a.Worker, cpu, ops(1, 2, 3, 4, 5, 6))
	b.reports(a.Worker, cpu, ops(2, 7))
	b.wantHolds("a", 6)
	b.reports(a.Worker, cpu, ops(3, 1, 3))
	b.wantHolds("a", 1)
	b.wantAsks(a, reasonGap)
}

func TestOldErasReportOneKeyAMessage(t *testing.T) {
	b := newBench(t)
	r := Registration{Worker: worker0("old"), IP: "10.0.0.1", Port: 8001, PeerURL: "10.0.0.1:9001", Distributed: true}
	b.handle(b.now, &RegisterMsg{r}, false)
	for _, k := range []Key{1, 2, 3} {
		b.handle(b.now, &KVAdmitMsg{KVOperation{r.Worker, SignedKey(k), cpu, NoSeq}}, false)
	}
	b.handle(b.now, &KVEvictMsg{KVOperation{r.Worker, SignedKey(3), cpu, 0}}, false)
	b.wantHolds("old", 2)
	b.handle(b.now, &DeRegisterMsg{r.Worker, r.IP, r.Port}, false)
	b.wantHolds("old", 0)
	if len(b.instances()) != 0 {
		t.Error("a deregistered instance is still listed")
	}
}

// "reap only workers that have heartbeat before": LMCache's default is none.
func TestOnlyLostHeartbeatsDropAWorker(t *testing.T) {
	b := newBench(t)
	quiet, beating := at(worker0("quiet"), "10.0.0.1", 1), at(worker0("beating"), "10.0.0.2", 1)
	for _, r := range []Registration{quiet, beating} {
		b.handle(b.now, &RegisterMsg{r}, true)
		b.reports(r.Worker, cpu, ops(0, 1))
	}
	b.asks(beating)
	b.now = b.now.Add(29 * time.Second)
	b.reports(beating.Worker, cpu, ops(1, 2)) // a sign of life
	b.now = b.now.Add(29 * time.Second)
	b.check(b.now)
	b.wantHolds("beating", 2)
	b.now = b.now.Add(2 * time.Second)
	b.check(b.now)
	b.wantHolds("beating", 0)
	b.now = b.now.Add(24 * time.Hour)
	b.check(b.now)
	b.wantHolds("quiet", 1)
	b.wantAsks(beating, reasonReRegistered)
}

// Who sends no heartbeats and belongs to no endpoint is forgotten after an hour
// of silence; who has an endpoint never, and nobody as long as it is not known
// who has one.
func TestSilentWorkersWithoutEndpointAreForgotten(t *testing.T) {
	b := newBench(t)
	for i, name := range []string{"ours", "stray", "reporting"} {
		b.handle(b.now, &RegisterMsg{at(worker0(name), "10.0.0.1", 1+i)}, true)
		b.reports(worker0(name), cpu, ops(0, 1))
	}
	b.reports(worker0("provisional"), cpu, ops(0, 1))
	b.now = b.now.Add(unclaimedPatience + time.Second)
	b.reports(worker0("reporting"), cpu, ops(1, 2))
	b.check(b.now)
	if len(b.workers) != 4 {
		t.Fatalf("%d workers before anybody told of endpoints, want all 4", len(b.workers))
	}
	b.claim(b.generation-1, map[string]bool{})
	b.check(b.now)
	if len(b.workers) != 4 {
		t.Fatalf("%d workers after a claim that is out of date, want all 4", len(b.workers))
	}
	b.claim(b.generation, map[string]bool{"ours": true})
	b.check(b.now)
	b.wantHolds("ours", 1)
	b.wantHolds("stray", 0)
	b.wantHolds("provisional", 0)
	b.wantHolds("reporting", 2)
	if n := b.counts.dropped[droppedUnclaimed]; len(b.workers) != 2 || n != 2 {
		t.Errorf("%d workers left, %d counted as dropped, want 2 and 2", len(b.workers), n)
	}
}

func TestRareHeartbeatsAreNoLoss(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 1)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.asks(a)
	b.now = b.now.Add(25 * time.Second)
	b.asks(a)
	b.now = b.now.Add(70 * time.Second) // less than three times 25 s
	b.check(b.now)
	b.wantAsks(a, "")
}

func TestNewerInstanceAtTheAddressDropsTheOlder(t *testing.T) {
	b := newBench(t)
	old, other := at(worker0("old"), "10.0.0.1", 8001), at(worker0("other"), "10.0.0.1", 8002)
	for _, r := range []Registration{old, other} {
		b.handle(b.now, &RegisterMsg{r}, true)
		b.reports(r.Worker, cpu, ops(0, 1))
	}
	b.reports(WorkerID{"old", 1}, cpu, ops(0, 1)) // a rank of it at another port
	b.handle(b.now, &RegisterMsg{at(worker0("new"), "10.0.0.1", 8001)}, true)
	b.wantHolds("old", 0)
	b.wantHolds("other", 1)
	var names []string
	for _, in := range b.instances() {
		names = append(names, in.ID)
	}
	if diff := cmp.Diff([]string{"other", "new"}, names); diff != "" {
		t.Error(diff)
	}
}

// Engines that cannot tell their own address all say 127.0.0.1; their
// heartbeats must not drop each other.
func TestHeartbeatTakesAnAddressOnlyFromTheSilent(t *testing.T) {
	b := newBench(t)
	first, second := at(worker0("first"), "127.0.0.1", 8001), at(worker0("second"), "127.0.0.1", 8001)
	b.asks(first)
	b.asks(second)
	b.wantAsks(first, reasonReRegistered)
	if len(b.workers) != 2 {
		t.Fatalf("%d workers, want 2", len(b.workers))
	}
	b.now = b.now.Add(time.Minute)
	b.asks(at(worker0("third"), "127.0.0.1", 8001))
	if len(b.workers) != 1 {
		t.Errorf("%d workers, want the newest", len(b.workers))
	}
}

func TestTwoEnginesUnderOneIDAreNamed(t *testing.T) {
	b := newBench(t)
	for range 3 {
		b.asks(at(worker0("a"), "10.0.0.1", 1))
		b.asks(at(worker0("a"), "10.0.0.2", 1))
	}
	if n := strings.Count(b.logs.String(), "same lmcache_instance_id"); n != 1 {
		t.Errorf("%d warnings in one moment, want 1:\n%s", n, b.logs.String())
	}
}

// "detect "registered, no report, no heartbeat" and say so", once.
func TestSilentWorkerIsNamed(t *testing.T) {
	b := newBench(t)
	b.handle(b.now, &RegisterMsg{at(worker0("mute"), "10.0.0.1", 1)}, true)
	b.handle(b.now, &RegisterMsg{at(worker0("talks"), "10.0.0.2", 1)}, true)
	b.reports(worker0("talks"), cpu, ops(0, 1))
	for range 3 {
		b.now = b.now.Add(2 * time.Minute)
		b.check(b.now)
	}
	if n := strings.Count(b.logs.String(), "neither report nor heartbeat"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, b.logs.String())
	}
	if !b.workers[worker0("mute")].silent || b.workers[worker0("talks")].silent {
		t.Error("silent is told of the wrong worker")
	}
	if n := b.silent(); n != 1 {
		t.Errorf("%d silent workers counted, want 1", n)
	}
	b.reports(worker0("mute"), cpu, ops(0, 1))
	if b.workers[worker0("mute")].silent || b.silent() != 0 {
		t.Error("a worker that reports is not silent")
	}
}

func TestOverflowAsksForFullSync(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 1)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.full = true
	b.reports(a.Worker, cpu, ops(0, 1))
	b.full = false
	b.wantHolds("a", 0)
	b.wantAsks(a, reasonOverflow)
	if b.counts.overflows != 1 {
		t.Errorf("%d overflows counted", b.counts.overflows)
	}
	b.fullSync(a.Worker, "s1", []int{1})
	b.wantAsks(a, "")
}

// A batch that found no room leaves the sync wanted, though it completes.
func TestOverflowDuringFullSyncAsksForAnother(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 1)
	b.asks(a)
	b.start(a.Worker, "s1", 1, true)
	b.full = true
	b.batch(a.Worker, "s1", 0, 1)
	b.full = false
	b.end(a.Worker, "s1")
	b.wantAsks(a, "") // each sync freezes the engine: not one after the other
	b.now = b.now.Add(syncPause)
	b.wantAsks(a, reasonOverflow)
}

// What is held back while a worker syncs is bounded; past it the worker has to
// say all again.
func TestReportsHeldDuringFullSyncAreBounded(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 1)
	b.asks(a)
	b.start(a.Worker, "s1", 0, true)
	keys := make([]int, maxHeld)
	for i := range keys {
		keys[i] = i%40 + 1
	}
	b.reports(a.Worker, cpu, ops(0, keys...))
	b.reports(a.Worker, cpu, ops(maxHeld, 41))
	if held := len(b.workers[a.Worker].sync.held); held != maxHeld || b.counts.overflows != 1 {
		t.Errorf("%d held, %d overflows; want %d and 1", held, b.counts.overflows, maxHeld)
	}
	b.end(a.Worker, "s1")
	b.wantHolds("a", 40)
	b.now = b.now.Add(syncPause)
	b.wantAsks(a, reasonOverflow)
}

func TestP2PLookup(t *testing.T) {
	b := newBench(t)
	register := func(name string, rank int, url string, keys ...int) {
		r := at(WorkerID{name, rank}, "10.0.0."+name, 8000+rank)
		r.PeerURL = url
		b.handle(b.now, &RegisterMsg{r}, true)
		b.reports(r.Worker, cpu, ops(0, keys...))
	}
	register("1", 0, "one:1", 1, 2)
	register("2", 0, "two:1", 1, 2, 3)
	register("3", 0, "", 1, 2, 3, 4)
	register("4", 1, "four:1", 1, 2, 3, 4)
	ask := func(instance string, keys ...Key) P2PHit {
		t.Helper()
		wire := make([]WireKey, len(keys))
		for i, k := range keys {
			wire[i] = SignedKey(k)
		}
		answer := b.handle(b.now, &BatchedP2PLookupMsg{wire, worker0(instance)}, true).(*BatchedP2PLookupRetMsg)
		if len(answer.LayoutInfo) != 1 {
			t.Fatalf("%+v", answer)
		}
		return answer.LayoutInfo[0]
	}
	for _, c := range []struct {
		asker string
		keys  []Key
		want  P2PHit
	}{
		{"9", []Key{1, 2, 3, 4}, P2PHit{"2", cpu, 3, "two:1"}}, // the longest that can be fetched by this rank
		{"2", []Key{1, 2, 3, 4}, P2PHit{"1", cpu, 2, "one:1"}}, // never the asker
		{"9", []Key{1, 2}, P2PHit{"1", cpu, 2, "one:1"}},       // of equals, who registered first
		{"9", []Key{42}, P2PHit{}},
		{"9", nil, P2PHit{}},
	} {
		if got := ask(c.asker, c.keys...); got != c.want {
			t.Errorf("%s asks for %v: %+v, want %+v", c.asker, c.keys, got, c.want)
		}
	}
}

func TestWhatIsNoRequestGetsAnError(t *testing.T) {
	b := newBench(t)
	for _, m := range []Message{&BatchedKVOperationMsg{}, &HeartbeatRetMsg{}, &DeRegisterMsg{}} {
		if _, ok := b.handle(b.now, m, true).(*ErrorMsg); !ok {
			t.Errorf("%s on a socket that answers: no ErrorMsg", m.Type())
		}
	}
	if len(b.workers) != 0 {
		t.Error("a refused message left a worker behind")
	}
}

func TestStrangersCannotFillTheRegistry(t *testing.T) {
	b := newBench(t)
	for i := range maxWorkers + 10 {
		b.handle(b.now, &RegisterMsg{at(WorkerID{"x", i}, "", 0)}, true)
	}
	if len(b.workers) != maxWorkers || b.counts.ignored != 10 {
		t.Errorf("%d workers, %d ignored", len(b.workers), b.counts.ignored)
	}
	b.wantAsks(at(worker0("late"), "10.0.0.1", 1), "")
	b.reports(worker0("later"), cpu, ops(0, 1))
}

func TestDroppedInstanceIsForgotten(t *testing.T) {
	b := newBench(t)
	a := at(worker0("a"), "10.0.0.1", 1)
	b.handle(b.now, &RegisterMsg{a}, true)
	b.reports(a.Worker, cpu, ops(0, 1))
	b.dropInstance(b.now, "a", droppedEndpoint)
	b.wantHolds("a", 0)
	if len(b.instances()) != 0 {
		t.Error("still listed")
	}
	b.wantAsks(a, reasonReRegistered)
}

// Whatever comes in whatever order, nothing panics and the worker's own state
// stays consistent with what Status and Instances say.
func FuzzRegistry(f *testing.F) {
	a := at(worker0("a"), "10.0.0.1", 1)
	whole := []Message{
		&RegisterMsg{a}, &BatchedKVOperationMsg{a.Worker, cpu, ops(0, 1, 2)}, &HeartbeatMsg{a},
		&FullSyncStartMsg{a.Worker, cpu, "s", 2, 2}, &FullSyncBatchMsg{a.Worker, cpu, "s", 1, nil}, &FullSyncEndMsg{a.Worker, cpu, "s", 2},
		&FullSyncStatusMsg{a.Worker, "s"}, &DeRegisterMsg{a.Worker, a.IP, a.Port}, &BatchedP2PLookupMsg{nil, a.Worker},
	}
	// Short scripts: the fuzzer spends its time making long ones shorter.
	for i := range whole[1:] {
		var script []byte
		for _, m := range whole[i : i+2] {
			b := m.Append(nil)
			script = append(append(script, 1, byte(len(b))), b...)
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		b := newBench(t)
		for len(script) > 2 {
			flags, n := script[0], min(int(script[1]), len(script)-2)
			frame := script[2 : 2+n]
			script = script[2+n:]
			b.full = flags&2 != 0
			b.now = b.now.Add(time.Duration(flags>>2) * time.Second)
			if m, err := Decode(frame); err == nil {
				answer := b.handle(b.now, m, flags&1 != 0)
				if flags&1 != 0 && answer == nil {
					t.Fatalf("%#v got no answer", m)
				}
			}
			b.check(b.now)
		}
		listed := 0
		for _, in := range b.instances() {
			listed += len(in.Workers)
		}
		for id, w := range b.workers {
			if w.Worker != id {
				t.Errorf("worker %v is filed under %v", w.Worker, id)
			}
			if w.provisional {
				listed++
			}
		}
		if listed != len(b.workers) {
			t.Errorf("%d of %d workers are listed", listed, len(b.workers))
		}
	})
}
