package lmcache

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// Detector learns the chunk-key settings of each LMCache instance: it looks for
// the keys of prompts that were computed there among those that the instance
// reports, and where they are not, tries other settings until some fit. The
// Source matches by what was found; an instance whose keys nothing explains is
// left to other sources. Safe for concurrent use.
type Detector struct {
	// Set once by NewDetector.
	source  *Source
	index   *Index
	log     *slog.Logger
	metrics *detectorMetrics

	intake intake

	// rows is the Status after the last step.
	rows atomic.Pointer[[]HashingStatus]

	// Step owns the following fields.

	// instances has those that are mapped to an endpoint and were sampled.
	instances map[string]*detection
	// tried are the candidates for each group of the configuration.
	tried map[*Hasher]*candidates
	// searched: this step has had its search.
	searched bool
}

// detectInterval is how often due samples are looked at, at most.
const detectInterval = 100 * time.Millisecond

// detectorRest keeps the Detector to one part in so many of one CPU: after a
// step that took a millisecond the next comes after this many.
const detectorRest = 20

type detectorMetrics struct {
	samples  *prometheus.CounterVec
	adopted  prometheus.Counter
	searches prometheus.Counter
}

func newDetectorMetrics() *detectorMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "firsttoken_lmcache_hashing_" + name, Help: help})
	}
	return &detectorMetrics{
		samples: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_lmcache_hashing_samples_total",
			Help: "Prompts whose chunk keys were looked for where they were computed, by outcome: held, missing, short (of one chunk), unreported (the instance reports nothing).",
		}, []string{"outcome"}),
		searches: counter("searches_total", "Times that other chunk-key settings were tried because a prompt's keys were missing."),
		adopted:  counter("adoptions_total", "Times that an instance's chunk-key settings were found to be others than believed."),
	}
}

// NewDetector makes a Detector of the settings by which source reads index.
func NewDetector(source *Source, index *Index, log *slog.Logger, reg prometheus.Registerer) *Detector {
	m := newDetectorMetrics()
	reg.MustRegister(m.samples, m.searches, m.adopted)
	d := &Detector{
		source: source, index: index, log: log, metrics: m,
		intake:    intake{asked: make(map[scoring.EndpointID]asked)},
		instances: make(map[string]*detection),
		tried:     make(map[*Hasher]*candidates),
	}
	d.rows.Store(&[]HashingStatus{})
	return d
}

// Computed tells that the endpoint has computed the prompt by now: its first
// token was seen, or its end. It never waits, and copies what it keeps.
func (d *Detector) Computed(id scoring.EndpointID, p *scoring.Prompt, now time.Time) {
	d.intake.offer(id, p, now)
}

// Run looks at samples until ctx ends.
func (d *Detector) Run(ctx context.Context) error {
	timer := time.NewTimer(detectInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			begin := time.Now()
			d.Step(begin)
			timer.Reset(max(detectInterval, detectorRest*time.Since(begin)))
		}
	}
}

// detection is what is known of one instance's settings.
type detection struct {
	endpoint scoring.EndpointID
	name     string // the endpoint's
	// configured is what the configuration says, in force what is believed.
	configured *Hasher
	inForce    found
	// proven: two prompts' keys were found by the settings in force.
	proven bool
	// doubted: they were not, and nothing counts as known of the instance.
	doubted bool
	// trouble is why it is doubted.
	trouble trouble
	told    string // what was logged last
	// suspect is settings that explain one prompt.
	suspect found
	// kept are the last samples before it is proven; at most maxKept.
	kept []*sample
	// missed counts the prompts in a row whose keys never appeared, short those
	// too short for a chunk, tailless those with chunks and without their tail.
	missed, short, tailless int
	samples, held, absent   uint64
}

// trouble is why keys do not match and what to do about it, for people.
type trouble struct{ fault, fix string }

// found is settings and the Hasher that has them.
type found struct {
	hasher *Hasher
	group  KeyGroup
}

