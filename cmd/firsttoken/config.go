package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/envoy/xds"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/hub"
	"github.com/firsttoken/firsttoken/kvevents"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/lmcache/remote"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/state"
	"github.com/firsttoken/firsttoken/tracing"
)

// config is the service's whole configuration: one section for each part, as
// the part defines it. Sections that a file leaves out hold their defaults.
type config struct {
	// Log sets what is logged, on standard error.
	Log logConfig `yaml:"log"`
	// Server is what Envoy talks to: ext_proc, access log and health.
	Server extproc.Config `yaml:"server"`
	// Admin is what people and Prometheus look at.
	Admin adminConfig `yaml:"admin"`
	// Scoring sets how endpoints are chosen.
	Scoring scoring.Config `yaml:"scoring"`
	// Prompt sets how requests become tokens.
	Prompt prompt.Config `yaml:"prompt"`
	// Aliases are further names of models, {alias: model}: what a client asks for by
	// an alias leaves with the model's own name in its body. It needs a service
	// that is up and a body that it may change (docs/from-production-stack.md):
	// names that the engines know themselves (vLLM's --served-model-name) belong
	// into endpoints[].models.
	Aliases map[string]string `yaml:"aliases"`
	// Endpoints are the engines.
	Endpoints []discovery.Entry `yaml:"endpoints"`
	// Discovery sets how the endpoints are watched.
	Discovery discovery.Config `yaml:"discovery"`
	// Counters sets how the engines' own counters are read: how much their cache
	// holds, what they found there, when they were started.
	Counters counters.Config `yaml:"counters"`
	// LMCache sets how engines report to us what they have cached, and how that
	// becomes cached prefixes.
	LMCache lmcacheConfig `yaml:"lmcache"`
	// KVEvents sets what is remembered of the KV cache events that engines
	// publish; endpoints[].kv_events says where.
	KVEvents kvevents.Config `yaml:"kv_events"`
	// Memory stands in where nothing reports what an engine has cached: what
	// was routed there is believed to be held.
	Memory routed.Config `yaml:"memory"`
	// XDS tells running Envoys which engines there are, as endpoints come and go.
	XDS xds.Config `yaml:"xds"`
	// Canary gives shares of the requests to arms, each routed by its own policy or by
	// Envoy. It follows the file while the service runs.
	Canary canary.Config `yaml:"canary"`
	// Decisions sets whether the records of /decisions are kept in a file.
	Decisions decisionsConfig `yaml:"decisions"`
	// State sets where what was learnt of the engines' speed outlives a restart.
	State state.Config `yaml:"state"`
	// Tracing sends a span of each decision to an OpenTelemetry collector.
	Tracing tracing.Config `yaml:"tracing"`
}

func defaultConfig() config {
	return config{
		Log:       logConfig{Level: "info", Format: "json"},
		Server:    extproc.DefaultConfig(),
		Admin:     adminConfig{Listen: "127.0.0.1:9090"},
		Scoring:   scoring.DefaultConfig(),
		Prompt:    prompt.DefaultConfig(),
		Discovery: discovery.DefaultConfig(),
		Counters:  counters.DefaultConfig(),
		LMCache:   lmcacheConfig{true, lmcache.DefaultConfig(), lmcache.DefaultControllerConfig(), coordinator.DefaultConfig(), remote.DefaultConfig()},
		KVEvents:  kvevents.DefaultConfig(),
		Memory:    routed.DefaultConfig(),
		XDS:       xds.DefaultConfig(),
		Canary:    canary.DefaultConfig(),
		Decisions: defaultDecisionsConfig(),
		State:     state.DefaultConfig(),
		Tracing:   tracing.DefaultConfig(),
	}
}

// lmcacheConfig sets how engines report to us what they have cached.
type lmcacheConfig struct {
	// Enabled hosts the controller that LMCache in the engines reports to. If
	// false, only KV events tell what an engine holds; for engines without them
	// what was routed there is believed to be held.
	Enabled        bool `yaml:"enabled"`
	lmcache.Config `yaml:",inline"`
	// Controller sets the sockets that LMCache workers connect to.
	Controller lmcache.ControllerConfig `yaml:"controller"`
	// Coordinator sets how LMCache in multiprocess mode (lmcache server) tells
	// what it holds. It needs no controller.
	Coordinator coordinator.Config `yaml:"coordinator"`
	// Ask names registries of LMCache that run elsewhere, to be asked.
	Ask remote.Config `yaml:"ask"`
}

