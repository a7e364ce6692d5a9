package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Watcher keeps the list of endpoints true and publishes it on each change. It
// is safe for concurrent use.
type Watcher struct {
	cfg     Config       // set once
	log     *slog.Logger // set once
	metrics *Metrics     // set once
	// publish gets each new list, never two at a time; set once.
	publish func([]scoring.Endpoint)
	net     network       // set once
	synced  chan struct{} // closed by Run when every name was tried
	// news has its one place filled when wanted has changed.
	news chan struct{}

	// mu guards the following fields and is held while publish runs, so that
	// lists arrive in order; publish must not call the Watcher.
	mu        sync.Mutex
	roster    *roster
	published []scoring.Endpoint
	watches   map[scoring.EndpointID]*watch
	// wanted are the newest entries that SetEntries was given.
	wanted []Entry
}

// watch is one running probe loop.
type watch struct {
	address string
	client  engine
	cancel  context.CancelFunc
	// wake asks for a probe at once. Its one place is what coalesces.
	wake chan struct{}
}

// network is everything that leaves the process.
type network interface {
	resolve(ctx context.Context, t target) ([]found, error)
	// engine makes the client for one address of an engine.
	engine(t target, address netip.AddrPort) engine
}

// engine answers the questions that we ask of an engine, and those of
// other packages.
type engine interface {
	health(ctx context.Context, path string) error
	models(ctx context.Context) (served, error)
	// try is nil where the engine computed a token; model may be empty.
	try(ctx context.Context, model string) error
	get(ctx context.Context, path string, limit int64) ([]byte, error)
}

// New makes a Watcher over entries, which ValidateEntries found good. apiKey,
// where not empty, is sent as bearer on our own calls and never logged.
// publish gets the whole list on every change; the slice is the receiver's.
// Nothing is called before Run.
func New(cfg Config, entries []Entry, apiKey string, log *slog.Logger, metrics *Metrics, publish func([]scoring.Endpoint)) (*Watcher, error) {
	tlsConfig, err := cfg.TLS.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("discovery: tls.ca_file: %w", err)
	}
	return newWatcher(cfg, entries, &sockets{tlsConfig, apiKey, cfg.resolver()}, log, metrics, publish)
}

func newWatcher(cfg Config, entries []Entry, net network, log *slog.Logger, metrics *Metrics, publish func([]scoring.Endpoint)) (*Watcher, error) {
	r, err := newRoster(cfg.ProbeFailures, entries)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	return &Watcher{
		cfg: cfg, log: log, metrics: metrics, publish: publish, net: net,
		synced: make(chan struct{}), news: make(chan struct{}, 1),
		roster: r, watches: make(map[scoring.EndpointID]*watch),
	}, nil
}

// Synced is closed when the list is complete for the first time: every name
// has been resolved, or that was tried in vain. Probes may be outstanding; an
// endpoint is ready until its first failed one.
func (w *Watcher) Synced() <-chan struct{} { return w.synced }

// Run resolves, probes and publishes until ctx ends; it returns when all its
// goroutines have ended. Call it once.
func (w *Watcher) Run(ctx context.Context) error {
	var tasks, names sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	w.mu.Lock()
	entries := slices.Clone(w.roster.entries)
	w.mu.Unlock()
	for _, e := range entries {
		w.start(ctx, &tasks, &names, e)
	}
	names.Wait()
	close(w.synced)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.news:
			w.replace(ctx, &tasks, &names)
		}
	}
}

// start follows the name of an entry, if it has one. names counts those that
// were not tried yet.
func (w *Watcher) start(ctx context.Context, tasks, names *sync.WaitGroup, e *entry) {
	if ip, ok := e.target.literal(); ok {
		w.resolved(ctx, tasks, e, e.target.at([]netip.Addr{ip}))
		return
	}
	following, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	e.stop = cancel
	w.mu.Unlock()
	names.Add(1)
	tasks.Go(func() {
		defer cancel()
		w.follow(following, ctx, tasks, e, sync.OnceFunc(names.Done))
	})
}

// SetEntries gives another list of entries, which ValidateEntries found good. An
// engine whose address stays is still the same endpoint. It never blocks; where
// lists come faster than they are taken, the newest counts.
func (w *Watcher) SetEntries(entries []Entry) {
	w.mu.Lock()
	w.wanted = slices.Clone(entries)
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default: // It is known already that there is news.
	}
}

