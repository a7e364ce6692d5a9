package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/certificate"
	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/kvevents"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/state"
	"github.com/firsttoken/firsttoken/tracing"
)

// newServeCommand makes "firsttoken serve": the service itself.
func newServeCommand() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve Envoy's questions where to send each request",
		Long: "Serve answers Envoy's external processing filter with the endpoint that will give\n" +
			"the first token soonest. It prints the addresses it is bound to as one line of\n" +
			"JSON, logs on standard error, and drains on SIGTERM; a second signal ends it at once.\n" +
			"A file that changes is read again, on SIGHUP at once: the list of endpoints, the arms of\n" +
			"canary and the log level follow it while the service runs; what else has changed needs\n" +
			"a restart. SIGUSR1 leaves every request to Envoy from then on, SIGUSR2 chooses again.",
		Example: "  firsttoken serve --backends 10.0.0.1:8000,10.0.0.2:8000 --model qwen --tokenizer ./qwen\n" +
			"  firsttoken serve --config firsttoken.yml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load(cmd.Flags())
			if err != nil {
				return err
			}
			level := new(slog.LevelVar)
			s, err := newService(cmd.Context(), cfg, cfg.Log.logger(cmd.ErrOrStderr(), level))
			if err != nil {
				return err
			}
			if flags.file != "" {
				s.watchConfig(flags.file, level, func() (config, error) { return flags.load(cmd.Flags()) })
			}
			return s.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	flags.register(cmd.Flags())
	return cmd
}

// service is everything that serve wires together. Its parts know each other
// only through what newService hands them.
type service struct {
	cfg     config
	log     *slog.Logger
	started time.Time

	// controller and source are nil where LMCache is off or not built in.
	controller *lmcache.Controller
	source     *lmcache.Source
	// hashing is nil where source is, or where its settings are fixed.
	hashing *lmcache.Detector
	// events is nil where no engine publishes any.
	events *kvevents.Subscriber
	// counters is nil where the engines' own counters are not read.
	counters *counters.Scraper
	// mp is LMCache in multiprocess mode, and its registries elsewhere.
	mp multiprocess
	// envoys tells running Envoys which engines there are.
	envoys management
	// memory stands in for endpoints that no other source knows.
	memory *routed.Memory
	// checker joins all sources, each for as long as it is right.
	checker *fidelity.Checker

	// decisions is nil where no file of them is kept.
	decisions *decisionFile
	// keeper is nil where what was learnt is not kept.
	keeper  *state.Keeper
	picker  *scoring.Picker
	observe observers
	encoder *prompt.Encoder
	ids     *prompt.IDCheck
	watcher *discovery.Watcher
	server  *extproc.Server
	admin   *admin
	// choosing is the switch that leaves all requests to Envoy.
	choosing *choosing
	// arms are those that requests are shared out to.
	arms atomic.Pointer[canary.Config]
	// reloader follows the configuration file; nil where there is none.
	reloader *reloader
	// spans is nil where nothing is traced.
	spans *tracing.Provider

	adminListener, serverListener net.Listener
	// serverTLS is nil where Envoy speaks with us without TLS.
	serverTLS *certificate.Source
}

// apiKeyVariable is the environment variable whose value we send to engines as
// bearer token on our own calls, as vLLM itself reads it.
const apiKeyVariable = "VLLM_API_KEY" //nolint:gosec // The name of the key, not the key.

