package lmcache

import (
	"fmt"
	"time"
)

// Bounds and patience of a full sync.
const (
	// maxBatches is 131 million keys at LMCache's 2,000 per batch.
	maxBatches = 1 << 16
	// maxMissing bounds the batches named as missing in one answer; the worker
	// sends those and asks again.
	maxMissing = 1000
	// maxHeld is how many operations are kept back while a worker syncs. Its
	// cache is frozen meanwhile, so there are few.
	maxHeld = 20_000
	// syncPatience is how long a sync may go without any message of it. The
	// worker asks for the status every 5 s until it is done.
	syncPatience = 60 * time.Second
	// syncPause is the least time between two syncs of a worker: each freezes its
	// engine for seconds. Two engines under one instance id would otherwise ask
	// for one after the other.
	syncPause = time.Minute
	// maxAsked is after how many answers that name missing batches we give up:
	// the worker sends them again three times and then stays frozen for
	// minutes, unless told that it may go on.
	maxAsked = 4
)

// The states of a full sync, as Stats and metrics name them.
const (
	syncRunning   = "running"
	syncCompleted = "completed"
	syncFailed    = "failed"
	syncRefused   = "refused"
	syncStarted   = "started"
	syncWanted    = "wanted"
	syncNone      = "none"
)

// fullSync is a worker telling all keys of one location.
type fullSync struct {
	id       string
	location string
	state    string
	batches  []bool // by batch id: received
	missing  int
	ended    bool // the worker has sent all it has
	asked    int  // answers that named missing batches since the last progress
	started  time.Time
	activity time.Time
	// held are the operations that came meanwhile, in order; bounded by
	// maxHeld. What they say is newer than the batches.
	held []KVOp
}

// syncing says that the worker is in the middle of a full sync.
func (w *worker) syncing() bool { return w.sync != nil && w.sync.state == syncRunning }

// mustSync is why the worker's next full sync is due; empty where it is not.
func (w *worker) mustSync(now time.Time) string {
	if w.sync != nil && (w.syncing() || now.Sub(w.sync.started) < syncPause) {
		return ""
	}
	return w.needSync
}

// syncState is the worker's state for people.
func (w *worker) syncState() string {
	switch {
	case w.syncing():
		return syncRunning
	case w.needSync != "":
		return syncWanted
	case w.sync != nil:
		return w.sync.state
	}
	return syncNone
}

func (g *registry) syncStart(now time.Time, m *FullSyncStartMsg) Message {
	refuse := func(why string) Message {
		g.counts.syncs[syncRefused]++
		g.log.Warn("full sync refused", "instance", m.Worker.Instance, "worker", m.Worker.Worker, "sync", m.SyncID, "reason", why)
		return &FullSyncStartRetMsg{SyncID: m.SyncID, Error: "full sync refused: " + why}
	}
	w := g.seen(now, m.Worker)
	switch {
	case w == nil || w.provisional:
		return refuse("the worker is not registered; its next heartbeat registers it")
	case w.syncing() && w.sync.id != m.SyncID:
		return refuse("the worker is syncing under the id " + w.sync.id)
	case m.BatchCount > maxBatches:
		return refuse(fmt.Sprintf("%d batches, at most %d are taken", m.BatchCount, maxBatches))
	}
	w.needSync = ""
	w.sync = &fullSync{
		id: m.SyncID, location: m.Location, state: syncRunning,
		batches: make([]bool, m.BatchCount), missing: m.BatchCount, started: now, activity: now,
	}
	// The keys follow; where their reports are numbered is for the next report
	// to say.
	if w.streams[m.Location] != nil || len(w.streams) < maxStreams {
		w.streams[m.Location] = &stream{}
	}
	g.send(now, w, change{kind: changeClear, worker: m.Worker, location: m.Location})
	g.counts.syncs[syncStarted]++
	g.log.Info("full sync started", "instance", m.Worker.Instance, "worker", m.Worker.Worker,
		"sync", m.SyncID, "location", m.Location, "keys", m.TotalKeys, "batches", m.BatchCount)
	return &FullSyncStartRetMsg{SyncID: m.SyncID, Accepted: true}
}

