package lmcache

import (
	"log/slog"
	"maps"
	"time"
)

// Bounds on what strangers can make the registry remember.
const (
	// maxWorkers is far above any fleet: 4,096 instances with 4 ranks each.
	maxWorkers = 16384
	// maxStreams is the number of locations of one worker whose sequence
	// numbers are followed; real workers have two.
	maxStreams = 16
	// unclaimedPatience is how long a worker that belongs to no endpoint may be
	// silent before it is forgotten. An idle engine says nothing for hours; one
	// that nobody routes to for so long is a test's, or of a fleet that is gone.
	unclaimedPatience = time.Hour
)

// The reasons for a full sync, as LMCache's own controller words them; the
// last two are ours.
const (
	reasonReRegistered = "worker_re_registered"
	reasonRestart      = "controller_restart"
	reasonRetry        = "sync_failed_retry"
	reasonGap          = "reports_lost"
	reasonOverflow     = "controller_overloaded"
)

// Why a worker is dropped, as logs and metrics name it.
const (
	droppedDeregistered = "deregistered"
	droppedTimeout      = "heartbeats_stopped"
	droppedSuperseded   = "superseded"
	droppedEndpoint     = "endpoint_removed"
	droppedUnclaimed    = "no_endpoint"
)

// registry is the controller's state machine: which workers there are, what
// each has said last, and what it is to be told. It has no clock, socket or
// goroutine; it is not safe for concurrent use. What concerns keys leaves by
// emit, in order.
type registry struct {
	log *slog.Logger
	// emit hands a change to the Index; false: there is no room for it now.
	emit func(change) bool
	// match is Index.Match.
	match func(dst []Held, keys []Key, instances []string) []Held
	// heartbeatURL is the "host:port" that a worker at ip is told to send
	// heartbeats to; empty: none.
	heartbeatURL func(ip string) string
	// timeout is how long a worker that has sent heartbeats may be silent.
	timeout time.Duration
	// silence is how long a registered worker may say nothing before it is
	// reported as probably broken.
	silence time.Duration

	// workers is bounded by maxWorkers.
	workers map[WorkerID]*worker
	// order is the number of registrations so far.
	order uint64
	// generation counts changes of who is registered where.
	generation uint64
	// claimed are the instances that belonged to an endpoint at the generation
	// claimedAt; nil: nobody has told yet.
	claimed   map[string]bool
	claimedAt uint64
	counts    counts
	// lossLog and moveLog keep what may happen with every message from flooding
	// the log.
	lossLog, moveLog throttle
}

// counts are totals since start.
type counts struct {
	gaps      uint64            // reports that were not gapless
	lost      uint64            // operations missed in them
	repeated  uint64            // operations that came twice
	overflows uint64            // changes for which the queue had no room
	ignored   uint64            // workers past maxWorkers
	dropped   map[string]uint64 // workers by reason
	syncs     map[string]uint64 // by event
}

func (c counts) clone() counts {
	c.dropped, c.syncs = maps.Clone(c.dropped), maps.Clone(c.syncs)
	return c
}

// worker is one rank of one instance.
type worker struct {
	Registration
	// order is the registration's place among all.
	order uint64
	// provisional: it has reported but never registered with us; its address
	// is not known.
	provisional bool
	// midway: we first heard of it after its first reports, which are lost to
	// us.
	midway bool

	registered time.Time // zero where provisional
	message    time.Time // the last one of any kind
	heartbeat  time.Time // zero: none yet
	report     time.Time // zero: none yet
	// period is the shortest time between two heartbeats seen.
	period time.Duration

	streams map[string]*stream // by location; bounded by maxStreams
	gaps    uint64
	// needSync is why the next answered heartbeat asks for a full sync; empty:
	// there is no need.
	needSync string
	sync     *fullSync // nil: none yet
	// silent: registered, then nothing for registry.silence.
	silent bool
}