// Validate joins all faults, each beginning with its path below path.
func (c lmcacheConfig) Validate(path string) error {
	faults := []error{c.Config.Validate(path), c.Coordinator.Validate(path + ".coordinator"), c.Ask.Validate(path + ".ask")}
	if c.Coordinator.Listen != "" && c.Ask.Coordinator != "" {
		faults = append(faults, fmt.Errorf("%s.ask.coordinator: %s.coordinator.listen is set too; servers report to one coordinator: be it, or ask it", path, path))
	}
	if c.Enabled {
		faults = append(faults, c.Controller.Validate(path+".controller"))
	}
	return errors.Join(faults...)
}

// asksForLMCache reports whether the operator counts on LMCache: then a build
// without it is a fault, otherwise worth a warning only.
func (c config) asksForLMCache() bool {
	return c.LMCache.Controller != lmcache.DefaultControllerConfig() ||
		slices.ContainsFunc(c.Endpoints, func(e discovery.Entry) bool {
			e.LMCache.Server = "" // reports by HTTP
			return e.LMCache != discovery.LMCacheEntry{}
		})
}

// hasKVEvents reports whether any engine publishes events.
func (c config) hasKVEvents() bool {
	return slices.ContainsFunc(c.Endpoints, func(e discovery.Entry) bool { return e.KVEvents.Endpoint != "" })
}

// validate joins all faults of all sections, each beginning with its path.
func (c config) validate() error {
	faults := []error{
		c.Log.Validate("log"),
		c.Server.Validate("server"),
		c.Admin.Validate("admin"),
		c.Scoring.Validate("scoring"),
		c.Prompt.Validate("prompt"),
		c.validateAliases(),
		discovery.ValidateEntries("endpoints", c.Endpoints),
		c.Discovery.Validate("discovery"),
		c.Counters.Validate("counters"),
		c.LMCache.Validate("lmcache"),
		c.KVEvents.Validate("kv_events"),
		c.Memory.Validate("memory"),
		c.validateXDS(),
		c.Canary.Validate("canary"),
		c.Decisions.Validate("decisions"),
		c.State.Validate("state"),
		c.Tracing.Validate("tracing"),
	}
	if most := c.Server.MaxMessageTimeout - envoy.HoldMargin; c.Scoring.Hold.Enabled && c.Scoring.Hold.Max > most && c.Server.MaxMessageTimeout > 0 {
		faults = append(faults, fmt.Errorf("scoring.hold.max: is %s, but Envoy waits no longer than server.max_message_timeout (%s), %s of it for the way back: "+
			"write at most %s, or raise server.max_message_timeout and with it max_message_timeout of Envoy's ext_proc filter (\"firsttoken envoy bootstrap\" writes it)",
			c.Scoring.Hold.Max, c.Server.MaxMessageTimeout, envoy.HoldMargin, max(0, most)))
	}
	for i, e := range c.Endpoints {
		if _, ok := c.LMCache.Groups[e.LMCache.Group]; !ok && e.LMCache.Group != "" {
			faults = append(faults, fmt.Errorf("endpoints[%d].lmcache.group: %q is not among lmcache.groups: %q",
				i, e.LMCache.Group, slices.Sorted(maps.Keys(c.LMCache.Groups))))
		}
	}
	return errors.Join(faults...)
}

// logConfig sets what is logged, on standard error.
type logConfig struct {
	// Level is the least level that is logged: debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is json (one object a line) or text.
	Format string `yaml:"format"`
}

// Validate joins all faults, each beginning with its path below path.
func (c logConfig) Validate(path string) error {
	var faults []error
	if _, ok := logLevels[c.Level]; !ok {
		faults = append(faults, fmt.Errorf("%s.level: unknown level %q; write debug, info, warn or error", path, c.Level))
	}
	if c.Format != "json" && c.Format != "text" {
		faults = append(faults, fmt.Errorf("%s.format: unknown format %q; write json or text", path, c.Format))
	}
	return errors.Join(faults...)
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// logger writes to w as a valid logConfig says; level, which it sets, is what it
// obeys from then on.
func (c logConfig) logger(w io.Writer, level *slog.LevelVar) *slog.Logger {
	level.Set(logLevels[c.Level])
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// adminConfig sets the port for people and Prometheus.
type adminConfig struct {
	// Listen is the address of /metrics, /status, /decisions, /healthz, /readyz
	// and /debug/pprof. Whoever reaches it sees the fleet and can profile the
	// process: leave it on loopback, or keep strangers away from it.
	Listen string `yaml:"listen"`
}

// Validate joins all faults, each beginning with its path below path.
func (c adminConfig) Validate(path string) error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("%s.listen: %q is no address (%w); write host:port", path, c.Listen, err)
	}
	return nil
}

