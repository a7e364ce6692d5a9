package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsttoken/firsttoken/lmcache"
)

// Version is the vLLM version whose answers are imitated.
const Version = "0.33.0"

// maxBody bounds a request's body in bytes.
const maxBody = 64 << 20

// Server is one simulated engine. It is safe for concurrent use.
type Server struct {
	cfg    Config // complete; set once in New
	log    *slog.Logger
	text   text
	words  *lexicon
	hasher *lmcache.Hasher // nil: no LMCache
	form   eventForm
	// adapters are the LoRA adapters by their names.
	adapters map[string]*adapter
	routes   map[string]map[string]http.HandlerFunc // path, method

	// stop ends ctx, and with it the present life and the goroutines that wait
	// waits for.
	ctx  context.Context
	stop context.CancelFunc
	wait sync.WaitGroup

	// life is the present one. Whoever works for a request keeps the one that
	// took it.
	life atomic.Pointer[life]
	// restart is held while life is replaced, while the faults open or close the
	// port, and for Close.
	restart sync.Mutex

	mu      sync.Mutex // guards the following fields
	faults  Faults
	hung    chan struct{} // closed when Hang is lifted; nil where it never was
	http    *http.Server  // nil while the port is closed
	address string        // "ip:port"; empty before Start
	closed  bool
}

// New makes an engine; Start opens its port. The error names every fault of cfg.
// The caller closes the server, also when it was never started.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(""); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.assemble(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// assemble makes the parts that all lives share, and the first life.
func (s *Server) assemble() (err error) {
	if s.text, err = loadText(s.cfg); err != nil {
		return err
	}
	s.words = newLexicon(s.text.vocabulary())
	s.adapters = loadAdapters(s.cfg.Adapters)
	s.routes = s.table()
	if s.cfg.LMCache.Pull != "" {
		keys := s.cfg.LMCache.complete(s.cfg.Models[0], s.cfg.Profile).Keys
		if s.hasher, err = lmcache.NewHasher(keys); err != nil {
			return err
		}
	}
	version, err := parseRelease(s.cfg.Events.VLLMVersion)
	if err != nil {
		return err
	}
	s.form = eventForm{version, s.cfg.BlockTokens, s.cfg.Events.BytesHashes}
	first, err := s.newLife(nil)
	if err != nil {
		return err
	}
	s.life.Store(first)
	return s.SetFaults(s.cfg.Faults)
}

// Start listens on address ("127.0.0.1:0") and serves in the background until
// Close.
func (s *Server) Start(address string) error {
	l, err := net.Listen("tcp", address) //nolint:noctx // listening does not block
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	s.serve(l)
	return nil
}

// Serve serves on l until ctx ends, then closes the engine.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.Close()
	s.serve(l)
	select {
	case <-ctx.Done():
		return nil
	case <-s.ctx.Done():
		return nil
	}
}

// URL is the base URL, such as http://127.0.0.1:8000; empty before Start.
func (s *Server) URL() string {
	if a := s.Address(); a != "" {
		return "http://" + a
	}
	return ""
}

// Address is the "ip:port" listened on; empty before Start. It stays the same
// when the fault Refuse comes and goes.
func (s *Server) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.address
}

// Close cuts all connections, ends every request and all goroutines. Closing
// twice is harmless.
func (s *Server) Close() {
	s.restart.Lock()
	defer s.restart.Unlock()
	s.mu.Lock()
	h := s.http
	s.http, s.closed = nil, true
	s.mu.Unlock()
	s.stop()
	if h != nil {
		_ = h.Close()
	}
	s.wait.Wait()
	if l := s.life.Load(); l != nil {
		l.end()
	}
	if s.text != nil {
		s.text.close()
	}
}

// serve starts to serve on l, unless the faults say that the port is closed.
func (s *Server) serve(l net.Listener) {
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return s.life.Load().ctx },
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.address = l.Addr().String()
	if s.closed || s.faults.Refuse {
		_ = l.Close()
		return
	}
	s.http = h
	s.wait.Go(func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("engine stopped serving", "error", err)
		}
	})
}

// setOpen closes the port and all connections, or opens it again.
func (s *Server) setOpen(open bool) error {
	s.mu.Lock()
	h, address := s.http, s.address
	if !open {
		s.http = nil
	}
	s.mu.Unlock()
	switch {
	case !open && h != nil:
		_ = h.Close()
	case open && h == nil && address != "":
		return s.Start(address)
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "uvicorn")
	w.Header().Set("Vary", "Origin")
	if s.cfg.RequestIDHeaders {
		w.Header().Set("X-Request-Id", requestID(r))
	}
	methods, ok := s.routes[r.URL.Path]
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if r.URL.Path != pathFaults && r.URL.Path != pathRestart && s.hang(r) {
		return
	}
	switch {
	case s.cfg.APIKey != "" && strings.HasPrefix(r.URL.Path, "/v1") && r.Header.Get("Authorization") != "Bearer "+s.cfg.APIKey:
		writeJSON(w, http.StatusUnauthorized, map[string]string{"error": "Unauthorized"})
	case !ok:
		writeJSON(w, http.StatusNotFound, map[string]string{"detail": "Not Found"})
	case methods[r.Method] == nil:
		for m := range methods {
			w.Header().Add("Allow", m)
		}
		writeJSON(w, http.StatusMethodNotAllowed, map[string]string{"detail": "Method Not Allowed"})
	default:
		methods[r.Method](w, r)
	}
}

// hang waits while the fault lasts; true: the client or the engine has gone
// meanwhile.
func (s *Server) hang(r *http.Request) bool {
	s.mu.Lock()
	hung, hang := s.hung, s.faults.Hang
	s.mu.Unlock()
	if !hang {
		return false
	}
	// Only past the end of the body does net/http see the client go.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return false // it will fail again where it is read
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	select {
	case <-hung:
		return false
	case <-r.Context().Done():
		return true
	}
}

// The paths that a real engine does not have.
const (
	pathFaults  = "/faults"
	pathRestart = "/restart"
)

// table is what is served where.
func (s *Server) table() map[string]map[string]http.HandlerFunc {
	get := func(h http.HandlerFunc) map[string]http.HandlerFunc {
		return map[string]http.HandlerFunc{http.MethodGet: h}
	}
	post := func(h http.HandlerFunc) map[string]http.HandlerFunc {
		return map[string]http.HandlerFunc{http.MethodPost: h}
	}
	both := func(h http.HandlerFunc) map[string]http.HandlerFunc {
		return map[string]http.HandlerFunc{http.MethodGet: h, http.MethodPost: h}
	}
	return map[string]map[string]http.HandlerFunc{
		pathChat:                    post(s.serveGeneration),
		pathCompletions:             post(s.serveGeneration),
		pathChat + "/render":        post(s.serveRender),
		pathCompletions + "/render": post(s.serveRender),
		"/tokenize":                 post(s.serveTokenize),
		"/detokenize":               post(s.serveDetokenize),
		"/v1/models":                get(s.serveModels),
		"/health":                   get(s.serveHealth),
		"/ping":                     both(s.serveHealth),
		"/version":                  get(s.serveVersion),
		"/load":                     get(s.serveLoad),
		"/metrics":                  get(s.serveMetrics),
		"/reset_prefix_cache":       post(s.serveReset),
		pathFaults:                  both(s.serveFaults),
		pathRestart:                 post(s.serveRestart),
	}
}