func newRegistry(log *slog.Logger, timeout, silence time.Duration) *registry {
	return &registry{
		log: log, timeout: timeout, silence: silence,
		workers: make(map[WorkerID]*worker),
		counts:  counts{dropped: make(map[string]uint64), syncs: make(map[string]uint64)},
	}
}

// handle takes one message in. Its answer is what the sender waits for, if it
// came on a socket that answers.
func (g *registry) handle(now time.Time, m Message, answers bool) Message {
	if answers && !isRequest(m) {
		return unknownType(m.Type())
	}
	switch m := m.(type) {
	case *BatchedKVOperationMsg:
		g.report(now, m.Worker, m.Location, m.Operations)
	case *KVAdmitMsg:
		g.report(now, m.Worker, m.Location, []KVOp{{Key: m.Key, Seq: NoSeq}})
	case *KVEvictMsg:
		g.report(now, m.Worker, m.Location, []KVOp{{Key: m.Key, Seq: NoSeq, Evict: true}})
	case *FullSyncBatchMsg:
		g.syncBatch(now, m)
	case *FullSyncEndMsg:
		g.syncEnd(now, m)
	case *RegisterMsg:
		return g.register(now, m.Registration)
	case *HeartbeatMsg:
		return g.beat(now, m.Registration, answers)
	case *DeRegisterMsg:
		g.remove(now, m.Worker, droppedDeregistered)
	case *BatchedP2PLookupMsg:
		return g.lookup(now, m)
	case *FullSyncStartMsg:
		return g.syncStart(now, m)
	case *FullSyncStatusMsg:
		return g.syncStatus(now, m)
	default:
		return unknownType(m.Type())
	}
	return nil
}

// isRequest: the message has an answer.
func isRequest(m Message) bool {
	switch m.(type) {
	case *RegisterMsg, *HeartbeatMsg, *BatchedP2PLookupMsg, *FullSyncStartMsg, *FullSyncStatusMsg:
		return true
	}
	return false
}

func unknownType(class string) Message {
	return &ErrorMsg{Error: "Unknown message type: " + class}
}

// seen finds the worker and notes the sign of life; nil where it is unknown.
func (g *registry) seen(now time.Time, id WorkerID) *worker {
	w := g.workers[id]
	if w != nil {
		w.message = now
	}
	return w
}

// admit makes room for a new worker; nil where there are too many.
func (g *registry) admit(now time.Time, id WorkerID) *worker {
	if len(g.workers) >= maxWorkers {
		g.counts.ignored++
		return nil
	}
	w := &worker{Registration: Registration{Worker: id}, message: now, streams: make(map[string]*stream)}
	g.workers[id] = w
	g.generation++
	return w
}

// register follows the start of an engine: whatever the worker held is gone.
func (g *registry) register(now time.Time, r Registration) Message {
	g.supersede(now, r, true)
	g.order++
	if old := g.workers[r.Worker]; old != nil {
		delete(g.workers, r.Worker)
		g.log.Info("LMCache worker registered again; its keys are dropped",
			"instance", r.Worker.Instance, "worker", r.Worker.Worker, "ip", r.IP, "port", r.Port)
	} else {
		g.log.Info("LMCache worker registered",
			"instance", r.Worker.Instance, "worker", r.Worker.Worker, "ip", r.IP, "port", r.Port)
	}
	if w := g.admit(now, r.Worker); w != nil {
		w.Registration, w.order, w.registered = r, g.order, now
		g.send(now, w, change{kind: changeRegister, worker: r.Worker})
	}
	answer := &RegisterRetMsg{ExtraConfig: map[string]string{}}
	if url := g.heartbeatURL(r.IP); url != "" {
		answer.ExtraConfig["heartbeat_url"] = url
	}
	return answer
}

