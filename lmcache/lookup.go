package lmcache

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Roster lists the LMCache instances that are registered.
type Roster interface {
	// Instances returns the list and a number that changes whenever the list
	// does. It is safe for concurrent use and returns at once; nobody writes to
	// the list afterwards.
	Instances() (generation uint64, instances []Instance)
	// Heard is when the instance last sent anything; zero where it is unknown.
	Heard(instance string) time.Time
	// Claim tells which instances belong to an endpoint, given the list of that
	// generation. The others are forgotten once they have long been silent.
	Claim(generation uint64, instances map[string]bool)
}

// Source is LMCache as a scoring.CacheIndex: it makes the chunk keys of a
// prompt and looks them up in the Index, for each endpoint by its own
// instance. It is safe for concurrent use.
type Source struct {
	// Set once by NewSource.
	index  *Index
	roster Roster
	log    *slog.Logger
	keys   keyGroups
	shared bool
	// transfer is what loading from each place takes.
	transfer TransferSeconds

	view atomic.Pointer[view]
	// adopted are the instances whose settings are not the configuration's, as
	// the Detector found them; nil: nothing explains its keys. Never nil.
	adopted atomic.Pointer[map[string]*Hasher]

	mu sync.Mutex // serialises remapping; guards the following fields
	// told has what was warned of, so that it is once; bounded by the endpoints
	// and instances that there are.
	told map[Unmapped]bool
}

// view is a Mapping and what it was made from.
type view struct {
	*Mapping
	endpoints  []scoring.Endpoint
	generation uint64
}

// NewSource makes a Source. The error says which chunk-key settings cannot be.
func NewSource(cfg Config, index *Index, roster Roster, log *slog.Logger) (*Source, error) {
	keys, err := newKeyGroups(cfg)
	if err != nil {
		return nil, err
	}
	s := &Source{index: index, roster: roster, log: log, keys: keys, shared: cfg.SharedCache, transfer: cfg.Transfer, told: make(map[Unmapped]bool)}
	s.view.Store(&view{Mapping: MapInstances(nil, nil)})
	s.adopted.Store(&map[string]*Hasher{})
	return s, nil
}

// SetEndpoints tells which endpoints there are, ready or not. The list must
// not be written to afterwards.
func (s *Source) SetEndpoints(endpoints []scoring.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remapLocked(endpoints)
}

// Mapping is which instance belongs to which endpoint now.
func (s *Source) Mapping() *Mapping { return s.current().Mapping }

// current is the view of now.
func (s *Source) current() *view {
	v := s.view.Load()
	if generation, _ := s.roster.Instances(); generation == v.generation {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remapLocked(s.view.Load().endpoints)
	return s.view.Load()
}

// remapLocked publishes a new view. Caller must hold mu.
func (s *Source) remapLocked(endpoints []scoring.Endpoint) {
	generation, instances := s.roster.Instances()
	v := &view{MapInstances(endpoints, instances), endpoints, generation}
	for _, e := range endpoints {
		if s.keys.of(e, "") == nil {
			v.Unmapped = append(v.Unmapped, Unmapped{Endpoint: e.Name, Reason: fmt.Sprintf("its key group %q is not among lmcache.groups", e.Cache.Group)})
		}
	}
	s.view.Store(v)
	claimed := make(map[string]bool, len(v.Instances))
	for _, instance := range v.Instances {
		claimed[instance] = true
	}
	s.roster.Claim(generation, claimed)
	told := make(map[Unmapped]bool, len(v.Unmapped))
	for _, u := range v.Unmapped {
		// Before the first instance registers there is nothing wrong.
		if len(instances) == 0 {
			break
		}
		told[u] = true
		switch {
		case s.told[u]:
		case u.Instance != "":
			s.log.Warn("LMCache instance belongs to no endpoint; what it reports does not count", "instance", u.Instance, "reason", u.Reason)
		default:
			s.log.Warn("endpoint has no LMCache instance; nothing counts as cached there", "endpoint", u.Endpoint, "reason", u.Reason)
		}
	}
	s.told = told
}

// Match implements scoring.CacheIndex. An endpoint's row is nil where no
// instance is mapped to it, where its instance has never been heard of or no
// settings explain its keys, or where it does not serve the prompt's model.
func (s *Source) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	rows := make([][]scoring.Match, len(endpoints))
	work := lookups.Get().(*lookup)
	defer lookups.Put(work)
	for _, q := range work.ask(s, p, endpoints) {
		if len(q.instances) == 0 {
			continue
		}
		for i := range p.Sequences {
			tokens := q.hasher.comparable(p, i)
			work.keys = q.hasher.Keys(work.keys[:0], tokens)
			work.held = s.index.Match(work.held, work.keys, q.instances)
			anywhere := 0
			if s.shared {
				anywhere = s.index.Anywhere(work.keys, q.instances)
			}
			q.answer(rows, i, p, work.held, anywhere, s)
		}
	}
	return rows
}

