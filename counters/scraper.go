package counters

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// maxBody bounds an answer: vLLM's has 60 KB, and some thousand more for each
// further rank.
const maxBody = 8 << 20

// Fetch asks an endpoint for a path and returns at most limit bytes of body;
// ctx bounds the time.
type Fetch func(ctx context.Context, id scoring.EndpointID, path string, limit int64) ([]byte, error)

// Observer gets each new reading of an endpoint. Restarted: the engine began
// anew since the last one, with nothing cached; never where r.Several. Of one
// endpoint never two come at a time, of several they may. A last one may come
// just after SetEndpoints left the endpoint out. It must not block for long.
type Observer func(id scoring.EndpointID, r Reading, restarted bool)

// Scraper reads the counters of all endpoints, each in its own time. Safe for
// concurrent use.
type Scraper struct {
	cfg       Config       // set once
	fetch     Fetch        // set once
	log       *slog.Logger // set once
	observers []Observer   // set once
	// changed wakes Run; its one place is what coalesces.
	changed chan struct{}

	mu sync.Mutex // guards targets and what they point to
	// targets are exactly the endpoints last given to SetEndpoints, in order.
	targets []*target
}

// target is one life of one endpoint.
type target struct {
	endpoint scoring.Endpoint
	// cancel ends its loop; nil before Run started one.
	cancel context.CancelFunc
	// last is the newest reading, shown what is told of it; nil before the first.
	last, shown *Reading
	lives       lives
	// fault is why the last try failed; nil if it did not.
	fault error
	// silent is true once the log told of the present fault.
	silent                    bool
	scrapes, faults, restarts uint64
}

// New makes a Scraper that tells observers of every reading, in their order.
// Nothing is asked before Run.
func New(cfg Config, fetch Fetch, log *slog.Logger, observers ...Observer) *Scraper {
	return &Scraper{cfg: cfg, fetch: fetch, log: log, observers: observers, changed: make(chan struct{}, 1)}
}

// SetEndpoints tells which endpoints there are. What was read of others is
// forgotten. It returns at once.
func (s *Scraper) SetEndpoints(endpoints []scoring.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := make(map[scoring.EndpointID]*target, len(s.targets))
	for _, t := range s.targets {
		before[t.endpoint.ID] = t
	}
	s.targets = make([]*target, 0, len(endpoints))
	for _, e := range endpoints {
		t := before[e.ID]
		if t == nil {
			t = &target{}
		}
		t.endpoint = e
		delete(before, e.ID)
		s.targets = append(s.targets, t)
	}
	for _, t := range before {
		if t.cancel != nil {
			t.cancel()
		}
	}
	select {
	case s.changed <- struct{}{}:
	default: // Run is going to look anyway.
	}
}

// Run reads until ctx ends; it returns when all its goroutines have ended.
// Call it once.
func (s *Scraper) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	defer loops.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		}
		s.mu.Lock()
		for _, t := range s.targets {
			if t.cancel == nil {
				own, cancel := context.WithCancel(ctx)
				t.cancel = cancel
				loops.Go(func() {
					defer cancel()
					s.follow(own, t)
				})
			}
		}
		s.mu.Unlock()
	}
}

// follow reads one endpoint until ctx ends.
func (s *Scraper) follow(ctx context.Context, t *target) {
	s.mu.Lock()
	id := t.endpoint.ID // It never changes; the rest of the endpoint may.
	s.mu.Unlock()
	for {
		began := time.Now()
		body, err := s.ask(ctx, id)
		if ctx.Err() != nil {
			return
		}
		var r Reading
		if err == nil {
			r, err = parse(body, time.Now())
		}
		if err != nil {
			s.failed(ctx, t, err)
		} else {
			shown, restarted := s.read(t, &r)
			for _, tell := range s.observers {
				tell(id, shown, restarted)
			}
		}
		// A tenth at random keeps engines from being asked all at once, and
		// from being asked at the beat of something else.
		pause := s.cfg.Interval + rand.N(s.cfg.Interval/10) //nolint:gosec // It spreads load.
		timer := time.NewTimer(time.Until(began.Add(pause)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func (s *Scraper) ask(ctx context.Context, id scoring.EndpointID) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.fetch(ctx, id, s.cfg.Path, maxBody)
}

// failed records that a try was in vain. What was read before stays: it tells
// its age. A fault is logged once, until a reading succeeds.
func (s *Scraper) failed(ctx context.Context, t *target, err error) {
	s.mu.Lock()
	t.scrapes++
	t.faults++
	t.fault = err
	level := slog.LevelWarn
	if t.silent || !t.endpoint.Ready {
		level = slog.LevelDebug // The log tells already that it is not ready.
	} else {
		t.silent = true
	}
	e := t.endpoint
	s.mu.Unlock()
	s.log.Log(ctx, level, "cannot read the engine's counters; until that works its cache size is guessed and a restart may not be seen",
		"endpoint", e.Name, "address", e.Address, "path", s.cfg.Path, "error", err)
}

// read records a reading and returns what is to be told of it, and whether it
// is of a new process.
func (s *Scraper) read(t *target, r *Reading) (shown Reading, restarted bool) {
	s.mu.Lock()
	before, was := t.last, t.shown
	first := before == nil
	restarted = !first && r.ofAnother(before)
	t.last, t.shown, t.fault, t.silent = r, r, nil, false
	if !first && t.lives.several(r, before, restarted) {
		t.shown, restarted = r.ofSeveral(), false
	}
	shown = *t.shown
	t.scrapes++
	if restarted {
		t.restarts++
	}
	e := t.endpoint
	s.mu.Unlock()
	log := s.log.With("endpoint", e.Name, "address", e.Address)
	switch {
	case restarted:
		log.Info("engine was restarted; it has nothing cached", "started", r.Started, "before", before.Started)
	case shown.Several && !was.Several:
		log.Warn("several engine processes answer behind one address; neither restarts nor counts are believed of them, and no cache can be predicted well; give each engine an entry of its own")
	case !first && was.Several && !shown.Several:
		log.Info("one engine process alone has answered for some time; its restarts and counts are believed again")
	}
	if r.PrefixCaching == SwitchOff && (first || before.PrefixCaching != SwitchOff) {
		log.Warn("engine reuses nothing of what it computed; start it with --enable-prefix-caching")
	}
	return shown, restarted
}

// Status is what is known of one endpoint, for people.
type Status struct {
	Endpoint scoring.EndpointID `json:"-"`
	Name     string             `json:"-"`
	// Reading is the newest one; null before the first.
	Reading *Reading `json:"reading"`
	// Fault is why the last try failed; empty: it did not.
	Fault string `json:"fault,omitempty"`
	// Scrapes are tries, Faults those in vain, Restarts new lives of the engine.
	Scrapes  uint64 `json:"scrapes"`
	Faults   uint64 `json:"faults"`
	Restarts uint64 `json:"restarts"`
}

// Status tells of every endpoint in the order of SetEndpoints.
func (s *Scraper) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Status, 0, len(s.targets))
	for _, t := range s.targets {
		row := Status{Endpoint: t.endpoint.ID, Name: t.endpoint.Name, Reading: t.shown, Scrapes: t.scrapes, Faults: t.faults, Restarts: t.restarts}
		if t.fault != nil {
			row.Fault = t.fault.Error()
		}
		list = append(list, row)
	}
	return list
}