// newService binds every socket and makes every part, and starts none. Sockets
// that others wait for come first, slow things last.
func newService(ctx context.Context, cfg config, log *slog.Logger) (_ *service, err error) {
	s := &service{cfg: cfg, log: log, started: time.Now()}
	defer func() { //nolint:contextcheck // What was taken is freed whatever the context says.
		if err != nil {
			s.close()
		}
	}()
	// What follows takes its time, and a signal may come meanwhile.
	endpoints := func() []scoring.Endpoint { return s.picker.Endpoints() }
	s.choosing = newChoosing(cfg, endpoints, func(choose bool) { s.server.SetChoosing(choose) }, log)
	for _, warning := range cfg.warnings() {
		log.Warn("the configuration is probably not what is meant", "warning", warning)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// An LMCache worker that finds no controller when it starts never reports
	// again, so nothing comes before these sockets.
	if err := s.bindLMCache(registry); err != nil {
		return nil, err
	}
	if err := s.bindCoordinator(ctx, registry); err != nil {
		return nil, err
	}
	s.askElsewhere(registry)
	if err := s.subscribe(registry); err != nil {
		return nil, err
	}
	if s.adminListener, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.Admin.Listen); err != nil {
		return nil, fmt.Errorf("admin.listen: %w", err)
	}
	if s.serverListener, err = extproc.Listen(ctx, cfg.Server.Listen); err != nil {
		return nil, fmt.Errorf("server.listen: %w", err)
	}
	if s.serverListener, s.serverTLS, err = s.secure(s.serverListener, cfg.Server.TLS, "server", registry); err != nil {
		return nil, err
	}
	if err := s.bindManagement(ctx, registry); err != nil {
		return nil, err
	}

	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) //nolint:gosec // It breaks ties; nobody gains by guessing it.
	s.memory = routed.New(cfg.Memory, log)
	s.checker = s.check()
	fidelity.NewMetrics(registry, s.checker)
	if s.picker, err = scoring.NewPicker(cfg.Scoring, time.Now, rng, s.checker); err != nil {
		return nil, err
	}
	if s.keeper = state.New(cfg.State, log, registry); s.keeper != nil {
		s.keeper.Load(s.picker.Restore)
	}
	s.picker.RememberBy(s.memory)
	registry.MustRegister(newLedgerCollector(s.picker), newMemoryCollector(s.picker.Endpoints, s.memory))
	if s.source != nil {
		registry.MustRegister(newCacheCollector(s.picker.Endpoints, s.source, s.controller))
	}

	apiKey := strings.TrimSpace(os.Getenv(apiKeyVariable)) // Secrets from files end with a newline.
	s.watcher, err = discovery.New(cfg.Discovery, cfg.Endpoints, apiKey, log, discovery.NewMetrics(registry), s.publish)
	if err != nil {
		return nil, err
	}
	s.readCounters(registry, s.checker.Counted, s.memory.Observe, s.capacity)
	fetch, err := fetchTokenizer()
	if err != nil {
		return nil, err
	}
	tls, err := cfg.Discovery.TLS.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("discovery: tls.ca_file: %w", err)
	}
	options := prompt.Options{
		Log:      log,
		Metrics:  prompt.NewMetrics(registry),
		Endpoint: s.renderer,
		APIKey:   apiKey,
		Fetch:    fetch,
		TLS:      tls,
		Aliases:  cfg.Aliases,
	}
	if s.encoder, err = prompt.NewEncoder(cfg.Prompt, options); err != nil { //nolint:contextcheck // It lives until close.
		return nil, err
	}
	s.ids = prompt.NewIDCheck(s.encoder, options, registry)
	if s.spans, err = tracing.New(ctx, cfg.Tracing, version(), log); err != nil {
		return nil, err
	}
	journal := newJournal(journalSize, cfg.Server.Fallbacks)
	if s.decisions, err = newDecisionFile(cfg.Decisions, log, registry, journal); err != nil {
		return nil, err
	}
	journal.file = s.decisions
	s.observe = observers{journal, s.checker, s.memory}
	if s.events != nil {
		s.observe = append(s.observe, s.events)
	}
	if s.hashing != nil {
		s.observe = append(s.observe, computed{s.hashing})
	}
	s.server = extproc.NewServer(cfg.Server, extproc.Deps{
		Picker:   s.picker,
		Encoder:  sampledEncoder{s.encoder, s.ids},
		Ask:      s.mp.asker(),
		Metrics:  extproc.NewMetrics(registry),
		Log:      log,
		Observer: s.observe,
		Probe:    s.watcher.ProbeNow,
		Missed:   s.watcher.Missed,
		Alive:    s.watcher.Alive,
		Rescued:  journal.Rescued,
		Answer:   (&answers{s.picker.Endpoints, s.watcher.Cards, cfg.Aliases, apiKey, s.started}).answer,
		Instance: s.instanceOf,
		Tracer:   s.spans.Tracer(),
	})
	s.setArms(cfg.Canary)
	// Before the first request: a file that is there turns it off.
	s.choosing.look()
	s.admin = &admin{
		registry: registry, journal: journal, status: s.status, choosing: s.choosing, log: log,
		explain: s.server.Explain, bodyLimit: cfg.Server.BodyLimit, ready: s.server.Ready,
	}
	if s.source != nil {
		s.admin.controllerAPI = lmcache.API(s.controller, s.source)
	}
	return s, nil
}

// setArms shares the requests from now on out to the arms of a valid configuration.
func (s *service) setArms(c canary.Config) {
	s.server.SetArms(c)
	s.arms.Store(&c)
}