// replace takes the entries that are wanted. Those that go stay until the names
// of those that come were tried: a list that is swapped for another must at no
// time be empty.
func (w *Watcher) replace(ctx context.Context, tasks, names *sync.WaitGroup) {
	w.mu.Lock()
	added, removed, err := w.roster.replace(w.wanted)
	if err != nil {
		w.mu.Unlock()
		w.log.Error("cannot take the new list of endpoints; the former one stays", "error", err)
		return
	}
	for _, e := range removed {
		if e.stop != nil {
			e.stop()
		}
	}
	for _, e := range added {
		if ip, ok := e.target.literal(); ok {
			w.takeLocked(ctx, tasks, e, e.target.at([]netip.Addr{ip}), removed)
		} else {
			w.takeLocked(ctx, tasks, e, nil, removed)
		}
	}
	w.publishLocked()
	w.mu.Unlock()

	for _, e := range added {
		w.start(ctx, tasks, names, e)
	}
	names.Wait()

	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range removed {
		w.tellLocked(ctx, tasks, e, nil)
	}
	if len(removed) > 0 {
		w.settleLocked(ctx, tasks)
		w.publishLocked()
	}
	w.log.Info("took the new list of endpoints", "added", len(added), "removed", len(removed))
}

// takeLocked gives an entry its addresses, and those of the one among removed
// that had the same name: the engines are there, they begin another life.
// Caller must hold mu.
func (w *Watcher) takeLocked(ctx context.Context, tasks *sync.WaitGroup, e *entry, all []found, removed []*entry) {
	for _, old := range removed {
		if old.target != e.target {
			continue
		}
		all = old.told
		w.tellLocked(ctx, tasks, old, nil)
	}
	w.tellLocked(ctx, tasks, e, all)
}

// tellLocked brings the roster and the probe loops to the addresses of an entry.
// It reports whether the list changed. Caller must hold mu.
func (w *Watcher) tellLocked(ctx context.Context, tasks *sync.WaitGroup, e *entry, all []found) (changed bool) {
	added, removed := w.roster.resolved(e, all)
	w.forgetLocked(removed)
	w.watchLocked(ctx, tasks, added)
	return len(added)+len(removed) > 0
}

// settleLocked gives addresses that have become free to entries that were
// resolved to them too. Caller must hold mu.
func (w *Watcher) settleLocked(ctx context.Context, tasks *sync.WaitGroup) {
	for _, e := range w.roster.entries {
		w.tellLocked(ctx, tasks, e, e.told)
	}
}

// ProbeNow asks for a probe of the endpoint at address (ip:port) at once,
// because a request has just failed to connect there. It never blocks; any
// number of calls become at most one probe each probeGap. An address that is
// no endpoint's is ignored.
func (w *Watcher) ProbeNow(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, watch := range w.watches {
		if watch.address == address {
			select {
			case watch.wake <- struct{}{}:
			default: // One is asked for already.
			}
		}
	}
}

// Status is one endpoint as people want to see it.
type Status struct {
	Endpoint scoring.Endpoint
	// Probed is when the last probe ended, zero before the first.
	Probed time.Time
	// Fault is why the last probe failed; nil if it did not.
	Fault error
	// TLS: it speaks https. Host is what the operator wrote, a name or an ip, to
	// which its certificate is made out.
	TLS  bool
	Host string
	// Draining: it is not ready because the operator wants it so.
	Draining bool
	// Suspended: it may hang, and gets no requests where others serve its models.
	// Trial is then when it is asked for a token.
	Suspended bool
	Trial     time.Time
}

// Status lists the endpoints in the order of the configuration.
func (w *Watcher) Status() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]Status, 0, len(w.roster.members))
	for i, e := range w.roster.endpoints() {
		m := w.roster.members[i]
		list = append(list, Status{
			Endpoint: e, Probed: m.probed, Fault: m.fault,
			TLS: m.target.scheme == "https", Host: m.target.host, Draining: m.entry.Drain,
			Suspended: m.suspension.on, Trial: m.suspension.trial,
		})
	}
	return list
}

// URL is the base URL of an endpoint, such as http://10.0.0.1:8000, for other
// calls of our own; ok is false where the endpoint is gone. An https endpoint
// is named as the operator did, since its certificate is made out to the name.
func (w *Watcher) URL(id scoring.EndpointID) (base string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.roster.member(id)
	if m == nil {
		return "", false
	}
	if m.target.scheme == "https" {
		return "https://" + m.target.hostPort(), true
	}
	return "http://" + m.address.String(), true
}