// beat follows a heartbeat. One of a worker that we do not know stands in for
// the registration that we never saw: we restarted, or dropped the worker.
func (g *registry) beat(now time.Time, r Registration, answers bool) Message {
	w := g.seen(now, r.Worker)
	if w == nil || w.provisional {
		reason := reasonReRegistered
		if w == nil {
			w = g.admit(now, r.Worker)
		} else {
			// It reported before its first heartbeat here: it registered with
			// an earlier run of this controller.
			reason = reasonRestart
		}
		if w == nil {
			return &HeartbeatRetMsg{}
		}
		g.supersede(now, r, false)
		g.order++
		w.Registration, w.order, w.registered, w.provisional, w.midway = r, g.order, now, false, true
		g.generation++
		if answers { // else it is of an era that has no full sync
			w.needSync = reason
		}
		g.send(now, w, change{kind: changeConfirm, worker: r.Worker})
		g.log.Info("LMCache worker known by its heartbeat", "instance", r.Worker.Instance, "worker", r.Worker.Worker,
			"ip", r.IP, "port", r.Port, "reason", reason, "answered", answers)
	} else if w.Registration != r {
		if g.moveLog.allow(now) {
			g.log.Warn("LMCache worker sends heartbeats from another address than before; "+
				"if this repeats, two engines have the same lmcache_instance_id",
				"instance", r.Worker.Instance, "worker", r.Worker.Worker, "was", w.IP, "was_port", w.Port, "ip", r.IP, "port", r.Port)
		}
		w.Registration = r
		g.generation++
	}
	if !w.heartbeat.IsZero() {
		if period := now.Sub(w.heartbeat); w.period == 0 || period < w.period {
			w.period = period
		}
	}
	w.heartbeat = now
	answer := &HeartbeatRetMsg{}
	if reason := w.mustSync(now); answers && reason != "" {
		answer.Commands = []Command{{Type: CommandFullSync, Reason: reason}}
	}
	return answer
}

// supersede drops the instances that r's address belonged to before. An engine
// that restarts under a new id registers; a heartbeat alone proves less, for
// engines that cannot tell their own address all say 127.0.0.1, so it takes
// the address only from an instance that has fallen silent.
func (g *registry) supersede(now time.Time, r Registration, registers bool) {
	if r.Port == 0 {
		return
	}
	for id, w := range g.workers {
		if id.Instance == r.Worker.Instance || w.provisional || w.IP != r.IP || w.Port != r.Port {
			continue
		}
		if registers || now.Sub(w.message) > g.timeout {
			g.log.Warn("LMCache instance dropped: another one registered at its address",
				"instance", id.Instance, "new", r.Worker.Instance, "ip", r.IP, "port", r.Port)
			g.dropInstance(now, id.Instance, droppedSuperseded)
		}
	}
}

// report follows what changed in one location of a worker.
func (g *registry) report(now time.Time, id WorkerID, location string, ops []KVOp) {
	w := g.seen(now, id)
	if w == nil {
		if w = g.admit(now, id); w == nil {
			return
		}
		w.provisional = true
		g.log.Info("LMCache worker reports without having registered; its reports are kept",
			"instance", id.Instance, "worker", id.Worker)
	}
	w.report, w.silent = now, false
	ops = g.sequence(now, w, location, ops)
	if len(ops) == 0 {
		return
	}
	if w.syncing() && w.sync.location == location {
		g.syncHold(w, ops)
		return
	}
	g.send(now, w, change{kind: changeOps, worker: id, location: location, ops: ops})
}

// send emits a change; where there is no room for it, the worker, nil where it
// is gone, has to say all its keys again.
func (g *registry) send(now time.Time, w *worker, c change) {
	if g.emit(c) {
		return
	}
	g.counts.overflows++
	if w != nil {
		w.needSync = reasonOverflow
	}
	if g.lossLog.allow(now) {
		g.log.Warn("LMCache reports dropped: the index cannot keep up; the worker will be asked for a full sync",
			"instance", c.worker.Instance, "worker", c.worker.Worker, "overflows", g.counts.overflows)
	}
}