// ofSync finds the worker whose running sync a message belongs to.
func (g *registry) ofSync(now time.Time, id WorkerID, syncID string) *worker {
	w := g.seen(now, id)
	if w == nil || !w.syncing() || w.sync.id != syncID {
		return nil
	}
	w.sync.activity = now
	return w
}

func (g *registry) syncBatch(now time.Time, m *FullSyncBatchMsg) {
	w := g.ofSync(now, m.Worker, m.SyncID)
	if w == nil || m.BatchID >= len(w.sync.batches) || w.sync.batches[m.BatchID] {
		return // of another sync, or sent twice
	}
	w.report = now
	w.sync.batches[m.BatchID] = true
	w.sync.missing--
	w.sync.asked = 0
	g.send(now, w, change{kind: changeAdmit, worker: m.Worker, location: w.sync.location, keys: m.Keys})
	g.syncFinish(w)
}

func (g *registry) syncEnd(now time.Time, m *FullSyncEndMsg) {
	if w := g.ofSync(now, m.Worker, m.SyncID); w != nil {
		w.sync.ended = true
		g.syncFinish(w)
	}
}

// syncHold keeps operations back until the sync has ended, whose batches they
// are newer than.
func (g *registry) syncHold(w *worker, ops []KVOp) {
	if len(w.sync.held)+len(ops) > maxHeld {
		g.counts.overflows++
		w.needSync = reasonOverflow
		return
	}
	w.sync.held = append(w.sync.held, ops...)
}

// syncFinish completes the sync once everything is there.
func (g *registry) syncFinish(w *worker) {
	if !w.sync.ended || w.sync.missing > 0 {
		return
	}
	g.counts.syncs[syncCompleted]++
	g.log.Info("full sync completed", "instance", w.Worker.Instance, "worker", w.Worker.Worker, "sync", w.sync.id)
	g.syncClose(w.sync.activity, w, syncCompleted)
}

// syncFail ends a sync that cannot complete. What it brought is true and stays.
func (g *registry) syncFail(now time.Time, w *worker, why string) {
	g.counts.syncs[syncFailed]++
	g.log.Warn("full sync failed; the worker's next heartbeat asks for another", "instance", w.Worker.Instance,
		"worker", w.Worker.Worker, "sync", w.sync.id, "missing_batches", w.sync.missing, "reason", why)
	g.syncClose(now, w, syncFailed)
	if w.needSync == "" {
		w.needSync = reasonRetry
	}
}

func (g *registry) syncClose(now time.Time, w *worker, state string) {
	w.sync.state = state
	if held := w.sync.held; len(held) > 0 {
		w.sync.held = nil
		g.send(now, w, change{kind: changeOps, worker: w.Worker, location: w.sync.location, ops: held})
	}
}

// syncStatus answers how far the sync is. The engine stores nothing until it
// may leave its freeze, so it may as soon as waiting brings nothing more.
func (g *registry) syncStatus(now time.Time, m *FullSyncStatusMsg) Message {
	answer := &FullSyncStatusRetMsg{SyncID: m.SyncID}
	if w := g.ofSync(now, m.Worker, m.SyncID); w != nil {
		// It asks seconds after it has sent all: where nothing is missing, only
		// the end got lost, which it would never send again.
		w.sync.ended = true
		g.syncFinish(w)
		for id, received := range w.sync.batches {
			if !received && len(answer.MissingBatches) < maxMissing {
				answer.MissingBatches = append(answer.MissingBatches, id)
			}
		}
		if len(answer.MissingBatches) > 0 {
			if w.sync.asked++; w.sync.asked > maxAsked {
				g.syncFail(now, w, "batches stayed missing")
				answer.MissingBatches = nil
			}
		}
	}
	w := g.workers[m.Worker]
	answer.CanExitFreeze = w == nil || !w.syncing() || w.sync.id != m.SyncID
	answer.Complete = w != nil && w.sync != nil && w.sync.id == m.SyncID && w.sync.state == syncCompleted
	answer.GlobalProgress = g.progress()
	return answer
}

// progress is the share of registered workers that need no sync.
func (g *registry) progress() float64 {
	ready, all := 0, 0
	for _, w := range g.workers {
		if w.provisional {
			continue
		}
		all++
		if state := w.syncState(); state == syncNone || state == syncCompleted {
			ready++
		}
	}
	if all == 0 {
		return 0
	}
	return float64(ready) / float64(all)
}
