package remote

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// registry is one kind of registry. Its methods are safe for concurrent use.
type registry interface {
	// lookup is what is cached of the prompt at the endpoints; an endpoint
	// without row is not known.
	lookup(ctx context.Context, p *scoring.Prompt, endpoints []scoring.Endpoint, mapping *lmcache.Mapping) (answer, error)
	// members asks who reports.
	members(ctx context.Context) (members, error)
}

// members are those who report to a registry.
type members interface {
	mapping(endpoints []scoring.Endpoint) *lmcache.Mapping
	// reports says whether the instance has reported anything.
	reports(instance string) bool
}

// answer has a row for each endpoint that is known.
type answer map[scoring.EndpointID][]scoring.Match

// Source is a registry that runs elsewhere, as a scoring.CacheIndex. It is safe
// for concurrent use.
type Source struct {
	// Set once.
	name     string
	registry registry
	cfg      Config
	log      *slog.Logger
	metrics  *Metrics
	breaker  *gobreaker.CircuitBreaker[answer]
	places   chan struct{} // one for each question under way

	// view is published anew whenever endpoints or members change.
	view atomic.Pointer[view]

	mu        sync.Mutex // guards the following
	endpoints []scoring.Endpoint
	reporters members // nil before the first answer
	polled    time.Time
	fault     error // of the last poll

	// failed is why the last question that failed did; nil: none has.
	failed atomic.Pointer[error]

	answers sync.RWMutex               // guards kept
	kept    map[*scoring.Prompt]answer // until done; one for each request being decided
}

// view is what a question is made from.
type view struct {
	endpoints []scoring.Endpoint
	mapping   *lmcache.Mapping
	members   members   // nil: not known
	polled    time.Time // when members were last told
}

func newSource(name string, r registry, cfg Config, log *slog.Logger, metrics *Metrics) *Source {
	s := &Source{
		name: name, registry: r, cfg: cfg, log: log, metrics: metrics,
		places: make(chan struct{}, cfg.Concurrency), kept: make(map[*scoring.Prompt]answer),
	}
	s.breaker = gobreaker.NewCircuitBreaker[answer](gobreaker.Settings{
		Name:        name,
		Timeout:     cfg.Pause,
		ReadyToTrip: func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= cfg.Failures },
		// A client that left says nothing of the registry.
		IsExcluded: func(err error) bool { return errors.Is(err, context.Canceled) },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			metrics.state(name, to)
			if err := s.failed.Load(); to == gobreaker.StateOpen && err != nil {
				log.Warn("LMCache elsewhere gives no answers; it is left alone for a while", "registry", name, "pause", cfg.Pause.String(), "error", *err)
			} else if to == gobreaker.StateClosed {
				log.Info("LMCache elsewhere answers again", "registry", name)
			}
		},
	})
	metrics.state(name, gobreaker.StateClosed)
	s.view.Store(&view{mapping: &lmcache.Mapping{}})
	return s
}

// The names of sources, by what they ask.
const (
	Coordinator = "coordinator"
	Controller  = "controller"
)

// Name is Coordinator or Controller.
func (s *Source) Name() string { return s.name }

// SetEndpoints tells which endpoints there are, ready or not. The list must not
// be written to afterwards.
func (s *Source) SetEndpoints(endpoints []scoring.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endpoints = endpoints
	s.publishLocked()
}

func (s *Source) publishLocked() {
	v := &view{endpoints: s.endpoints, members: s.reporters, polled: s.polled, mapping: &lmcache.Mapping{}}
	if s.reporters != nil {
		v.mapping = s.reporters.mapping(s.endpoints)
	}
	s.view.Store(v)
}