// bindLMCache hosts the LMCache controller, if it is wanted.
func (s *service) bindLMCache(registry prometheus.Registerer) error {
	cfg := s.cfg.LMCache
	if !cfg.Enabled {
		return nil
	}
	index := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: cfg.MaxKeys})
	controller, err := lmcache.NewController(cfg.Controller, index, s.log, lmcache.NewMetrics(registry))
	switch {
	case errors.Is(err, zmq.ErrNoZMQ) && !s.cfg.asksForLMCache():
		s.log.Warn("this build has no ZeroMQ; endpoints are chosen without knowing what LMCache has cached")
		return nil
	case errors.Is(err, zmq.ErrNoZMQ):
		return fmt.Errorf("lmcache: %w; write enabled: false, or take a build with ZeroMQ", err)
	case err != nil:
		return fmt.Errorf("lmcache.controller: %w; write other addresses, or lmcache.enabled: false (--lmcache=false) where there is no LMCache", err)
	}
	s.controller = controller
	s.source, err = lmcache.NewSource(cfg.Config, index, controller, s.log)
	if err != nil {
		return fmt.Errorf("lmcache: %w", err)
	}
	s.detectHashing(index, registry)
	return nil
}

// subscribe makes the subscriber of the engines' KV events, if any has them.
func (s *service) subscribe(registry prometheus.Registerer) error {
	if !s.cfg.hasKVEvents() {
		return nil
	}
	events, err := kvevents.New(s.cfg.KVEvents, s.log)
	if err != nil {
		return fmt.Errorf("endpoints[].kv_events: %w; leave it out, or take a build with ZeroMQ", err)
	}
	s.events = events
	kvevents.NewMetrics(registry, events)
	return nil
}

// publish hands the list of endpoints to everybody who needs it. The cache
// source comes first: the picker asks it about the endpoints it was given. An
// instance whose endpoint is gone, and no other's, is forgotten.
func (s *service) publish(endpoints []scoring.Endpoint) {
	if s.source != nil {
		before := s.source.Mapping().Instances
		s.source.SetEndpoints(endpoints)
		for _, instance := range orphans(before, s.source.Mapping().Instances, endpoints) {
			s.log.Info("endpoint of LMCache instance is gone; forgetting what it has cached", "instance", instance)
			s.controller.DropInstance(instance)
		}
	}
	s.mp.setEndpoints(endpoints)
	if s.events != nil {
		s.events.SetEndpoints(endpoints)
	}
	if s.counters != nil {
		s.counters.SetEndpoints(endpoints)
	}
	s.memory.SetEndpoints(endpoints)
	s.checker.SetEndpoints(endpoints)
	s.picker.SetEndpoints(endpoints)
	s.envoys.changed()
}

// orphans are the instances that were mapped to endpoints which are gone, and
// that no present endpoint has. A name that resolves anew keeps its instance:
// it may have registered from there already.
func orphans(before, now map[scoring.EndpointID]string, present []scoring.Endpoint) []string {
	owned := make(map[string]bool, len(now))
	for _, instance := range now {
		owned[instance] = true
	}
	var gone []string
	for id, instance := range before {
		stays := slices.ContainsFunc(present, func(e scoring.Endpoint) bool { return e.ID == id })
		if !stays && !owned[instance] {
			gone = append(gone, instance)
		}
	}
	slices.Sort(gone)
	return gone
}

// instanceOf is the LMCache instance that is mapped to an endpoint.
func (s *service) instanceOf(id scoring.EndpointID) string {
	if s.source == nil {
		return ""
	}
	return s.source.Mapping().Instances[id]
}

// renderer is the base URL of a ready engine that serves model.
func (s *service) renderer(model string) (string, bool) {
	var ready []scoring.Endpoint
	for _, e := range s.picker.Endpoints() {
		if e.Ready && e.Serves(model) {
			ready = append(ready, e)
		}
	}
	if len(ready) == 0 {
		return "", false
	}
	return s.watcher.URL(ready[rand.IntN(len(ready))].ID) //nolint:gosec // It spreads load.
}

// bound is the line that serve prints when its sockets are bound.
type bound struct {
	Listen string `json:"listen"`
	Admin  string `json:"admin"`
	// LMCache is absent where the controller is not hosted.
	LMCache *boundLMCache `json:"lmcache,omitempty"`
	// Coordinator is absent where we are not the LMCache servers' coordinator.
	Coordinator string `json:"lmcache_coordinator,omitempty"`
	// XDS is absent where Envoys get a static config.
	XDS string `json:"xds,omitempty"`
}

type boundLMCache struct {
	Pull      string `json:"pull"`
	Reply     string `json:"reply"`
	Heartbeat string `json:"heartbeat,omitempty"`
}

