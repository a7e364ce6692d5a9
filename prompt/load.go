package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// TokenizerFiles are the files of a model's folder that are read where they are
// there.
var TokenizerFiles = []string{
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "config.json",
	"preprocessor_config.json", "processor_config.json", "tekken.json",
}

// Fetch brings the TokenizerFiles of a model that is no folder of this machine
// into one and returns it. It may take minutes and reports how many bytes of a
// file are there; size is 0 where it is not known.
type Fetch func(ctx context.Context, tokenizer, revision string, report func(file string, done, size int64)) (dir string, err error)

// fetchAgain is the time between a fetch that failed and the next one.
const fetchAgain = time.Minute

// load loads the models: those in folders one after the other, those that have
// to be fetched first when they are there. It ends when each was tried once;
// fetches that failed are tried again until ctx ends.
func (e *Encoder) load(ctx context.Context, list []*served, fetch Fetch) {
	defer close(e.loaded)
	var (
		mu      sync.Mutex // guards errs, and lets one model load at a time
		errs    []error
		fetches sync.WaitGroup
	)
	loadFrom := func(s *served, dir string) {
		mu.Lock()
		defer mu.Unlock()
		if err := e.loadFrom(ctx, s, dir); err != nil {
			errs = append(errs, fmt.Errorf("model %s: %w", s.cfg.Name, err))
		}
	}
	for _, s := range list {
		switch {
		case s.cfg.Tokenizer == "" || s.cfg.Mode == "remote":
		case fetch == nil || isFolder(s.cfg.Tokenizer):
			loadFrom(s, s.cfg.Tokenizer)
		default:
			fetches.Go(func() {
				dir, err := e.fetch(ctx, s, fetch)
				if err == nil {
					loadFrom(s, dir)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("model %s: %w", s.cfg.Name, err))
				e.work.Go(func() { e.keepFetching(ctx, s, fetch) })
			})
		}
	}
	fetches.Wait()
	e.loadErr = errors.Join(errs...)
}

// isFolder: an existing folder wins over a model of that name on a hub.
func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// loadFrom loads one model from its folder. Its error is logged and kept for
// State.
func (e *Encoder) loadFrom(ctx context.Context, s *served, dir string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("not loaded: %w", ctx.Err())
	}
	s.say("loading")
	begin := time.Now()
	cfg := s.cfg
	cfg.Tokenizer = dir
	m, err := loadModel(cfg, native.Options{ //nolint:contextcheck // no request waits for it
		MaxInputBytes: 4 * e.cfg.MaxInputBytes, MaxConcurrent: e.cfg.MaxConcurrent, CacheBytes: e.cfg.SegmentCacheBytes,
	})
	if err != nil {
		s.say("failed: " + err.Error())
		s.model.Store(unloaded(s.cfg, RemoteNoTokenizer))
		e.log.Error("tokenizer not loaded; prompts are rendered by the engine or estimated", "model", s.cfg.Name, "folder", dir, "error", err)
		return err
	}
	s.model.Store(m)
	s.say("")
	e.metrics.loaded.WithLabelValues(s.cfg.Name).Set(1)
	e.log.Info("tokenizer loaded", "model", s.cfg.Name, "folder", dir, "engine", s.cfg.Engine,
		"content_format", m.ContentFormat(), "remote", string(m.remote),
		"segment_cache", m.segmentCache(e.cfg.SegmentCacheBytes), "seconds", time.Since(begin).Seconds()) //nolint:contextcheck // it waits for no request
	return nil
}

// fetch brings one model's files to this machine.
func (e *Encoder) fetch(ctx context.Context, s *served, fetch Fetch) (string, error) {
	s.say("fetching " + s.cfg.Tokenizer)
	begin := time.Now()
	last := ""
	dir, err := fetch(ctx, s.cfg.Tokenizer, s.cfg.TokenizerRevision, func(file string, done, size int64) {
		const mega = 1e6
		s.say(fmt.Sprintf("fetching %s: %s, %.1f of %.1f MB", s.cfg.Tokenizer, file, float64(done)/mega, float64(size)/mega))
		if file != last {
			last = file
			e.log.Info("fetching tokenizer", "model", s.cfg.Name, "tokenizer", s.cfg.Tokenizer, "file", file, "bytes", size)
		}
	})
	switch {
	case err == nil:
		e.log.Info("tokenizer is on this machine", "model", s.cfg.Name, "tokenizer", s.cfg.Tokenizer, "folder", dir, "seconds", time.Since(begin).Seconds())
	case ctx.Err() == nil:
		s.say("failed: " + err.Error())
		s.model.Store(unloaded(s.cfg, RemoteNoTokenizer))
		e.log.Error("tokenizer not fetched; prompts are rendered by the engine or estimated until it is", "model", s.cfg.Name,
			"tokenizer", s.cfg.Tokenizer, "error", err, "again_in", fetchAgain.String())
	}
	return dir, err
}

// keepFetching tries again, now and then, until the model is loaded or cannot
// be, or ctx ends.
func (e *Encoder) keepFetching(ctx context.Context, s *served, fetch Fetch) {
	again := time.NewTicker(fetchAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
		if dir, err := e.fetch(ctx, s, fetch); err == nil {
			_ = e.loadFrom(ctx, s, dir) // it is logged, and shown by State
			return
		}
	}
}

// say sets what State tells.
func (s *served) say(state string) { s.state.Store(&state) }

// State says what keeps the model of that name or alias from being tokenized
// here, such as how far its files are fetched; empty: nothing does.
func (e *Encoder) State(name string) string {
	if s := e.models[name]; s != nil {
		if state := s.state.Load(); state != nil {
			return *state
		}
	}
	return ""
}