// comparable is the leading tokens of a sequence that a chunk can be compared
// with. Past them the prompt goes on in a way that is not known, so what does
// not fill a chunk there is not the prompt's tail.
func (h *Hasher) comparable(p *scoring.Prompt, sequence int) []uint32 {
	q := &p.Sequences[sequence]
	if p.NoCache {
		return nil
	}
	tokens := q.TokenIDs[:max(0, min(len(q.TokenIDs), int(q.Usable)))]
	if len(tokens) < int(q.Length) {
		tokens = tokens[:len(tokens)-len(tokens)%h.chunkSize]
	}
	return tokens
}

// question is what the endpoints of one group of key settings are asked.
type question struct {
	hasher *Hasher
	// configured are the settings that the configuration has for them.
	configured *Hasher
	// instances are asked; rows says which endpoint each answer is for.
	instances []string
	rows      []int
	// others are the endpoints without an instance, for a shared cache.
	others []int
}

// lookup is the working memory of one Match.
type lookup struct {
	questions []question
	keys      []Key
	held      []Held
}

var lookups = sync.Pool{New: func() any { return new(lookup) }}

// ask puts the endpoints together that share key settings, so that the keys of
// a prompt are made once for each.
func (l *lookup) ask(s *Source, p *scoring.Prompt, endpoints []scoring.Endpoint) []question {
	v, adopted := s.current(), *s.adopted.Load()
	l.questions = l.questions[:0]
	for i, e := range endpoints {
		// Reports carry no model: two models may have the same keys, and only
		// the endpoint tells whose they are.
		hasher := s.keys.of(e, p.Model)
		if hasher == nil || !e.Serves(p.Model) {
			continue
		}
		id, configured := v.Instances[e.ID], hasher
		if other, ok := adopted[id]; ok {
			hasher = other
		}
		if hasher == nil {
			continue
		}
		q := l.question(hasher, configured)
		if id != "" {
			q.instances, q.rows = append(q.instances, id), append(q.rows, i)
		} else {
			q.others = append(q.others, i)
		}
	}
	if s.shared {
		l.join()
	}
	return l.questions
}

// join asks for endpoints without an instance by the settings that were found
// for those with the same configuration.
func (l *lookup) join() {
	for i := range l.questions {
		q := &l.questions[i]
		if len(q.instances) > 0 {
			continue
		}
		at := slices.IndexFunc(l.questions, func(o question) bool { return o.configured == q.configured && len(o.instances) > 0 })
		if at >= 0 {
			l.questions[at].others = append(l.questions[at].others, q.others...)
			q.others = q.others[:0]
		}
	}
}

// question finds or adds the one for hasher.
func (l *lookup) question(hasher, configured *Hasher) *question {
	for i := range l.questions {
		if l.questions[i].hasher == hasher {
			return &l.questions[i]
		}
	}
	if len(l.questions) < cap(l.questions) {
		l.questions = l.questions[:len(l.questions)+1]
	} else {
		l.questions = append(l.questions, question{})
	}
	q := &l.questions[len(l.questions)-1]
	*q = question{hasher: hasher, configured: configured, instances: q.instances[:0], rows: q.rows[:0], others: q.others[:0]}
	return q
}