// run serves until ctx ends, drains and returns nil, or until a part fails. It
// prints the bound addresses to out first.
func (s *service) run(ctx context.Context, out io.Writer) error {
	defer s.close() //nolint:contextcheck // What was taken is freed whatever the context says.
	if err := json.NewEncoder(out).Encode(s.bound()); err != nil {
		return fmt.Errorf("print the bound addresses: %w", err)
	}

	// Everything else must outlive the server: streams that drain still need
	// decisions, bookings and an admin port to look at.
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	beside, stop := context.WithCancel(failed)
	defer stop()
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(failed, cancel)()

	if s.controller != nil {
		group.Go(func() error { return s.controller.Run(beside) })
	}
	if s.hashing != nil {
		group.Go(func() error { return s.hashing.Run(beside) })
	}
	group.Go(func() error { return s.ids.Run(beside) })
	s.mp.run(beside, group)
	if s.events != nil {
		group.Go(func() error { return s.events.Run(beside) })
	}
	if s.counters != nil {
		group.Go(func() error { return s.counters.Run(beside) })
	}
	group.Go(func() error { return s.watcher.Run(beside) })
	s.envoys.run(beside, group, s.watcher)
	s.reloader.start(beside, group)
	s.choosing.start(beside, group)
	group.Go(func() error { return s.admin.run(beside, s.adminListener) })
	group.Go(func() error { return s.expire(beside) })
	if s.decisions != nil {
		group.Go(func() error { return s.decisions.run(beside) })
	}
	group.Go(func() error { return tuneCollector(beside) })
	if s.keeper != nil {
		group.Go(func() error { return s.keeper.Run(beside, s.picker.Fits) })
	}
	group.Go(func() error { return s.probe(beside) })
	group.Go(func() error {
		select {
		case <-s.watcher.Synced():
			s.server.SetReady(true)
			s.logOpen()
		case <-beside.Done():
		}
		return nil
	})
	group.Go(func() error {
		defer stop()
		return s.server.Run(serving, s.serverListener)
	})
	defer context.AfterFunc(ctx, func() { s.log.Info("draining", "timeout", s.cfg.Server.DrainTimeout.String()) })()

	s.log.Info("serving", "version", version(), "listen", s.bound().Listen, "admin", s.bound().Admin,
		"policy", s.cfg.Scoring.Policy, "endpoints", len(s.cfg.Endpoints))
	err := group.Wait()
	s.log.Info("stopped")
	return err
}

// logOpen says that requests are taken from now on, and how many endpoints a
// probe has failed on by now.
func (s *service) logOpen() {
	endpoints, down := s.picker.Endpoints(), 0
	for _, e := range endpoints {
		if !e.Ready {
			down++
		}
	}
	if down == len(endpoints) {
		s.log.Warn("open for requests, but no endpoint is ready; they are refused until one is", "endpoints", len(endpoints))
		return
	}
	s.log.Info("open for requests", "endpoints", len(endpoints), "not_ready", down)
}

func (s *service) bound() bound {
	b := bound{Listen: s.serverListener.Addr().String(), Admin: s.adminListener.Addr().String()}
	if s.serverListener.Addr().Network() == "unix" {
		b.Listen = s.cfg.Server.Listen // with its scheme, as Envoy's config wants it
	}
	if s.controller != nil {
		addresses := boundLMCache(s.controller.Addresses())
		b.LMCache = &addresses
	}
	if s.mp.listener != nil {
		b.Coordinator = s.mp.listener.Addr().String()
	}
	if s.envoys.listener != nil {
		b.XDS = s.envoys.address(s.cfg.XDS.Listen)
	}
	return b
}

// expireInterval is how late a predicted first token may be noticed when no
// request comes; each decision looks as well.
const expireInterval = 100 * time.Millisecond

// expire lets happen what happens in the ledger by time alone, until ctx ends:
// what is held goes at the moment it may.
func (s *service) expire(ctx context.Context) error {
	timer := time.NewTimer(expireInterval)
	defer timer.Stop()
	// The next release may move more often than the timer fires, so latest does not
	// move with it.
	latest := time.Now().Add(expireInterval)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			for _, r := range s.picker.Expire() {
				s.observe.Ended(r.Decision(), scoring.OutcomeExpired, "")
			}
			latest = time.Now().Add(expireInterval)
		case <-s.picker.Rescheduled():
		}
		next := latest
		if at, ok := s.picker.NextRelease(); ok && at.Before(next) {
			next = at
		}
		timer.Reset(max(0, time.Until(next)))
	}
}

// close frees what newService took; what has a life of its own is closed
// already.
func (s *service) close() {
	s.choosing.close()
	if s.controller != nil {
		s.controller.Close()
	}
	s.mp.close()
	s.envoys.close()
	if s.events != nil {
		s.events.Close()
	}
	for _, l := range []net.Listener{s.adminListener, s.serverListener} {
		if l != nil {
			_ = l.Close()
		}
	}
	if s.encoder != nil {
		s.encoder.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), spansTimeout)
	defer cancel()
	if err := s.spans.Close(ctx); err != nil {
		s.log.Warn("stopping", "error", err)
	}
}

// spansTimeout bounds the wait for a collector when the service ends.
const spansTimeout = 2 * time.Second