const (
	// maxKept samples of an undecided instance are kept to confirm a suspicion.
	maxKept = 4
	// A proven instance is doubted after missesToDoubt prompts in a row: one or
	// two may have been evicted at once, or never stored.
	missesToDoubt = 3
	// taillessToDoubt prompts without a tail show that none is saved.
	taillessToDoubt = 3
)

// Step looks at the samples that are due, with at most one search among other
// settings, which takes some tens of milliseconds. Only one goroutine calls it.
func (d *Detector) Step(now time.Time) {
	v := d.source.current()
	d.prune(v)
	d.searched = false
	for _, s := range d.intake.due(now) {
		at := slices.IndexFunc(v.endpoints, func(e scoring.Endpoint) bool { return e.ID == s.endpoint })
		if at < 0 {
			continue
		}
		e := v.endpoints[at]
		configured := d.source.keys.of(e, s.model)
		if id := v.Instances[e.ID]; id != "" && configured != nil {
			d.look(s, id, d.detection(id, e, configured))
		}
	}
	d.publish()
}

// prune forgets instances that no endpoint has.
func (d *Detector) prune(v *view) {
	mapped := make(map[string]bool, len(v.Instances))
	for _, id := range v.Instances {
		mapped[id] = true
	}
	for id := range d.instances {
		if !mapped[id] {
			delete(d.instances, id)
		}
	}
	d.intake.keep(v.endpoints)
}

func (d *Detector) detection(id string, e scoring.Endpoint, configured *Hasher) *detection {
	c := d.instances[id]
	if c == nil || c.configured != configured {
		c = &detection{configured: configured, inForce: found{configured, d.source.keys.groups[configured]}}
		d.instances[id] = c
	}
	c.endpoint, c.name = e.ID, e.Name
	return c
}

// publish tells the Source the settings of the instances that differ from the
// configuration's, and everybody the Status.
func (d *Detector) publish() {
	adopted := make(map[string]*Hasher)
	for id, c := range d.instances {
		switch {
		case c.doubted:
			adopted[id] = nil
		case c.inForce.hasher != c.configured:
			adopted[id] = c.inForce.hasher
		}
	}
	d.source.adopted.Store(&adopted)
	rows := d.status()
	d.rows.Store(&rows)
}

// look looks for the sample's keys among those of its instance.
func (d *Detector) look(s *sample, id string, c *detection) {
	last := s.look == len(looks)-1
	again := func() {
		if !last {
			s.look++
			d.intake.put(s)
		}
	}
	if d.index.Records(id) == 0 {
		if again(); last {
			d.sampled(c, "unreported")
		}
		return
	}
	outcome := d.compare(c.inForce.hasher, id, s)
	if outcome == keysHeld {
		d.hold(id, c, s)
		return
	}
	// Chunks of another size may be shorter; of one that was proven they are not.
	if outcome == keysMissing && (!c.proven || last) || outcome == keysShort && !c.proven {
		if d.searched {
			d.intake.put(s) // Looked at again, this look not counted.
			return
		}
		d.searched = true
		if c.keep(s); d.search(id, c, s) {
			d.sampled(c, "held")
			c.held++
			c.suspected(id)
			return
		}
	}
	switch {
	case outcome == keysShort:
		c.short++
		d.sampled(c, "short")
	case last:
		c.absent++
		d.miss(id, c)
		d.sampled(c, "missing")
	default:
		// Until its settings have matched once, a single prompt is enough to
		// believe rather what was routed there.
		c.doubted = c.doubted || !c.proven && s.look > 0
		again()
	}
}

// hold takes it in that the instance holds a sample's chunks.
func (d *Detector) hold(id string, c *detection, s *sample) {
	c.held++
	c.missed, c.short, c.doubted, c.suspect, c.trouble = 0, 0, false, found{}, trouble{}
	if c.proven {
		c.kept = nil
	} else if c.keep(s); d.confirmed(c.inForce.hasher, id, c.kept) {
		d.prove(id, c)
	}
	d.tail(id, c, s)
	d.sampled(c, "held")
}

// sampled counts a sample that is done with and asks for the next.
func (d *Detector) sampled(c *detection, outcome string) {
	d.metrics.samples.WithLabelValues(outcome).Inc()
	c.samples++
	gap := settledGap
	if !c.proven || c.missed > 0 {
		gap = min(settledGap, eagerGap<<min(c.missed+c.short, 16))
	}
	d.intake.ask(c.endpoint, gap)
}