// lookup answers which other worker holds the longest run of chunks. Ranks
// hold different parts of a chunk, so only the asker's own rank counts.
func (g *registry) lookup(now time.Time, m *BatchedP2PLookupMsg) Message {
	g.seen(now, m.Worker)
	var peers []*worker
	for id, w := range g.workers {
		if id.Instance != m.Worker.Instance && id.Worker == m.Worker.Worker && w.PeerURL != "" {
			peers = append(peers, w)
		}
	}
	best := P2PHit{}
	if len(peers) > 0 && len(m.Hashes) > 0 {
		byOrder(peers)
		names := make([]string, len(peers))
		for i, w := range peers {
			names[i] = w.Worker.Instance
		}
		keys := make([]Key, len(m.Hashes))
		for i, k := range m.Hashes {
			keys[i] = k.Key
		}
		for i, held := range g.match(nil, keys, names) {
			if held.Chunks > 0 && held.Runs[0].End > best.Chunks {
				// A transfer reads from one location.
				best = P2PHit{names[i], held.Runs[0].Location, held.Runs[0].End, peers[i].PeerURL}
			}
		}
	}
	return &BatchedP2PLookupRetMsg{LayoutInfo: []P2PHit{best}}
}

// remove forgets one worker and its keys.
func (g *registry) remove(now time.Time, id WorkerID, why string) {
	if g.workers[id] == nil {
		return
	}
	delete(g.workers, id)
	g.generation++
	g.counts.dropped[why]++
	g.send(now, nil, change{kind: changeDeregister, worker: id})
	g.log.Info("LMCache worker dropped", "instance", id.Instance, "worker", id.Worker, "reason", why)
}

// dropInstance forgets all workers of an instance and their keys.
func (g *registry) dropInstance(now time.Time, name, why string) {
	for id := range g.workers {
		if id.Instance == name {
			delete(g.workers, id)
			g.counts.dropped[why]++
		}
	}
	g.generation++
	g.send(now, nil, change{kind: changeDropInstance, worker: WorkerID{Instance: name}})
}

// claim notes which instances belong to an endpoint, given who was registered
// at the generation.
func (g *registry) claim(generation uint64, instances map[string]bool) {
	g.claimed, g.claimedAt = instances, generation
}

// silent is how many workers are said to be probably broken.
func (g *registry) silent() int {
	n := 0
	for _, w := range g.workers {
		if w.silent {
			n++
		}
	}
	return n
}

// check looks for what does not happen: heartbeats that stopped, syncs that
// got stuck, workers that never said a word.
func (g *registry) check(now time.Time) {
	told := g.claimed != nil && g.claimedAt == g.generation
	for id, w := range g.workers {
		if w.syncing() && now.Sub(w.sync.activity) > syncPatience {
			g.syncFail(now, w, "no message of it for too long")
		}
		// Any message is a sign of life. Who never sent a heartbeat is never
		// dropped for it: that is LMCache's default.
		patience := max(g.timeout, 3*w.period)
		if !w.heartbeat.IsZero() && now.Sub(w.message) > patience {
			g.remove(now, id, droppedTimeout)
			continue
		}
		// No heartbeats, no endpoint that would go away one day: time alone
		// tells that it is gone.
		if told && !g.claimed[id.Instance] && now.Sub(w.message) > max(unclaimedPatience, patience) {
			g.remove(now, id, droppedUnclaimed)
			continue
		}
		if !w.provisional && !w.silent && w.heartbeat.IsZero() && w.report.IsZero() && now.Sub(w.registered) > g.silence {
			w.silent = true
			g.log.Warn("LMCache worker registered, but has sent neither report nor heartbeat since; "+
				"if its engine has served requests, it started before this controller listened and only an engine restart heals it",
				"instance", id.Instance, "worker", id.Worker, "ip", w.IP, "port", w.Port)
		}
	}
}
