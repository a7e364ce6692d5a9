package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/DeRuina/timberjack"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"
)

// decisionsConfig sets whether decision records are kept in a file.
type decisionsConfig struct {
	// File gets the record of each decision when its request has ended, one JSON
	// object a line, as /decisions shows it: numbers and names of endpoints, no
	// prompt text and no token ids. "firsttoken report" and "firsttoken simulate"
	// read it. Empty: none is kept.
	File string `yaml:"file"`
	// MaxMegabytes is how large the file gets before it is put aside under a name
	// with the time in it; with four endpoints that is some 80,000 records for 100.
	MaxMegabytes int `yaml:"max_megabytes"`
	// MaxFiles is how many files are kept besides; older ones are deleted.
	MaxFiles int `yaml:"max_files"`
	// Blocks adds names for the blocks of each prompt, made anew with a secret at
	// each start, so that a replay knows which prompts had a prefix in common: 20
	// bytes for 64 tokens.
	Blocks bool `yaml:"blocks"`
}

func defaultDecisionsConfig() decisionsConfig {
	return decisionsConfig{MaxMegabytes: 100, MaxFiles: 10}
}

// Validate joins all faults, each beginning with its path below path.
func (c decisionsConfig) Validate(path string) error {
	var faults []error
	if c.MaxMegabytes < 1 {
		faults = append(faults, fmt.Errorf("%s.max_megabytes: is %d; write 1 or more", path, c.MaxMegabytes))
	}
	if c.MaxFiles < 1 {
		faults = append(faults, fmt.Errorf("%s.max_files: is %d; write 1 or more", path, c.MaxFiles))
	}
	return errors.Join(faults...)
}

// decisionFile writes records to a file. No request ever waits for it: what comes
// while its queue is full is dropped and counted. Safe for concurrent use.
type decisionFile struct {
	blocks  bool                   // set once
	journal *journal               // names blocks, and has the records of requests that have not ended; set once
	log     *slog.Logger           // set once
	records *prometheus.CounterVec // set once
	queue   chan journalEntry      // at most decisionQueue
	file    *timberjack.Logger     // run's
	failing bool                   // run's: the last write failed
}

// decisionQueue is how many records wait for the file: a second of a busy service.
const decisionQueue = 4096

// newDecisionFile is nil where no file is wanted. The error says that it cannot be
// written to.
func newDecisionFile(cfg decisionsConfig, log *slog.Logger, reg prometheus.Registerer, j *journal) (*decisionFile, error) {
	if cfg.File == "" {
		return nil, nil //nolint:nilnil // none is wanted
	}
	probe, err := os.OpenFile(cfg.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, decisionFileMode)
	if err != nil {
		return nil, fmt.Errorf("decisions.file: %w; write a path in a folder that exists and may be written to", err)
	}
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("decisions.file: %w", err)
	}
	f := &decisionFile{
		blocks: cfg.Blocks, journal: j, log: log,
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_decision_records_total",
			Help: "Records for decisions.file: written, dropped (the disk did not keep up), failed (it could not be written).",
		}, []string{"fate"}),
		queue: make(chan journalEntry, decisionQueue),
		file:  &timberjack.Logger{Filename: cfg.File, MaxSize: cfg.MaxMegabytes, MaxBackups: cfg.MaxFiles, FileMode: decisionFileMode},
	}
	reg.MustRegister(f.records)
	for _, fate := range []string{"written", "dropped", "failed"} {
		f.records.WithLabelValues(fate) // is there from the first scrape on
	}
	return f, nil
}

// decisionFileMode: others need not see who asks how much.
const decisionFileMode = 0o640

// add takes an entry whose record nobody changes any more.
func (f *decisionFile) add(e journalEntry) {
	select {
	case f.queue <- e:
	default:
		f.records.WithLabelValues("dropped").Inc()
	}
}

// run writes until ctx ends, then what is left, and the records of requests that
// have not ended, as they are.
func (f *decisionFile) run(ctx context.Context) error {
	defer func() { _ = f.file.Close() }()
	for {
		select {
		case e := <-f.queue:
			f.write(e)
		case <-ctx.Done():
			for len(f.queue) > 0 {
				f.write(<-f.queue)
			}
			for _, e := range f.journal.open() {
				f.write(e)
			}
			return nil
		}
	}
}

func (f *decisionFile) write(e journalEntry) {
	if f.blocks {
		f.journal.name(e.record, e.blocks) // here, where no request waits for it
	}
	line, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(e.record)
	if err == nil {
		_, err = f.file.Write(append(line, '\n'))
	}
	if err != nil {
		f.records.WithLabelValues("failed").Inc()
		if !f.failing {
			f.log.Error("cannot write decision records; requests go on without", "key", "decisions.file", "file", f.file.Filename, "error", err)
		}
	} else {
		f.records.WithLabelValues("written").Inc()
	}
	f.failing = err != nil
}