// Ask asks what is cached of the prompt, at most until ctx or the source's own
// deadline ends. Match answers from it until done is called.
func (s *Source) Ask(ctx context.Context, p *scoring.Prompt) (done func()) {
	v := s.view.Load()
	if len(v.mapping.Instances) == 0 || p.NoCache {
		return func() {}
	}
	began := time.Now()
	a, err := s.breaker.Execute(func() (answer, error) { return s.ask(ctx, p, v) })
	s.metrics.asked(s.name, resultOf(err), time.Since(began))
	if err != nil {
		s.log.Debug("LMCache elsewhere gave no answer", "registry", s.name, "error", err)
		return func() {}
	}
	s.answers.Lock()
	s.kept[p] = a
	s.answers.Unlock()
	return func() {
		s.answers.Lock()
		delete(s.kept, p)
		s.answers.Unlock()
	}
}

// ask waits for its turn and asks.
func (s *Source) ask(ctx context.Context, p *scoring.Prompt, v *view) (answer, error) {
	bounded, cancel := context.WithTimeout(ctx, s.cfg.Deadline)
	defer cancel()
	select {
	case s.places <- struct{}{}:
		defer func() { <-s.places }()
	case <-bounded.Done():
		return nil, bounded.Err()
	}
	a, err := s.registry.lookup(bounded, p, v.endpoints, v.mapping)
	if err != nil {
		// What the transport makes of it does not say whose end it was.
		if bounded.Err() != nil {
			err = bounded.Err()
		}
		s.failed.Store(&err)
		return nil, err
	}
	maps.DeleteFunc(a, func(id scoring.EndpointID, _ []scoring.Match) bool {
		return !v.members.reports(v.mapping.Instances[id])
	})
	return a, nil
}

// Match implements scoring.CacheIndex. It knows nothing of a prompt that was not
// asked about, or not answered.
func (s *Source) Match(p *scoring.Prompt, endpoints []scoring.Endpoint) [][]scoring.Match {
	s.answers.RLock()
	a := s.kept[p]
	s.answers.RUnlock()
	rows := make([][]scoring.Match, len(endpoints))
	for i := range endpoints {
		if row := a[endpoints[i].ID]; row != nil && endpoints[i].Serves(p.Model) {
			rows[i] = append([]scoring.Match(nil), row...)
		}
	}
	return rows
}

// Run keeps up with who reports, until ctx ends.
func (s *Source) Run(ctx context.Context) {
	ticker := time.NewTicker(s.cfg.MembersInterval)
	defer ticker.Stop()
	for {
		s.poll(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// pollTimeout is longer than a question's: nobody waits for it.
const pollTimeout = 5 * time.Second

func (s *Source) poll(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	m, err := s.registry.members(bounded)
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if (err == nil) != (s.fault == nil) {
		if err != nil {
			s.log.Warn("LMCache elsewhere does not say who reports to it; the last it said holds", "registry", s.name, "error", err)
		} else {
			s.log.Info("LMCache elsewhere says again who reports to it", "registry", s.name)
		}
	}
	s.fault = err
	if err == nil {
		s.reporters, s.polled = m, time.Now()
		s.publishLocked()
	}
}

// Status is the source at one moment.
type Status struct {
	Registry string `json:"registry"`
	// Breaker is closed (asked), open (left alone) or half-open (tried).
	Breaker string `json:"breaker"`
	// Failed is why the last question about a prompt that failed did, Fault why
	// the last question for members did.
	Failed string `json:"failed,omitempty"`
	Fault  string `json:"fault,omitempty"`
	// Mapped are the instances by endpoint.
	Mapped map[string]string `json:"mapped"`
	// Unmapped are endpoints without instance and instances without endpoint.
	Unmapped []lmcache.Unmapped `json:"unmapped"`
}

// Status is the source of now.
func (s *Source) Status() Status {
	v := s.view.Load()
	st := Status{Registry: s.name, Breaker: s.breaker.State().String(), Mapped: map[string]string{}, Unmapped: []lmcache.Unmapped{}}
	st.Unmapped = append(st.Unmapped, v.mapping.Unmapped...)
	for _, e := range v.endpoints {
		if id := v.mapping.Instances[e.ID]; id != "" {
			st.Mapped[e.Name] = id
		}
	}
	if err := s.failed.Load(); err != nil {
		st.Failed = (*err).Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		st.Fault = s.fault.Error()
	}
	return st
}