// answer writes what is held of one sequence into the rows. anywhere is how many
// chunks some instance holds, for a shared cache.
func (q *question) answer(rows [][]scoring.Match, sequence int, p *scoring.Prompt, held []Held, anywhere int, s *Source) {
	put := func(row int, h Held) {
		if rows[row] == nil {
			rows[row] = make([]scoring.Match, len(p.Sequences))
		}
		rows[row][sequence] = q.hasher.match(h, anywhere, p.Sequences[sequence].Length, s.transfer)
	}
	known := false
	for i, h := range held {
		known = known || h.Known
		if h.Known {
			put(q.rows[i], h)
		}
	}
	if !s.shared || !known {
		return
	}
	for i, h := range held {
		if !h.Known {
			put(q.rows[i], Held{})
		}
	}
	for _, row := range q.others {
		put(row, Held{})
	}
}

// match counts in tokens what h counts in chunks; the last chunk may be a tail
// that ends with the prompt. Behind what is held, the chunks up to number
// anywhere come from another engine.
func (h *Hasher) match(held Held, anywhere int, length scoring.Tokens, transfer TransferSeconds) scoring.Match {
	var m scoring.Match
	if held.Chunks == 0 && anywhere == 0 {
		return m
	}
	m.Spans = make([]scoring.Span, 0, len(held.Runs)+1)
	add := func(chunks int, location string) {
		m.Cached = min(scoring.Tokens(chunks*h.chunkSize), length)
		m.Spans = append(m.Spans, scoring.Span{End: m.Cached, Location: location, SecondsPerToken: transfer.of(location), Remote: elsewhere(location)})
	}
	for _, r := range held.Runs {
		add(r.End, r.Location)
	}
	if anywhere > held.Chunks {
		add(anywhere, LocationPeer)
	}
	return m
}

// keyGroups finds an endpoint's key settings. It is immutable.
type keyGroups struct {
	byDefault *Hasher
	byName    map[string]*Hasher
	byModel   map[string]*Hasher
	// groups are the settings of each Hasher, all fields filled.
	groups map[*Hasher]KeyGroup
}

func newKeyGroups(cfg Config) (keyGroups, error) {
	g := keyGroups{byName: make(map[string]*Hasher), byModel: make(map[string]*Hasher), groups: make(map[*Hasher]KeyGroup)}
	// Groups with the same settings share a Hasher, and so the keys.
	hashers := make(map[scheme]*Hasher)
	hasher := func(path string, group KeyGroup) (*Hasher, error) {
		h, err := NewHasher(group)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if same := hashers[h.scheme]; same != nil {
			return same, nil
		}
		hashers[h.scheme], g.groups[h] = h, group.Or(DefaultKeyGroup())
		return h, nil
	}
	var faults []error
	var err error
	if g.byDefault, err = hasher("keys", cfg.Keys); err != nil {
		faults = append(faults, err)
	}
	for name, group := range cfg.Groups {
		if g.byName[name], err = hasher("groups."+name, group.Or(cfg.Keys)); err != nil {
			faults = append(faults, err)
		}
	}
	for model, name := range cfg.Models {
		if g.byModel[model] = g.byName[name]; g.byModel[model] == nil {
			faults = append(faults, cfg.groupFault(name))
		}
	}
	return g, errors.Join(faults...)
}

// of is the settings of an endpoint: its own group's, else its model's, else
// the default. Nil where its group is not known.
func (g *keyGroups) of(e scoring.Endpoint, model string) *Hasher {
	if e.Cache.Group != "" {
		return g.byName[e.Cache.Group]
	}
	// The engine has one cache whatever name it is called by: its own name
	// decides, then its aliases.
	for _, name := range e.Models {
		if h := g.byModel[name]; h != nil {
			return h
		}
	}
	if h := g.byModel[model]; h != nil && e.Models == nil {
		return h
	}
	return g.byDefault
}
