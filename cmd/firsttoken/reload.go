package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/discovery"
)

// reloader takes in a configuration file that changes while the service runs:
// the list of endpoints, the arms and the log level. What else has changed it names,
// because that needs a restart. A file that is not good changes nothing.
//
// The file is read at intervals, not watched: what an editor, a mounted
// ConfigMap (a link that is switched) and a network file system do to it is all
// the same then.
type reloader struct {
	// The following are set once.
	file string
	// read gives the configuration anew, with the flags that win over the file.
	read func() (config, error)
	// take makes a list of endpoints the one that holds.
	take func([]discovery.Entry)
	// arms makes these the arms that hold.
	arms func(canary.Config)
	// level is what the log obeys.
	level *slog.LevelVar
	// events says that KV events can be followed; what follows them is made at
	// the start, if at all.
	events  bool
	log     *slog.Logger
	results *prometheus.CounterVec
	good    prometheus.Gauge

	// holds is the configuration that is in use; taken and seen are digests of
	// the file when it was last reloaded, and at the last look. Owned by run.
	holds       config
	taken, seen uint64

	mu sync.Mutex
	// status is guarded by mu.
	status reloadStatus
}

// reloadStatus is what became of the configuration file.
type reloadStatus struct {
	File string `json:"file"`
	// Read is when the file was last taken in or refused: soon after the start for
	// the first time, then at each change.
	Read *time.Time `json:"read"`
	// Fault is what is wrong with the file, while what was read before still
	// holds; empty where nothing is.
	Fault string `json:"fault,omitempty"`
	// NeedsRestart are keys whose values in the file are not those in use.
	NeedsRestart []string `json:"needs_restart"`
}

// watchConfig makes s follow the file of its configuration. Call it before run.
func (s *service) watchConfig(file string, level *slog.LevelVar, read func() (config, error)) {
	r := &reloader{
		file: file, read: read, take: s.watcher.SetEntries, arms: s.setArms, level: level, events: s.events != nil, log: s.log, holds: s.cfg,
		status: reloadStatus{File: file, NeedsRestart: []string{}},
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_config_reloads_total",
			Help: "Times that the configuration file was read again, by result: applied, unchanged, or refused, where what was read before still holds.",
		}, []string{"result"}),
		good: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "firsttoken_config_last_reload_successful",
			Help: "1 where the configuration file is good, 0 where it was refused and what was read before still holds.",
		}),
	}
	r.good.Set(1)
	s.admin.registry.MustRegister(r.results, r.good)
	s.reloader = r
}

// configInterval is how often the file is looked at. A change is taken in at the
// second look that finds the same, so that no file is read half written.
const configInterval = time.Second

// start adds the reloader to group, until ctx ends.
func (r *reloader) start(ctx context.Context, group *errgroup.Group) {
	if r == nil {
		return
	}
	group.Go(func() error {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGHUP)
		defer signal.Stop(signals)
		ticker := time.NewTicker(configInterval)
		defer ticker.Stop()
		return r.run(ctx, ticker.C, signals)
	})
}

// run takes in changes until ctx ends: at a signal at once, else as look does.
func (r *reloader) run(ctx context.Context, looks <-chan time.Time, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			r.log.Info("asked to read the configuration file again", "file", r.file)
			r.taken = r.digest()
			r.reload()
		case <-looks:
			r.look()
		}
	}
}

// look reloads where it finds new content that the look before found too.
func (r *reloader) look() {
	now := r.digest()
	if now != r.taken && now == r.seen {
		r.taken = now
		r.reload()
	}
	r.seen = now
}

// digest is over the file's content; a file that cannot be read has one too.
func (r *reloader) digest() uint64 {
	text, err := os.ReadFile(r.file)
	if err != nil {
		text = []byte("\x00" + err.Error())
	}
	return xxhash.Sum64(text)
}

// reload reads the file and takes in what it can.
func (r *reloader) reload() {
	cfg, err := r.read()
	next := r.holds
	next.Endpoints, next.Canary, next.Log.Level = cfg.Endpoints, cfg.Canary, cfg.Log.Level
	if err == nil {
		// With what holds until a restart the new list must be good too.
		if fault := next.validate(); fault != nil {
			err = fmt.Errorf("%s does not go with the sections that hold until a restart:\n%w", r.file, fault)
		}
	}
	if err == nil && !r.events && next.hasKVEvents() {
		err = fmt.Errorf("%s: endpoints[].kv_events: no endpoint had any at the start, so none are followed; restart the service, or leave them out", r.file)
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Read = &now
	if err != nil {
		r.results.WithLabelValues("refused").Inc()
		r.good.Set(0)
		r.status.Fault = err.Error()
		r.log.Error("cannot take the changed configuration; what was read before still holds", "file", r.file, "error", err)
		return
	}
	r.good.Set(1)
	r.status.Fault = ""
	r.status.NeedsRestart = differences(next, cfg)
	if len(r.status.NeedsRestart) > 0 {
		r.log.Warn("the configuration file has changes that need a restart", "file", r.file, "keys", r.status.NeedsRestart)
	}
	sameArms := reflect.DeepEqual(next.Canary, r.holds.Canary)
	if reflect.DeepEqual(next.Endpoints, r.holds.Endpoints) && sameArms && next.Log == r.holds.Log {
		r.results.WithLabelValues("unchanged").Inc()
		return
	}
	r.results.WithLabelValues("applied").Inc()
	r.log.Info("took the changed configuration", "file", r.file, "endpoints", len(next.Endpoints), "arms", len(next.Canary.Arms), "log_level", next.Log.Level)
	if !reflect.DeepEqual(next.Endpoints, r.holds.Endpoints) {
		r.take(next.Endpoints)
	}
	if !sameArms {
		r.arms(next.Canary)
	}
	r.level.Set(logLevels[next.Log.Level])
	r.holds = next
}

// view is what became of the file; nil where there is none.
func (r *reloader) view() *reloadStatus {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	view := r.status
	view.NeedsRestart = slices.Clone(view.NeedsRestart)
	return &view
}

// differences are the keys in which two configurations differ, each with its
// path; of lists and maps only the key.
func differences(a, b config) []string {
	list := []string{}
	collectDifferences("", asYAML(a), asYAML(b), &list)
	slices.Sort(list)
	return list
}

// asYAML is a configuration as the file would have it.
func asYAML(c config) map[string]any {
	text, err := yaml.Marshal(c)
	if err == nil {
		var out map[string]any
		if err = yaml.Unmarshal(text, &out); err == nil {
			return out
		}
	}
	panic(errors.Join(errors.New("a configuration that cannot be written as YAML"), err)) // none of ours
}

func collectDifferences(path string, a, b any, list *[]string) {
	if reflect.DeepEqual(a, b) {
		return
	}
	before, isMap := a.(map[string]any)
	after, both := b.(map[string]any)
	if !isMap || !both {
		*list = append(*list, strings.TrimPrefix(path, "."))
		return
	}
	for key := range before {
		collectDifferences(path+"."+key, before[key], after[key], list)
	}
	for key := range after {
		if _, ok := before[key]; !ok {
			*list = append(*list, strings.TrimPrefix(path+"."+key, "."))
		}
	}
}