// ErrGone is the error of a call to an endpoint that is no more.
var ErrGone = errors.New("the endpoint is gone")

// Get is a call of our own to an endpoint, made as probes are: over a
// connection of its own, with the same TLS and key. Path begins with a slash.
// A status other than 2xx is an error, and so is a body of more than limit
// bytes. The caller bounds the time by ctx.
func (w *Watcher) Get(ctx context.Context, id scoring.EndpointID, path string, limit int64) ([]byte, error) {
	w.mu.Lock()
	watch := w.watches[id]
	w.mu.Unlock()
	if watch == nil {
		return nil, ErrGone
	}
	return watch.client.get(ctx, path, limit)
}

// retryResolve is the pause after a name could not be resolved: at start the
// DNS often knows the engines a moment later than we do.
const retryResolve = 2 * time.Second

// follow resolves one name again and again until ctx ends; what it finds is
// probed while life lasts. tried is called after the first time.
func (w *Watcher) follow(ctx, life context.Context, tasks *sync.WaitGroup, e *entry, tried func()) {
	defer tried()
	var (
		last  []found
		fault string
	)
	for {
		all, err := within(ctx, resolveTimeout, func(ctx context.Context) ([]found, error) { return w.net.resolve(ctx, e.target) })
		pause := w.cfg.ResolveInterval
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			// The former addresses stay: an outage of the DNS is none of the
			// engines, and a dead engine is found by its probes.
			w.metrics.resolved.WithLabelValues("error").Inc()
			w.log.Log(ctx, onceWarn(&fault, err), "cannot resolve host name; former addresses stay", "host", e.target.host, "addresses", shown(last), "error", err)
			pause = min(pause, retryResolve)
		default:
			fault = ""
			w.metrics.resolved.WithLabelValues("ok").Inc()
			if !slices.Equal(last, all) {
				w.log.Info("resolved host name", "host", e.target.host, "addresses", shown(all), "before", shown(last))
				last = all
			}
			// Also when nothing changed: an address that another entry held may
			// be free by now.
			w.resolved(life, tasks, e, all)
		}
		tried()
		if !sleep(ctx, pause) {
			return
		}
	}
}

const resolveTimeout = 5 * time.Second

// shown are addresses for the log.
func shown(list []found) []string {
	out := make([]string, len(list))
	for i, f := range list {
		out[i] = f.address.String()
	}
	return out
}

// resolved takes in the addresses of an entry. One that is no longer in the
// configuration is ignored.
func (w *Watcher) resolved(ctx context.Context, tasks *sync.WaitGroup, e *entry, all []found) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.roster.entries, e) {
		return
	}
	if w.tellLocked(ctx, tasks, e, all) {
		w.settleLocked(ctx, tasks)
		w.publishLocked()
		w.instancesLocked(e)
	}
}

// watchLocked starts the probe loops of new members. Caller must hold mu.
func (w *Watcher) watchLocked(ctx context.Context, tasks *sync.WaitGroup, added []*member) {
	for _, m := range added {
		ctx, cancel := context.WithCancel(ctx)
		id, client := m.id, w.net.engine(m.target, m.address)
		configured := len(m.entry.Models) > 0
		watch := &watch{address: m.address.String(), client: client, cancel: cancel, wake: make(chan struct{}, 1)}
		w.watches[id] = watch
		tasks.Go(func() {
			defer cancel()
			w.probe(ctx, id, client, watch.wake, configured)
		})
	}
}

// forgetLocked ends the probe loops of members that are gone. Caller must hold
// mu.
func (w *Watcher) forgetLocked(gone []*member) {
	for _, m := range gone {
		w.watches[m.id].cancel()
		delete(w.watches, m.id)
	}
}

// instancesLocked warns of an LMCache instance that cannot be told to one
// address. Caller must hold mu.
func (w *Watcher) instancesLocked(e *entry) {
	addresses := 0
	for _, m := range w.roster.members {
		if m.entry == e {
			addresses++
		}
	}
	if addresses > 1 && e.LMCache.Instance != "" {
		w.log.Warn("host name of an endpoint with an LMCache instance has several addresses; the instance is ignored, write one entry for each address",
			"address", e.Address, "instance", e.LMCache.Instance, "addresses", addresses)
	}
}