// configFlags are the flags of every command that needs the service's
// configuration: the file, and what a quick start needs in place of one.
type configFlags struct {
	file string

	logLevel, logFormat         string
	listen, adminListen, policy string
	backends, lmcacheInstances  []string
	model, tokenizer            string
	stateDir                    string

	lmcache                                     bool
	lmcachePull, lmcacheReply, lmcacheHeartbeat string
}

func (f *configFlags) register(flags *pflag.FlagSet) {
	d := defaultConfig()
	flags.StringVar(&f.file, "config", "", "YAML `file` with the configuration; flags win over it")
	flags.StringVar(&f.logLevel, "log-level", d.Log.Level, "least level to log: debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", d.Log.Format, "log as json or text, on standard error")
	flags.StringVar(&f.listen, "listen", d.Server.Listen, "`address` for Envoy: host:port or unix:/path")
	flags.StringVar(&f.adminListen, "admin-listen", d.Admin.Listen, "`address` of /metrics, /status and /decisions")
	flags.StringVar(&f.policy, "policy", d.Scoring.Policy, "how to choose: "+strings.Join(scoring.PolicyIDs(), " or "))
	flags.StringVar(&f.stateDir, "state-dir", d.State.Directory, "`folder` in which the learnt speed of the engines outlives a restart; by default systemd's StateDirectory=, else none")
	flags.StringSliceVar(&f.backends, "backends", nil, "engines: host:port, http://host:port or https://host:port, with commas between (in place of endpoints in the file)")
	flags.StringSliceVar(&f.lmcacheInstances, "lmcache-instances", nil, "LMCache instance `ids` of the backends, as many and in the same order")
	flags.BoolVar(&f.lmcache, "lmcache", d.LMCache.Enabled, "host the controller that LMCache in the engines reports to")
	flags.StringVar(&f.lmcachePull, "lmcache-pull", d.LMCache.Controller.Pull, "`address` for LMCache's controller_pull_url")
	flags.StringVar(&f.lmcacheReply, "lmcache-reply", d.LMCache.Controller.Reply, "`address` for LMCache's controller_reply_url")
	flags.StringVar(&f.lmcacheHeartbeat, "lmcache-heartbeat", d.LMCache.Controller.Heartbeat, "`address` for LMCache's heartbeats; empty: none")
	flags.StringVar(&f.model, "model", "", "`name` of the model that the backends serve and --tokenizer belongs to")
	flags.StringVar(&f.tokenizer, "tokenizer", "", "`folder` with the model's tokenizer.json, tokenizer_config.json and chat template, or the model's id on a Hugging Face hub")
}

// load reads the file, where one is named, lets the flags that were given win
// over it and returns the configuration with every fault of it joined.
func (f *configFlags) load(flags *pflag.FlagSet) (config, error) {
	cfg := defaultConfig()
	var faults []error
	if f.file != "" {
		text, err := os.ReadFile(f.file)
		if err != nil {
			return cfg, fmt.Errorf("--config: %w", err)
		}
		if faults, err = decodeYAML(text, &cfg); err != nil {
			return cfg, fmt.Errorf("%s:\n%w", f.file, err)
		}
		cfg.resolvePaths(filepath.Dir(f.file))
	}
	faults = append(faults, f.apply(flags, &cfg)...)
	if len(cfg.Endpoints) == 0 && !slices.ContainsFunc(faults, func(err error) bool { return strings.HasPrefix(err.Error(), "endpoints") }) {
		faults = append(faults, errors.New("endpoints: is empty; list at least one engine, or give --backends host:port"))
	}
	if err := cfg.validate(); err != nil {
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		if f.file != "" {
			return cfg, fmt.Errorf("%s:\n%w", f.file, err)
		}
		return cfg, err
	}
	return cfg, nil
}

