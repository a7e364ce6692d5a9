package prompt

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/firsttoken/firsttoken/goroutine"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/scoring"
)

// Options are what an Encoder is given beside its configuration. Every field
// may be left zero.
type Options struct {
	Log     *slog.Logger
	Metrics *Metrics
	// Endpoint picks an engine that can be asked to render a prompt for model:
	// the base URL (http://10.0.0.1:8000) of a ready one. It must not block. Nil:
	// engines are never asked.
	Endpoint func(model string) (baseURL string, ok bool)
	// APIKey is sent to engines as a bearer token; empty: none is sent.
	APIKey string
	// Fetch is asked for tokenizers that are no folders of this machine; nil:
	// there are none.
	Fetch Fetch
	// TLS is how engines behind https are verified; nil: by the system's
	// authorities.
	TLS *tls.Config
	// Aliases are further names of models that the engines do not know, each with
	// the model's own name.
	Aliases map[string]string
	// Now is the clock of templates that print the date; nil: time.Now.
	Now func() time.Time
}

// Encoder turns requests into prompts for all configured models. It is safe for
// concurrent use.
type Encoder struct {
	// Set once by NewEncoder.
	cfg      Config
	log      *slog.Logger
	metrics  *Metrics
	now      func() time.Time
	models   map[string]*served // by name and alias
	aliases  map[string]string  // names that engines do not know
	list     []*served          // each once
	only     *served            // the model, where there is one
	renderer *renderer          // nil: engines are not asked
	slots    *semaphore.Weighted
	parsing  *semaphore.Weighted // bulky bodies that are being parsed
	stop     context.CancelFunc  // ends load

	loaded  chan struct{} // closed by load when it ends
	loadErr error         // written before loaded is closed

	// work counts load and the encodings in progress, which may outlive Encode.
	work sync.WaitGroup
	// encoding runs the latter.
	encoding *goroutine.Pool
}

// served is one configured model.
type served struct {
	cfg   ModelConfig
	zone  *time.Location
	model atomic.Pointer[Model] // never nil; replaced by load when it is loaded
	// state is what keeps the model from being loaded; nil or empty: nothing.
	state atomic.Pointer[string]
	// differs: our ids of its texts are not the engines', as an IDCheck found.
	differs atomic.Bool
}