// probeGap is the least time between two probes that failed requests ask for:
// a dead endpoint under load fails thousands of them in a second.
const probeGap = 250 * time.Millisecond

// probe watches one endpoint until ctx ends: its health at every interval and
// when woken, its models when it comes up and now and then. Where its models are
// configured, only its adapters are news: an engine that does not tell of them
// is not pressed.
func (w *Watcher) probe(ctx context.Context, id scoring.EndpointID, e engine, wake <-chan struct{}, configured bool) {
	var (
		suspect bool
		askedAt time.Time // zero: the models are to be asked for
		fault   string    // of the last question for models
	)
	for {
		began := time.Now()
		_, err := within(ctx, w.cfg.ProbeTimeout, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, e.health(ctx, w.cfg.ProbePath)
		})
		if ctx.Err() != nil {
			return
		}
		w.probed(id, time.Since(began), err, suspect)
		if err == nil {
			w.try(ctx, id, e)
		}
		switch {
		case err != nil:
			askedAt = time.Time{}
		case time.Since(askedAt) >= w.cfg.ModelsInterval:
			if w.ask(ctx, id, e, &fault) || configured {
				askedAt = began
			}
		}

		timer := time.NewTimer(time.Until(began.Add(w.cfg.ProbeInterval)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			suspect = false
		case <-wake:
			timer.Stop()
			suspect = true
			if !sleep(ctx, time.Until(began.Add(probeGap))) {
				return
			}
		}
	}
}

// probed records how a probe ended and publishes what follows.
func (w *Watcher) probed(id scoring.EndpointID, took time.Duration, err error, suspect bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.roster.member(id)
	if m == nil {
		return
	}
	wasDown, first := m.down, m.probed.IsZero()
	w.metrics.duration.WithLabelValues(result(err)).Observe(took.Seconds())
	if w.roster.probed(id, time.Now(), err, suspect) {
		w.publishLocked()
	}
	if e, ok := w.publishedLocked(id); ok {
		w.metrics.probes.WithLabelValues(e.Name, result(err)).Inc()
		switch {
		case m.down && !wasDown:
			w.log.Warn("endpoint is not ready", "endpoint", e.Name, "address", e.Address, "error", err)
		case !m.down && (wasDown || first):
			w.log.Info("endpoint is ready", "endpoint", e.Name, "address", e.Address)
		}
	}
}

// ask learns the engine's models and reports whether that went well.
func (w *Watcher) ask(ctx context.Context, id scoring.EndpointID, e engine, fault *string) bool {
	models, err := within(ctx, w.cfg.ProbeTimeout, e.models)
	if ctx.Err() != nil {
		return false
	}
	w.metrics.asked.WithLabelValues(result(err)).Inc()

	w.mu.Lock()
	defer w.mu.Unlock()
	before, ok := w.publishedLocked(id)
	if !ok {
		return false
	}
	if err != nil {
		consequence := "it gets requests for every model"
		if len(before.Models) > 0 {
			consequence = "its adapters are taken for models of their own"
		}
		w.log.Log(ctx, onceWarn(fault, err), "cannot learn the models of endpoint", "until_then", consequence,
			"endpoint", before.Name, "address", before.Address, "error", err)
		return false
	}
	*fault = ""
	if w.roster.learned(id, models) {
		w.publishLocked()
		w.log.Info("endpoint serves models", "endpoint", before.Name, "address", before.Address, "models", models.names, "adapters", models.adapters)
	}
	return true
}

// publishLocked publishes the list, which has changed. Caller must hold mu.
func (w *Watcher) publishLocked() {
	list := w.roster.endpoints()
	w.metrics.published(w.published, list)
	for i, m := range w.roster.members {
		w.metrics.setSuspended(list[i].Name, m.suspension.on)
	}
	w.published = list
	w.publish(slices.Clone(list))
}

// publishedLocked is the endpoint as last published. Caller must hold mu.
func (w *Watcher) publishedLocked(id scoring.EndpointID) (scoring.Endpoint, bool) {
	for _, e := range w.published {
		if e.ID == id {
			return e, true
		}
	}
	return scoring.Endpoint{}, false
}

// onceWarn is the level at which err is logged: a warning when it is news,
// debug when it says the same as last, which it replaces.
func onceWarn(last *string, err error) slog.Level {
	if *last == err.Error() {
		return slog.LevelDebug
	}
	*last = err.Error()
	return slog.LevelWarn
}

// sleep waits for d and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
