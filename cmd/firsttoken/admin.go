package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// admin serves what people and Prometheus look at, on a port of its own.
type admin struct {
	registry *prometheus.Registry
	journal  *journal
	status   func() status
	choosing http.Handler
	log      *slog.Logger
	// explain says what would be chosen now for a request of a session, with notes.
	explain func(context.Context, prompt.Request, string) (*scoring.Decision, []string, error)
	// bodyLimit is the longest body that is read for it.
	bodyLimit int
	// ready reports whether Envoy should send requests here.
	ready func() bool
	// controllerAPI answers lmcache.APIPaths; nil where no controller is hosted.
	controllerAPI http.Handler
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{
		Registry: a.registry,
		// A part that cannot be read must not hide all others.
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", a.serveReady)
	mux.HandleFunc("GET /status", a.serveStatus)
	mux.HandleFunc("GET /decisions", a.serveDecisions)
	// No page that somebody looks at on this machine may flip the switch, or load us.
	strangers := http.NewCrossOriginProtection()
	choosing := strangers.Handler(a.choosing)
	mux.Handle("GET /choosing", choosing)
	mux.Handle("POST /choosing", choosing)
	mux.Handle("POST /explain", strangers.Handler(http.HandlerFunc(a.serveExplain)))
	if a.controllerAPI != nil {
		for _, path := range lmcache.APIPaths {
			mux.Handle(path, a.controllerAPI)
		}
	}
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("firsttoken " + version() + "\n/metrics /status /decisions /decisions?id=… /decisions?n=… /decisions?blocks=true POST /explain?path=… /choosing /healthz /readyz /debug/pprof/\n"))
	})
	return mux
}

// serveReady tells by HTTP what the gRPC health service tells, for those who
// reach that by no port of their own: it may be a unix socket, or speak TLS.
func (a *admin) serveReady(w http.ResponseWriter, _ *http.Request) {
	if !a.ready() {
		http.Error(w, "not ready: the engines are not known yet, or the service ends", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

func (a *admin) serveStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(a.status()); err != nil {
		a.log.Debug("cannot write status", "error", err)
	}
}

// serveDecisions answers with {"decisions": […]}, the newest first, with ?n=N
// no more than N of them, with ?blocks=true including the names of their prompts' blocks, which a replay
// needs; or, with ?id=, with that one decision.
func (a *admin) serveDecisions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if !r.URL.Query().Has("id") {
		most := journalSize
		if n := r.URL.Query().Get("n"); n != "" {
			var err error
			if most, err = strconv.Atoi(n); err != nil || most < 0 {
				w.WriteHeader(http.StatusBadRequest)
				_ = json.NewEncoder(w).Encode(map[string]string{"error": fmt.Sprintf("n is %q; write a number of decisions, at most %d are kept", n, journalSize)})
				return
			}
		}
		a.writeDecisions(w, most, r.URL.Query().Get("blocks") == "true")
		return
	}
	id := r.URL.Query().Get("id")
	record := a.journal.find(id)
	if record == nil {
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(map[string]string{
			"error": fmt.Sprintf("no decision %q among the last %d", id, journalSize),
		})
		return
	}
	text, err := asJSON(record)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(append(text, '\n'))
}

func (a *admin) writeDecisions(w http.ResponseWriter, most int, blocks bool) {
	list := []json.RawMessage{}
	records := a.journal.last(blocks)
	for _, record := range records[:min(most, len(records))] {
		text, err := asJSON(record)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		list = append(list, text)
	}
	if err := json.NewEncoder(w).Encode(map[string]any{"decisions": list}); err != nil {
		a.log.Debug("cannot write decisions", "error", err)
	}
}

// asJSON is a record with the field names of its .proto; numbers that are zero
// are there too.
func asJSON(m proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
}

// run serves on l until ctx ends, then waits for answers under way, but not
// for long: a profile may take half a minute. It closes l.
func (a *admin) run(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// Longer than the longest profile that is reasonable to ask for.
		WriteTimeout: 2 * time.Minute,
		IdleTimeout:  time.Minute,
		ErrorLog:     slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin on %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}