// apply writes the flags that were given into cfg and returns what is wrong
// with them. Lists are never merged: what both name is a fault.
func (f *configFlags) apply(flags *pflag.FlagSet, cfg *config) []error {
	for name, set := range map[string]func(){
		"log-level":    func() { cfg.Log.Level = f.logLevel },
		"log-format":   func() { cfg.Log.Format = f.logFormat },
		"listen":       func() { cfg.Server.Listen = f.listen },
		"admin-listen": func() { cfg.Admin.Listen = f.adminListen },
		"policy":       func() { cfg.Scoring.Policy = f.policy },
		"state-dir":    func() { cfg.State.Directory = f.stateDir },

		"lmcache":           func() { cfg.LMCache.Enabled = f.lmcache },
		"lmcache-pull":      func() { cfg.LMCache.Controller.Pull = f.lmcachePull },
		"lmcache-reply":     func() { cfg.LMCache.Controller.Reply = f.lmcacheReply },
		"lmcache-heartbeat": func() { cfg.LMCache.Controller.Heartbeat = f.lmcacheHeartbeat },
	} {
		if flags.Changed(name) {
			set()
		}
	}
	var faults []error
	if flags.Changed("backends") {
		if len(cfg.Endpoints) > 0 {
			faults = append(faults, errors.New("--backends: the file lists endpoints too; write them in one place"))
		}
		cfg.Endpoints = f.endpoints()
	}
	if flags.Changed("lmcache-instances") {
		faults = append(faults, f.nameInstances(flags, cfg)...)
	}
	return append(faults, f.nameModel(flags, cfg)...)
}

func (f *configFlags) endpoints() []discovery.Entry {
	var entries []discovery.Entry
	for _, address := range f.backends {
		entries = append(entries, discovery.Entry{Address: strings.TrimSpace(address)})
	}
	return entries
}

// nameInstances gives each backend its LMCache instance.
func (f *configFlags) nameInstances(flags *pflag.FlagSet, cfg *config) []error {
	if !flags.Changed("backends") {
		return []error{errors.New("--lmcache-instances: names the instances of --backends, which is not given; in a file write endpoints[].lmcache.instance")}
	}
	if len(f.lmcacheInstances) != len(f.backends) {
		return []error{fmt.Errorf("--lmcache-instances: has %d ids for %d backends; give one for each, in the same order", len(f.lmcacheInstances), len(f.backends))}
	}
	var faults []error
	for i, id := range f.lmcacheInstances {
		if cfg.Endpoints[i].LMCache.Instance = strings.TrimSpace(id); cfg.Endpoints[i].LMCache.Instance == "" {
			faults = append(faults, fmt.Errorf("--lmcache-instances: the id of backend %s is empty", f.backends[i]))
		}
	}
	return faults
}

// nameModel makes the one model of a quick start.
func (f *configFlags) nameModel(flags *pflag.FlagSet, cfg *config) []error {
	model, tokenizer := flags.Changed("model"), flags.Changed("tokenizer")
	switch {
	case !model && !tokenizer:
		return nil
	case !model:
		return []error{errors.New("--tokenizer: give --model too, the name that clients ask for")}
	case len(cfg.Prompt.Models) > 0:
		return []error{errors.New("--model: the file lists prompt.models too; write them in one place")}
	case f.model == "":
		return []error{errors.New("--model: is empty; write the name that clients ask for")}
	}
	// The backends are still asked which models they serve: they know their
	// adapters, and a request for one must not be refused.
	cfg.Prompt.Models = []prompt.ModelConfig{{Name: f.model, Tokenizer: f.tokenizer}}
	return nil
}

// resolvePaths makes paths of the file relative to the file's folder, so that
// the service can be started from anywhere.
func (c *config) resolvePaths(dir string) {
	resolve := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	resolve(&c.Discovery.TLS.CAFile)
	for _, file := range append(c.Server.TLS.Files(), c.XDS.TLS.Files()...) {
		resolve(file)
	}
	resolve(&c.State.Directory)
	resolve(&c.Server.OffFile)
	resolve(&c.Decisions.File)
	for i := range c.Prompt.Models {
		// What may be a model's id on a hub is left alone, unless it is a folder.
		if m := &c.Prompt.Models[i]; !hub.IsID(m.Tokenizer) || isFolder(filepath.Join(dir, m.Tokenizer)) {
			resolve(&m.Tokenizer)
			if onHub(m.Tokenizer) {
				// ./org/name in a file of the present folder is still no id.
				m.Tokenizer = "./" + m.Tokenizer
			}
		}
		resolve(&c.Prompt.Models[i].ChatTemplate)
	}
}