// keep keeps a sample to confirm a suspicion with.
func (c *detection) keep(s *sample) {
	if slices.ContainsFunc(c.kept, func(o *sample) bool { return slices.Equal(o.tokens, s.tokens) }) {
		return
	}
	if len(c.kept) == maxKept {
		c.kept = slices.Delete(c.kept, 0, 1)
	}
	c.kept = append(c.kept, s)
}

// miss takes it in that a sample's keys never appeared.
func (d *Detector) miss(id string, c *detection) {
	c.missed++
	if c.proven && c.missed < missesToDoubt {
		return
	}
	c.proven, c.doubted = false, true
	if c.trouble.fault == "" {
		c.trouble = trouble{
			fmt.Sprintf("none of the usual settings gives the keys that LMCache instance %s reports of prompts it computed", id),
			"set PYTHONHASHSEED=0 for the engine if its algorithm is builtin; write settings that are unusual, such as a chunk_size that is no power of two, " +
				"under lmcache.groups, and the group's name in the endpoint's lmcache.group; LMCache 0.3.4 to 0.3.15 with builtin needs Python 3.12; or the engine's token ids are not ours: see its chat template and tokenizer",
		}
	}
	// One prompt may have been left out by LMCache for reasons of its own.
	if c.missed >= 2 && c.told != c.trouble.fault {
		c.told = c.trouble.fault
		d.log.Warn("LMCache keys of the endpoint match no settings; what was routed there is believed to be held instead",
			"endpoint", c.name, "instance", id, "configured", d.source.keys.groups[c.configured].String(), "fault", c.trouble.fault, "fix", c.trouble.fix)
	}
}

// prove takes it in that the settings in force were confirmed.
func (d *Detector) prove(id string, c *detection) {
	c.proven, c.doubted, c.missed, c.kept, c.suspect = true, false, 0, nil, found{}
	c.trouble = trouble{}
	if text := c.inForce.group.String(); c.told != text {
		c.told = text
		d.log.Info("LMCache keys of the endpoint match", "endpoint", c.name, "instance", id, "settings", text, "as_configured", c.inForce.hasher == c.configured)
	}
}

// adopt puts settings in force that two prompts have confirmed.
func (d *Detector) adopt(id string, c *detection, f found) {
	c.inForce, c.tailless, c.told = f, 0, f.group.String()
	c.proven, c.doubted, c.missed, c.kept, c.suspect = true, false, 0, nil, found{}
	c.trouble = trouble{}
	d.metrics.adopted.Inc()
	args := []any{"endpoint", c.name, "instance", id, "settings", c.told, "configured", d.source.keys.groups[c.configured].String()}
	if c.learnt() {
		t := learntTrouble(id)
		d.log.Warn("LMCache keys of the endpoint are matched by a NONE_HASH worked out from them", append(args, "fault", t.fault, "fix", t.fix)...)
		return
	}
	d.log.Info("LMCache keys of the endpoint are matched by other settings than before; write them under lmcache to have them from the start", args...)
}

func learntTrouble(id string) trouble {
	return trouble{
		fmt.Sprintf("NONE_HASH is random in LMCache instance %s: its algorithm is builtin, and PYTHONHASHSEED not set or unusual; "+
			"it was worked out from the keys and holds until the engine restarts", id),
		"set PYTHONHASHSEED=0 for the engine",
	}
}

// learnt reports whether the NONE_HASH in force was worked out from the keys.
func (c *detection) learnt() bool { return c.inForce.hasher.none.hashed }

// suspected doubts the settings in force where others explain a prompt and
// still have to be confirmed.
func (c *detection) suspected(id string) {
	if c.suspect.hasher == nil || c.proven {
		return
	}
	c.doubted = true
	c.trouble = trouble{
		fmt.Sprintf("the keys of one prompt at LMCache instance %s are those of other settings, {%s}; a second prompt has to confirm them", id, c.suspect.group),
		"send another prompt, or write these settings under lmcache.keys if they are the engine's",
	}
}

