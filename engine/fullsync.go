package engine

import (
	"strconv"
	"time"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/simulator"
)

// fullSync tells the controller everything that the host tier holds, after the
// controller has said in a heartbeat's answer that it lost track. The tier
// stands still meanwhile. It belongs to the worker's goroutine.
type fullSync struct {
	id      string
	keys    []lmcache.WireKey
	next    time.Time // when the next try is due
	tries   int       // of the present phase
	sent    bool      // the batches are out; false: the controller has not agreed yet
	resends int
}

// newFullSync freezes the host tier. Its changes so far are queued before, so
// the controller gets them first.
func newFullSync(w *worker, now time.Time, reason string) *fullSync {
	held := w.loop.freeze()
	s := &fullSync{id: w.id.Instance + "-" + strconv.FormatInt(now.UnixNano(), 36), next: now}
	for _, k := range held {
		s.keys = append(s.keys, w.wire(lmcache.Key(k)))
	}
	w.log.Info("LMCache full sync", "reason", reason, "keys", len(held))
	return s
}

func (s *fullSync) batches() int { return (len(s.keys) + syncBatch - 1) / syncBatch }

// act asks again where an answer is overdue, and tells how long nothing is due.
func (s *fullSync) act(w *worker, now time.Time) time.Duration {
	if now.Before(s.next) {
		return s.next.Sub(now)
	}
	s.tries++
	switch {
	case !s.sent && s.tries <= startTries:
		s.next = now.Add(startAgain)
		w.ask(w.reply, &lmcache.FullSyncStartMsg{
			Worker: w.id, Location: lmcache.LocationCPU, SyncID: s.id, TotalKeys: len(s.keys), BatchCount: s.batches(),
		})
	case s.sent && s.tries <= statusTries:
		s.next = now.Add(statusEvery)
		w.ask(w.reply, &lmcache.FullSyncStatusMsg{Worker: w.id, SyncID: s.id})
	default:
		w.log.Warn("LMCache full sync given up", "batches_sent", s.sent)
		s.finish(w)
		return 0
	}
	return s.next.Sub(now)
}

// started sends all batches once the controller agrees. s may be nil.
func (s *fullSync) started(w *worker, m *lmcache.FullSyncStartRetMsg, now time.Time) {
	if s == nil || s.sent || m.SyncID != s.id {
		return
	}
	if !m.Accepted {
		w.log.Warn("LMCache full sync refused", "reason", m.Error)
		return // act tries again
	}
	s.sent, s.tries, s.next = true, 0, now.Add(statusEvery)
	for i := range s.batches() {
		s.batch(w, i)
	}
	s.end(w)
}

func (s *fullSync) batch(w *worker, i int) {
	m := lmcache.FullSyncBatchMsg{
		Worker: w.id, Location: lmcache.LocationCPU, SyncID: s.id, BatchID: i,
		Keys: s.keys[i*syncBatch : min((i+1)*syncBatch, len(s.keys))],
	}
	w.outbox = append(w.outbox, m.Append(nil))
}

func (s *fullSync) end(w *worker) {
	m := lmcache.FullSyncEndMsg{Worker: w.id, Location: lmcache.LocationCPU, SyncID: s.id, ActualTotalKeys: len(s.keys)}
	w.outbox = append(w.outbox, m.Append(nil))
}

// status ends the sync when the controller has everything, or sends again what
// got lost. s may be nil.
func (s *fullSync) status(w *worker, m *lmcache.FullSyncStatusRetMsg) {
	if s == nil || !s.sent || m.SyncID != s.id {
		return
	}
	if m.CanExitFreeze {
		s.finish(w)
		return
	}
	if len(m.MissingBatches) == 0 || s.resends == resendTries || len(w.outbox) > 0 {
		return
	}
	s.resends++
	for _, i := range m.MissingBatches {
		if i >= 0 && i < s.batches() {
			s.batch(w, i)
		}
	}
	s.end(w)
}

func (s *fullSync) finish(w *worker) {
	w.loop.thaw()
	w.sync = nil
}

// chunkKeys are the names of a prompt's chunks in the host tier.
func chunkKeys(h *lmcache.Hasher, ids []uint32) []simulator.Key {
	if h == nil {
		return nil
	}
	keys := h.Keys(nil, ids)
	chunks := make([]simulator.Key, len(keys))
	for i, k := range keys {
		chunks[i] = simulator.Key(k)
	}
	return chunks
}