// NewEncoder returns at once; the tokenizers are loaded by a goroutine that ends
// when all are loaded or Close is called. Until a model is loaded its prompts
// come from the engine or are estimated. The error names every fault of cfg.
func NewEncoder(cfg Config, o Options) (*Encoder, error) {
	if err := cfg.Validate("prompt"); err != nil {
		return nil, err
	}
	if cfg.MaxConcurrent == 0 {
		// On a machine with many CPUs the threads' caches would take gigabytes,
		// and eight encode hundreds of megabytes a second.
		cfg.MaxConcurrent = min(runtime.GOMAXPROCS(0), 8)
	}
	e := &Encoder{
		cfg:     cfg,
		log:     o.Log,
		metrics: o.Metrics,
		now:     o.Now,
		models:  map[string]*served{},
		aliases: o.Aliases,
		slots:   semaphore.NewWeighted(int64(cfg.MaxConcurrent)),
		parsing: semaphore.NewWeighted(int64(cfg.MaxConcurrent)),
		loaded:  make(chan struct{}),
		// More than there are slots never run.
		encoding: goroutine.NewPool(cfg.MaxConcurrent),
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.metrics == nil {
		e.metrics = NewMetrics(prometheus.NewRegistry())
	}
	if e.now == nil {
		e.now = time.Now
	}
	if o.Endpoint != nil {
		e.renderer = newRenderer(o, cfg.RemoteMaxConcurrent)
	}
	list := make([]*served, 0, len(cfg.Models))
	for _, m := range cfg.Models {
		s := &served{cfg: m.withDefaults(), zone: time.Local}
		if m.TimeZone != "" {
			s.zone, _ = time.LoadLocation(m.TimeZone) // Validate did it before
		}
		why := RemoteLoading
		if m.Tokenizer == "" || s.cfg.Mode == "remote" {
			why = RemoteNoTokenizer
		}
		s.model.Store(unloaded(s.cfg, why))
		e.metrics.loaded.WithLabelValues(m.Name).Set(0)
		for _, name := range append([]string{m.Name}, m.Aliases...) {
			e.models[name] = s
		}
		list = append(list, s)
	}
	if len(list) == 1 {
		e.only = list[0]
	}
	e.list = list
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.metrics.segments.follow(e.segmentCaches)
	e.work.Go(func() { e.load(ctx, list, o.Fetch) })
	return e, nil
}

// Ready reports whether every model that this process tokenizes is loaded, or
// has failed to load.
func (e *Encoder) Ready() bool {
	select {
	case <-e.loaded:
		return true
	default:
		return false
	}
}

// Wait returns when Ready, with the joined errors of loading, or with ctx's.
func (e *Encoder) Wait(ctx context.Context) error {
	select {
	case <-e.loaded:
		return e.loadErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Model is the loaded model of that name or alias; nil where it is unknown or
// not loaded. It belongs to the Encoder.
func (e *Encoder) Model(name string) *Model {
	if s := e.models[name]; s != nil {
		if m := s.model.Load(); m.tokenizer != nil {
			return m
		}
	}
	return nil
}

// segmentCaches are the counters of each model's segment cache, by the model's
// name; those without one are missing.
func (e *Encoder) segmentCaches() map[string]native.CacheStats {
	stats := map[string]native.CacheStats{}
	for _, s := range e.list {
		if m := s.model.Load(); m.tokenizer != nil {
			if read, on := m.tokenizer.CacheStats(); on {
				stats[s.cfg.Name] = read
			}
		}
	}
	return stats
}

// Close stops loading, waits for the encodings in progress and frees the
// tokenizers. Encode must not be called after it.
func (e *Encoder) Close() {
	e.stop()
	e.work.Wait()
	e.encoding.Close()
	for _, s := range e.models {
		s.model.Load().Close()
	}
	if e.renderer != nil {
		e.renderer.client.CloseIdleConnections()
	}
}

// Encode is the prompt of one request, at the latest when ctx ends. The error is
// nil or a *RequestError, and that only for what no engine would accept: a body
// of a generation path that is not JSON, or not an object. Whatever else goes
// wrong gives a Prompt with an estimated length. The body must not be changed
// afterwards: an encoding that outlives ctx still reads it.
func (e *Encoder) Encode(ctx context.Context, r Request) (*scoring.Prompt, error) {
	begin := time.Now()
	p, why, err := e.prompt(ctx, r)
	if err != nil {
		return nil, err
	}
	if why != fallbackNone {
		e.metrics.fallbacks.WithLabelValues(string(why)).Inc()
	}
	e.metrics.prompts.WithLabelValues(string(p.Source)).Inc()
	e.metrics.seconds.WithLabelValues(string(p.Source)).Observe(time.Since(begin).Seconds())
	return p, nil
}

func (e *Encoder) prompt(ctx context.Context, r Request) (*scoring.Prompt, fallback, error) {
	none := &scoring.Prompt{Source: scoring.TokensNone}
	if r.Method != "" && r.Method != http.MethodPost || r.ContentEncoding != "" && !strings.EqualFold(r.ContentEncoding, "identity") {
		return none, fallbackNone, nil
	}
	path := generationPath(r.Path)
	if !isJSON(r.ContentType) {
		if path == "" {
			return none, fallbackNone, nil
		}
		return none, fallbackMedia, nil
	}
	d := documents.Get().(*document) //nolint:forcetypeassert // the pool holds nothing else
	d.shallow = path == "" || len(r.Body) > e.cfg.MaxInputBytes
	if isWide(r.Body) {
		d.release()
		return none, fallbackNotText, nil
	}
	late, err := e.parse(ctx, d, r.Body)
	if err != nil {
		d.release()
		var fault *RequestError
		switch {
		case path == "":
			return none, fallbackNone, nil
		case foreign(path) != RemoteNone:
			return none, fallbackNotText, nil // its faults are the engine's to word
		case errors.As(err, &fault) && fault.Param != "":
			return nil, fallbackNone, fault
		case errors.Is(err, errTooDeep), errors.Is(err, errTooMany):
			return none, fallbackTooLarge, nil
		}
		return none, fallbackNotText, nil
	}
	f := readFields(d.root())
	p := &scoring.Prompt{Source: scoring.TokensNone}
	if r.SessionKey != "" {
		p.Session = sessionOf(d.root().get(r.SessionKey))
	}
	e.names(p, &f, r.Body)
	if path == "" {
		d.release()
		return p, fallbackNone, nil
	}
	p.Streamed, p.NoCache, p.Salt = f.streamed(), f.uncached(path), f.salt()
	j := job{path: path, body: r.Body, doc: d, fields: f, late: late, named: p}
	j.tokenizable = f.tokenizable(path)
	return p, e.fill(ctx, p, j), nil
}

// bulky is the length of body from which on a tape of its values is too much
// memory to be had by any number of requests at once: tens of bytes for each
// byte of the body where all values are tiny.
const bulky = 1 << 20

// parse reads the body into d; few bulky ones at once. late: the others' turn did
// not end before ctx, so d is shallow.
func (e *Encoder) parse(ctx context.Context, d *document, body []byte) (late bool, err error) {
	if len(body) > bulky && !d.shallow {
		if e.parsing.Acquire(ctx, 1) == nil {
			defer e.parsing.Release(1)
		} else {
			d.shallow, late = true, true
		}
	}
	return late, parseBody(d, body)
}

// Generates reports whether a POST to path, which may carry a query, asks an
// engine for tokens.
func Generates(path string) bool { return generationPath(path) != "" }

// generationPath is the path that generates tokens from a prompt; empty for all
// others, the render paths too.
func generationPath(path string) string {
	path, _, _ = strings.Cut(path, "?")
	switch path {
	case chatPath, completionPath, ResponsesPath, MessagesPath:
		return path
	}
	return ""
}

// isWide: the body is JSON in UTF-16 or UTF-32, which the engine's web layer
// reads and this package does not.
func isWide(body []byte) bool { return bytes.IndexByte(body[:min(len(body), 4)], 0) >= 0 }

// job is one generation request. Whoever ends it releases the document.
type job struct {
	path   string
	body   []byte
	doc    *document
	fields fields
	late   bool // there was no time for a whole tape
	// tokenizable: an engine's /tokenize gives the same ids as its render.
	tokenizable bool
	// named is the prompt that is made, for the model's names.
	named *scoring.Prompt
}

// fill gives p its sequences, and says why where they have no token ids. It
// releases the job's document.
func (e *Encoder) fill(ctx context.Context, p *scoring.Prompt, j job) fallback {
	guessed := estimate(j.path, &j.fields)
	copies := guessed[0].Copies
	prompts, source, why := e.encode(ctx, p.Model, j)
	if why != fallbackNone {
		p.Sequences, p.Source = guessed, scoring.TokensEstimated
		return why
	}
	p.Source = source
	p.Sequences = make([]scoring.Sequence, len(prompts))
	for i, q := range prompts {
		s := &p.Sequences[i]
		s.TokenIDs, s.Usable, s.Copies = q.TokenIDs, scoring.Tokens(q.UsablePrefix), copies
		s.Length = scoring.Tokens(len(q.TokenIDs)) + scoring.Tokens(q.media*mediaTokens)
	}
	return fallbackNone
}

// encode gets the token ids of the job, here or from an engine.
func (e *Encoder) encode(ctx context.Context, name string, j job) ([]EncodedPrompt, scoring.TokenSource, fallback) {
	s := e.only
	if name != "" || s == nil {
		s = e.models[name]
	}
	if s == nil {
		s = unconfigured(name)
	}
	if j.doc.shallow {
		j.doc.release()
		if j.late {
			return nil, "", fallbackDeadline
		}
		return nil, "", fallbackTooLarge
	}
	if why := foreign(j.path); why != RemoteNone {
		j.doc.release()
		if !e.canAsk(s) {
			return nil, "", fallback(why)
		}
		return e.encodeThere(ctx, s, j)
	}
	if s.differs.Load() && e.canAsk(s) && j.fields.hasText(j.path) {
		j.doc.release()
		return e.encodeThere(ctx, s, j)
	}
	got, given, err := e.encodeHere(ctx, s, j)
	var fault *RequestError
	switch {
	case errors.As(err, &fault):
		return nil, "", fallbackRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, "", fallbackDeadline
	case errors.Is(err, native.ErrInputTooLarge), errors.Is(err, errTooDeep):
		return nil, "", fallbackTooLarge
	case err != nil:
		e.log.Warn("prompt not tokenized", "model", s.cfg.Name, "error", err)
		return nil, "", fallbackFailed
	case got.Remote == RemoteNone && given:
		return got.Prompts, scoring.TokensGiven, fallbackNone
	case got.Remote == RemoteNone:
		return got.Prompts, scoring.TokensNative, fallbackNone
	case !e.canAsk(s):
		return nil, "", fallback(got.Remote)
	}
	return e.encodeThere(ctx, s, j)
}

// canAsk reports whether engines may be asked for the model's ids.
func (e *Encoder) canAsk(s *served) bool { return e.renderer != nil && s.cfg.Mode != "native" }

// unconfigured is a model of which only the name in the request is known: token
// ids need no tokenizer, and for text there is the engine that serves it.
func unconfigured(name string) *served {
	s := &served{cfg: ModelConfig{Name: name}.withDefaults(), zone: time.Local}
	s.model.Store(unloaded(s.cfg, RemoteNoTokenizer))
	return s
}

// short is the length of body up to which a prompt is encoded by whoever asks:
// that takes some tens of microseconds, and handing it to another goroutine as
// long again. Not a caller's patience, only its place in the queue is bounded by
// ctx then.
const short = 8 << 10

// encodeHere runs the model's encoding; that of a long body in a goroutine of its
// own, which keeps its slot and the document until it is done, also where ctx ends
// before. The prompts have no texts; given: they had none, the client sent ids.
func (e *Encoder) encodeHere(ctx context.Context, s *served, j job) (encoded Encoded, given bool, err error) {
	if err := e.slots.Acquire(ctx, 1); err != nil {
		j.doc.release()
		return Encoded{}, false, err
	}
	e.work.Add(1)
	if len(j.body) <= short {
		return e.encodeJob(ctx, s, j)
	}
	type result struct {
		encoded Encoded
		given   bool
		err     error
	}
	done := make(chan result, 1)
	e.encoding.Go(func() {
		encoded, given, err := e.encodeJob(ctx, s, j)
		done <- result{encoded, given, err}
	})
	select {
	case r := <-done:
		return r.encoded, r.given, r.err
	case <-ctx.Done():
		return Encoded{}, false, ctx.Err()
	}
}

// encodeJob encodes the job with the slot that the caller took and the work it
// counted, and gives both back, and the job's document.
func (e *Encoder) encodeJob(ctx context.Context, s *served, j job) (encoded Encoded, given bool, err error) {
	defer e.work.Done()
	defer e.slots.Release(1)
	defer j.doc.release()
	encoded, err = s.model.Load().encode(ctx, j.path, &j.fields, e.now().In(s.zone), true)
	given = true
	for i := range encoded.Prompts {
		given = given && encoded.Prompts[i].Text == ""
		encoded.Prompts[i].Text = "" // its memory ends here
	}
	encoded.rendered.Free()
	encoded.rendered = nil
	return encoded, given, err
}

// encodeThere asks an engine. The job's document is gone.
func (e *Encoder) encodeThere(ctx context.Context, s *served, j job) ([]EncodedPrompt, scoring.TokenSource, fallback) {
	limited, cancel := context.WithTimeout(ctx, e.cfg.RemoteTimeout)
	defer cancel()
	prompts, err := e.renderer.render(limited, s.cfg.Name, j.path, Rename(j.body, j.named), j.tokenizable)
	switch {
	case err == nil:
		return prompts, scoring.TokensRemote, fallbackNone
	case errors.Is(err, errBusy):
		return nil, "", fallbackRemoteBusy
	case errors.Is(err, errSpared):
		return nil, "", fallbackRemoteOff
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, "", fallbackSlow
	}
	e.log.Debug("engine did not render the prompt", "model", s.cfg.Name, "error", err)
	return nil, "", fallbackRemote
}