// tail finds out whether LMCache keeps the end of a prompt that does not fill
// a chunk, by a prompt whose chunks it holds.
func (d *Detector) tail(id string, c *detection, s *sample) {
	h := c.inForce.hasher
	if !c.proven || !s.whole || len(s.tokens)%h.chunkSize == 0 {
		return
	}
	with := *h
	with.saveTail = true
	keys := with.Keys(nil, s.tokens)
	saves := d.index.Holds(id, keys[len(keys)-1])
	if saves == h.saveTail {
		c.tailless = 0
		return
	}
	// One key that is there proves it; one that is not, nothing.
	if c.tailless++; !saves && c.tailless < taillessToDoubt {
		return
	}
	other := h.scheme
	other.saveTail = saves
	group := c.inForce.group
	group.SaveUnfullChunk = &saves
	c.inForce, c.tailless, c.told = d.found(candidate{group, other}), 0, group.String()
	d.metrics.adopted.Inc()
	d.log.Info("LMCache of the endpoint was found to treat unfull chunks otherwise than believed", "endpoint", c.name, "instance", id, "settings", c.told)
}

// found is a Hasher with the settings: one that is in use already where there
// is one, so that a prompt's keys are made once for all who share it.
func (d *Detector) found(c candidate) found {
	for h := range d.source.keys.groups {
		if h.scheme == c.scheme {
			return found{h, c.KeyGroup}
		}
	}
	for _, other := range d.instances {
		for _, h := range []*Hasher{other.inForce.hasher, other.suspect.hasher} {
			if h != nil && h.scheme == c.scheme {
				return found{h, c.KeyGroup}
			}
		}
	}
	return found{&Hasher{c.scheme}, c.KeyGroup}
}

// HashingStatus is what is known of the chunk-key settings of one instance.
type HashingStatus struct {
	ID       scoring.EndpointID `json:"-"`
	Endpoint string             `json:"endpoint"`
	Instance string             `json:"instance"`
	// State is untested, configured (the keys match the configuration's
	// settings), detected (they match others), learnt (they match, with a
	// NONE_HASH worked out from them), or unmatched (nothing counts as known).
	State string `json:"state"`
	// Settings are those in force, as they are written in the configuration.
	Settings string `json:"settings"`
	// Fault is why the keys do not match, or not for long, and Fix what to do.
	Fault string `json:"fault,omitempty"`
	Fix   string `json:"fix,omitempty"`
	// Samples are the prompts looked for, Held and Missing of them those whose
	// keys the instance had reported, and had not after some seconds.
	Samples uint64 `json:"samples"`
	Held    uint64 `json:"held"`
	Missing uint64 `json:"missing"`
}

// States of a HashingStatus.
const (
	HashingUntested   = "untested"
	HashingConfigured = "configured"
	HashingDetected   = "detected"
	HashingLearnt     = "learnt"
	HashingUnmatched  = "unmatched"
)

// Status has a row for each instance that was sampled, by endpoint, as of the
// last step. The caller must not change it.
func (d *Detector) Status() []HashingStatus { return *d.rows.Load() }

func (d *Detector) status() []HashingStatus {
	rows := []HashingStatus{}
	for id, c := range d.instances {
		t := c.trouble
		if c.state() == HashingLearnt {
			t = learntTrouble(id)
		}
		row := HashingStatus{
			ID: c.endpoint, Endpoint: c.name, Instance: id, State: c.state(), Settings: c.inForce.group.String(),
			Fault: t.fault, Fix: t.fix, Samples: c.samples, Held: c.held, Missing: c.absent,
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b HashingStatus) int {
		return slices.Compare([]string{a.Endpoint, a.Instance}, []string{b.Endpoint, b.Instance})
	})
	return rows
}

func (c *detection) state() string {
	switch {
	case c.doubted:
		return HashingUnmatched
	case !c.proven:
		return HashingUntested
	case c.learnt():
		return HashingLearnt
	case c.inForce.hasher == c.configured:
		return HashingConfigured
	default:
		return HashingDetected
	}
}