// summary is what a good configuration means, for people.
func (c config) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ok: %s, policy %s, Envoy at %s, admin at %s\n",
		plural(len(c.Endpoints), "endpoint"), c.Scoring.Policy, c.Server.Listen, c.Admin.Listen)
	if c.Scoring.Hold.Enabled {
		fmt.Fprintf(&b, "requests are held for up to %s; Envoy's ext_proc filter needs max_message_timeout: %s\n",
			c.Scoring.Hold.Max, c.Server.MaxMessageTimeout)
	}
	if r := c.Server.Rescue; r.Enabled {
		fmt.Fprintf(&b, "requests without a first token in time are tried on %s; Envoy's pool needs the filter that envoy bootstrap writes, with message_timeout above %s\n",
			plural(min(r.Tries, max(0, len(c.Endpoints)-1)), "other endpoint"), r.Longest())
	}
	if len(c.Server.Services) > 1 {
		fmt.Fprintf(&b, "services, each standing by for those before it: %s\n", strings.Join(c.Server.Services, ", "))
	}
	for _, e := range c.Endpoints {
		fmt.Fprintf(&b, "endpoint %s", e.Address)
		if e.Name != "" {
			fmt.Fprintf(&b, " (%s)", e.Name)
		}
		if len(e.Models) > 0 {
			fmt.Fprintf(&b, ", serves %s", strings.Join(e.Models, ", "))
		}
		if role := e.RoleOf(); role != scoring.RoleBoth {
			fmt.Fprintf(&b, ", %s only", role)
		}
		if e.LMCache.Instance != "" {
			fmt.Fprintf(&b, ", LMCache instance %s", e.LMCache.Instance)
			if !c.LMCache.Enabled && c.LMCache.Ask.Controller == "" {
				b.WriteString(" (unused: lmcache.enabled is false, lmcache.ask.controller empty)")
			}
		}
		if e.LMCache.Server != "" {
			fmt.Fprintf(&b, ", LMCache server %s", e.LMCache.Server)
			if c.LMCache.Coordinator.Listen == "" && c.LMCache.Ask.Coordinator == "" {
				b.WriteString(" (unused: lmcache.coordinator.listen and lmcache.ask.coordinator are empty)")
			}
		}
		if e.KVEvents.Endpoint != "" {
			fmt.Fprintf(&b, ", KV events at %s", e.KVEvents.Endpoint)
		}
		b.WriteByte('\n')
	}
	for _, arm := range c.Canary.Arms {
		fmt.Fprintf(&b, "%s\n", armSummary(arm))
	}
	if c.XDS.Listen != "" {
		fmt.Fprintf(&b, "xDS for Envoys at %s, which listen at %s\n", c.XDS.Listen, c.XDS.EnvoyListen)
	}
	if c.LMCache.Enabled {
		fmt.Fprintf(&b, "LMCache controller at pull %s, reply %s, heartbeat %s\n",
			c.LMCache.Controller.Pull, c.LMCache.Controller.Reply, cmp.Or(c.LMCache.Controller.Heartbeat, "none"))
	}
	if c.LMCache.Coordinator.Listen != "" {
		fmt.Fprintf(&b, "LMCache coordinator at %s\n", c.LMCache.Coordinator.Listen)
	}
	for _, url := range []string{c.LMCache.Ask.Coordinator, c.LMCache.Ask.Controller} {
		if url != "" {
			fmt.Fprintf(&b, "LMCache asked at %s\n", url)
		}
	}
	for _, m := range c.Prompt.Models {
		fmt.Fprintf(&b, "model %s, %s\n", m.Name, tokenizerSummary(m))
	}
	if c.Decisions.File != "" {
		fmt.Fprintf(&b, "decisions are kept in %s\n", c.Decisions.File)
	}
	if folder := c.State.Folder(); folder != "" {
		fmt.Fprintf(&b, "learnt speeds are kept in %s\n", folder)
	}
	return b.String()
}

// armSummary is what an arm means.
func armSummary(arm canary.Arm) string {
	text := fmt.Sprintf("arm %s, weight %d, policy %s", arm.Name, arm.Weight, cmp.Or(arm.Policy, "as without arms"))
	if arm.Header != "" {
		text += ", requests with " + arm.Header
	}
	if len(arm.Models) > 0 {
		text += ", for " + strings.Join(arm.Models, ", ")
	}
	return text
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
