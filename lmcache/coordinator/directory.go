package coordinator

import (
	"encoding/hex"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// What strangers can make us keep, besides Config.MaxKeys.
const (
	maxInstances    = 4096
	maxObjectGroups = 64
	// maxPlacements is of one key: one for each server and backend.
	maxPlacements = 2 * maxInstances
)

// lockedEntries is how many entries of a report are applied under one hold of
// the lock: some hundreds of microseconds, the longest that a decision waits for
// a report of any length.
const lockedEntries = 64

// Directory knows which server holds which keys. It is safe for concurrent use.
//
// Locks: writing serialises what applies reports and ends servers' lives, so that
// a report may let go of mu between slices of its entries and still be applied as
// one; mu guards the data. Lock order: writing, mu.
type Directory struct {
	// Set once by New.
	cfg    Config
	hasher *lmcache.TokenHasher
	log    *slog.Logger

	// mapping is published anew whenever endpoints or servers change.
	mapping atomic.Pointer[lmcache.Mapping]

	writing sync.Mutex

	mu        sync.RWMutex // guards the following
	endpoints []scoring.Endpoint
	records   *simplelru.LRU[key, *record] // at most MaxKeys
	instances map[string]*instance         // at most maxInstances
	// groups is how many keys there are in each object group.
	groups [maxObjectGroups]int
	tiers  map[Tier]*tierStats
	counts Counts
	checks checks
}

// key is an ObjectKey with a hash that can match.
type key struct {
	hash  lmcache.Digest
	space unique.Handle[space]
	rank  int64
	group int64
}

// space is the model and salt of a key.
type space struct{ model, salt string }

// record is what is known of one key.
type record struct {
	key        key
	placements []placement
	accesses   int64
}

type placement struct {
	by          *instance // who reported it last
	life        uint64    // of by; an l1 placement of an earlier life is gone
	incarnation int64
	tier        Tier
	backend     string
	size        int64
	shared      bool
}

// gone: the server that held it in memory has ended since.
func (p *placement) gone() bool { return p.tier == TierL1 && p.life != p.by.life }

// instance is a server that registered, reported, or both.
type instance struct {
	id string
	// server is as it registered; nil where it has not, or is gone.
	server *Server
	beat   time.Time // its last heartbeat or registration
	heard  time.Time // its last message of any kind; zero: none
	// stream is where its reports are; nil before the first.
	stream *stream
	// life counts what voids its memory: restarts and departures.
	life uint64
	// l1 are the records with a placement in its memory.
	l1 map[*record]struct{}
	// held is how many placements it reported that are kept.
	held int
}

// stream is a server's numbering of its reports.
type stream struct {
	incarnation, seq int64
	// gap: reports were lost; late: those before the first we saw.
	gap, late bool
}

type tierStats struct{ count, bytes int64 }

// Counts are totals since start.
type Counts struct {
	// Applied, Duplicates and Stale count reports by what became of them;
	// Refused those of servers beyond the number that are followed.
	Applied    uint64 `json:"applied"`
	Duplicates uint64 `json:"duplicates"`
	Stale      uint64 `json:"stale"`
	Refused    uint64 `json:"refused"`
	// Stored, Deleted and Accessed count the keys in the applied ones, Foreign
	// those that no prompt can match, because of their hash or object group.
	Stored   uint64 `json:"stored"`
	Deleted  uint64 `json:"deleted"`
	Accessed uint64 `json:"accessed"`
	Foreign  uint64 `json:"foreign"`
	// Gaps is how often reports were lost, Restarts how often a server began
	// anew, TimedOut how many were taken to be gone.
	Gaps     uint64 `json:"gaps"`
	Restarts uint64 `json:"restarts"`
	TimedOut uint64 `json:"timed_out"`
	// Forgotten is how many keys went for want of room.
	Forgotten uint64 `json:"forgotten"`
	// Checked and Mismatched count chunks whose key was made anew from their
	// token ids.
	Checked    uint64 `json:"checked"`
	Mismatched uint64 `json:"mismatched"`
}

// New makes an empty Directory. The error is of cfg.
func New(cfg Config, log *slog.Logger) (*Directory, error) {
	hasher, err := lmcache.NewTokenHasher(cfg.ChunkSize)
	if err != nil {
		return nil, err
	}
	d := &Directory{
		cfg: cfg, hasher: hasher, log: log,
		instances: make(map[string]*instance),
		tiers:     map[Tier]*tierStats{TierL1: {}, TierL2: {}},
		checks:    newChecks(),
	}
	d.mapping.Store(MapServers(nil, nil))
	if d.records, err = simplelru.NewLRU(cfg.MaxKeys, d.evictedLocked); err != nil {
		return nil, err
	}
	return d, nil
}

// outcome is what became of a batch.
type outcome int

const (
	applied outcome = iota
	duplicate
	stale
	refused
)

// apply takes one batch, as the gate and the key directory of the real
// coordinator do (ingest/event_gate.py, views/key_directory.py).
func (d *Directory) apply(b *batch, now time.Time) outcome {
	d.writing.Lock()
	defer d.writing.Unlock()
	d.mu.Lock()
	in := d.instanceLocked(b.Instance)
	if in == nil {
		d.counts.Refused++
		d.mu.Unlock()
		return refused
	}
	in.heard = now
	o, fenced := d.admitLocked(in, b)
	if o == applied {
		for i := range b.Entries {
			if i > 0 && i%lockedEntries == 0 {
				d.mu.Unlock()
				d.mu.Lock()
			}
			d.applyLocked(in, b, &b.Entries[i])
		}
	}
	switch o {
	case applied:
		d.counts.Applied++
	case duplicate:
		d.counts.Duplicates++
	default:
		d.counts.Stale++
	}
	d.mu.Unlock()
	d.sweepOut(fenced)
	return o
}

// admitLocked moves on the server's numbering. fenced are the records that held
// something in the memory of a life of it that is over.
func (d *Directory) admitLocked(in *instance, b *batch) (o outcome, fenced map[*record]struct{}) {
	switch s := in.stream; {
	case s == nil:
		in.stream = &stream{incarnation: b.Incarnation}
	case b.Incarnation < s.incarnation:
		return stale, nil
	case b.Incarnation > s.incarnation:
		d.counts.Restarts++
		fenced = in.fence()
		in.stream = &stream{incarnation: b.Incarnation}
	case b.Seq <= s.seq:
		return duplicate, nil
	}
	s := in.stream
	if b.Seq > s.seq+1 {
		d.counts.Gaps++
		if !s.gap {
			d.log.Warn("reports of an LMCache server are missing; what it holds is known in part", "instance", in.id, "expected", s.seq+1, "got", b.Seq)
		}
		s.gap, s.late = true, s.late || s.seq == 0
	}
	s.seq = b.Seq
	return applied, fenced
}

// applyLocked takes one entry. Caller must hold mu.
func (d *Directory) applyLocked(in *instance, b *batch, e *entry) {
	k, ok := internKey(&e.Key)
	if !ok {
		d.counts.Foreign++
		d.checks.foreign(d.log, &e.Key)
		return
	}
	switch b.Event {
	case eventStore:
		d.counts.Stored++
		d.checkLocked(e, k.hash)
		d.storeLocked(in, b, e, k)
	case eventDelete:
		d.counts.Deleted++
		if r, ok := d.records.Peek(k); ok {
			if i := r.find(in, b); i >= 0 {
				d.removeLocked(r, i)
			}
		}
	case eventAccess:
		d.counts.Accessed++
		if r, ok := d.records.Get(k); ok {
			r.accesses++
		}
	}
}

// internKey is the key for lookups; false for one that no prompt can have.
func internKey(o *ObjectKey) (key, bool) {
	k := key{space: unique.Make(space{o.ModelName, o.CacheSalt}), rank: o.KVRank, group: o.ObjectGroup}
	n, err := hex.Decode(k.hash[:], []byte(o.ChunkHash[:min(len(o.ChunkHash), 2*len(k.hash))]))
	return k, err == nil && n == len(k.hash) && len(o.ChunkHash) == 2*n && o.ObjectGroup < maxObjectGroups
}

func (d *Directory) storeLocked(in *instance, b *batch, e *entry, k key) {
	r, ok := d.records.Get(k)
	if !ok {
		r = &record{key: k}
		d.groups[k.group]++
		if d.records.Add(k, r) {
			d.counts.Forgotten++
		}
	}
	i, before := r.find(in, b), in
	if i < 0 {
		if len(r.placements) == maxPlacements {
			return
		}
		r.placements = append(slices.Grow(r.placements, 1), placement{})
		i = len(r.placements) - 1
	} else {
		before = r.placements[i].by // of shared storage, perhaps another
		d.uncountLocked(r, i)
	}
	r.placements[i] = placement{
		by: in, life: in.life, incarnation: b.Incarnation, tier: b.Tier,
		backend: unique.Make(b.Backend).Value(), size: e.Size, shared: b.Shared,
	}
	in.held++
	t := d.tiers[b.Tier]
	t.count++
	t.bytes += e.Size
	before.remember(r)
	in.remember(r)
}

// remember keeps l1 true after a change of the record's placements. Caller must
// hold Directory.mu.
func (in *instance) remember(r *record) {
	if slices.ContainsFunc(r.placements, func(p placement) bool { return p.tier == TierL1 && p.by == in && !p.gone() }) {
		in.l1[r] = struct{}{}
	} else {
		delete(in.l1, r)
	}
}

// find is the placement that a batch is about; -1: there is none.
func (r *record) find(in *instance, b *batch) int {
	return slices.IndexFunc(r.placements, func(p placement) bool {
		return p.shared == b.Shared && (b.Shared || p.by.id == in.id) && p.tier == b.Tier && p.backend == b.Backend
	})
}

// uncountLocked takes placement i off the books. Caller must hold mu.
func (d *Directory) uncountLocked(r *record, i int) {
	p := &r.placements[i]
	t := d.tiers[p.tier]
	t.count--
	t.bytes -= p.size
	p.by.held--
	d.dismissLocked(p.by)
}

// removeLocked takes placement i away, and the record if it was the last.
// Caller must hold mu.
func (d *Directory) removeLocked(r *record, i int) {
	if len(r.placements) == 1 {
		d.records.Remove(r.key)
		return
	}
	d.uncountLocked(r, i)
	by := r.placements[i].by
	r.placements = slices.Delete(r.placements, i, i+1)
	by.remember(r)
}

// evictedLocked is called when a record goes, for whatever reason. Caller holds
// mu.
func (d *Directory) evictedLocked(_ key, r *record) {
	d.groups[r.key.group]--
	for i := range r.placements {
		delete(r.placements[i].by.l1, r)
		d.uncountLocked(r, i)
	}
}

// fence ends a life of the server: what it held in memory is gone. The records
// that held it are returned, for sweepOut. Caller must hold Directory.writing and
// mu.
func (in *instance) fence() map[*record]struct{} {
	in.life++
	l1 := in.l1
	in.l1 = make(map[*record]struct{})
	return l1
}

// sweepSlice is how many records are cleaned in one go: lookups wait so long.
const sweepSlice = 64

// sweepOut takes away what is gone from records. Lookups see it as gone
// already. Caller must hold writing, and not mu.
func (d *Directory) sweepOut(records map[*record]struct{}) {
	n := 0
	d.mu.Lock()
	defer d.mu.Unlock()
	for r := range records {
		if n++; n%sweepSlice == 0 {
			d.mu.Unlock()
			d.mu.Lock()
		}
		for d.kept(r) {
			i := slices.IndexFunc(r.placements, func(p placement) bool { return p.gone() })
			if i < 0 {
				break
			}
			d.removeLocked(r, i)
		}
	}
}

// kept reports whether the record is still in the directory. Caller must hold
// mu.
func (d *Directory) kept(r *record) bool {
	current, ok := d.records.Peek(r.key)
	return ok && current == r
}
