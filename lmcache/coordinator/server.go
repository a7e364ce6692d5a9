package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxReports is how many reports are read at once: each may take several times
// Config.BodyLimit of memory. The others wait.
const maxReports = 4

// maxLookupTokens and maxLookupResults bound one lookup; the first is the real
// coordinator's bound.
const (
	maxLookupTokens  = 1_000_000
	maxLookupResults = 1_000_000
)

// Handler serves what LMCache's servers and tools ask of a coordinator.
func (d *Directory) Handler() http.Handler {
	mux := http.NewServeMux()
	reports := make(chan struct{}, maxReports)
	mux.HandleFunc("POST /events", func(w http.ResponseWriter, r *http.Request) {
		select {
		case reports <- struct{}{}:
			defer func() { <-reports }()
			d.serveEvents(w, r)
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("POST /instances", d.serveRegister)
	mux.HandleFunc("PUT /instances/{id}/heartbeat", d.serveHeartbeat)
	mux.HandleFunc("DELETE /instances/{id}", func(w http.ResponseWriter, r *http.Request) {
		d.drop(r.PathValue("id"))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /instances", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]any{"instances": d.Servers()})
	})
	mux.HandleFunc("POST /directory/lookup", d.serveLookup)
	mux.HandleFunc("GET /directory/keys", d.serveKeys)
	mux.HandleFunc("GET /directory/stats", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, d.directoryStats()) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"status": "healthy"})
	})
	return mux
}

func (d *Directory) serveEvents(w http.ResponseWriter, r *http.Request) {
	var request eventsRequest
	if !d.read(w, r, &request) {
		return
	}
	// All or nothing, as the real one: a server that is refused loses its whole
	// report either way.
	for i := range request.Batches {
		if err := request.Batches[i].validate(); err != nil {
			refuse(w, http.StatusUnprocessableEntity, fmt.Sprintf("batches[%d]: %v", i, err))
			return
		}
	}
	now := time.Now()
	var answer struct {
		Applied    int `json:"applied"`
		Duplicates int `json:"duplicates"`
		Stale      int `json:"stale"`
	}
	for i := range request.Batches {
		switch d.apply(&request.Batches[i], now) {
		case applied:
			answer.Applied++
		case duplicate:
			answer.Duplicates++
		case stale:
			answer.Stale++
		case refused:
			refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("more than %d instances", maxInstances))
			return
		}
	}
	reply(w, http.StatusOK, answer)
}

func (d *Directory) serveRegister(w http.ResponseWriter, r *http.Request) {
	var s Server
	if !d.read(w, r, &s) {
		return
	}
	s.Instance, s.IP, s.P2PURL = strings.TrimSpace(s.Instance), strings.TrimSpace(s.IP), strings.TrimSpace(s.P2PURL)
	switch {
	case s.IP == "":
		refuse(w, http.StatusUnprocessableEntity, "ip must be non-empty")
		return
	case s.long():
		refuse(w, http.StatusUnprocessableEntity, fmt.Sprintf("a field has more than %d bytes", maxName))
		return
	case s.HTTPPort < 1 || s.HTTPPort > 65535, s.MQPort < 0 || s.MQPort > 65535:
		refuse(w, http.StatusUnprocessableEntity, "http_port must be 1 to 65535, mq_port 0 to 65535")
		return
	}
	if s.Instance == "" {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		s.Instance = "mp-" + hex.EncodeToString(id[:])
	}
	if s.Metadata == nil {
		s.Metadata = map[string]string{}
	}
	now := time.Now()
	s.Registered = float64(now.UnixMicro()) / 1e6
	again, ok := d.register(s, now)
	if !ok {
		refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("more than %d instances", maxInstances))
		return
	}
	reply(w, http.StatusOK, struct {
		Instance string `json:"instance_id"`
		Again    bool   `json:"re_registered"`
	}{s.Instance, again})
}

func (d *Directory) serveHeartbeat(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !d.heartbeat(id, time.Now()) {
		reply(w, http.StatusNotFound, map[string]string{"error": "unknown instance " + id + "; re-register"})
		return
	}
	reply(w, http.StatusOK, map[string]string{"instance_id": id})
}

func (d *Directory) serveLookup(w http.ResponseWriter, r *http.Request) {
	q := LookupRequest{WorldSize: 1}
	if !d.read(w, r, &q) {
		return
	}
	fault := ""
	switch {
	case (len(q.Keys) == 0) == (len(q.TokenIDs) == 0):
		fault = "supply exactly one of 'keys' or 'token_ids'"
	case len(q.TokenIDs) > 0 && q.ModelName == "":
		fault = "'model_name' is required with 'token_ids'"
	case q.WorldSize < 1 || q.WorldSize > maxWorldSize:
		fault = fmt.Sprintf("world_size must be 1 to %d", maxWorldSize)
	}
	for i := range q.Keys {
		if err := q.Keys[i].validate(); err != nil {
			fault = err.Error()
		}
	}
	if fault != "" {
		refuse(w, http.StatusUnprocessableEntity, fault)
		return
	}
	if n := len(q.TokenIDs); n > maxLookupTokens || n/d.cfg.ChunkSize*q.WorldSize > maxLookupResults || len(q.Keys) > maxLookupResults {
		refuse(w, http.StatusBadRequest, "too many token_ids in a single request")
		return
	}
	if !ValidSalt(q.CacheSalt) || strings.Contains(q.ModelName, "@") {
		refuse(w, http.StatusBadRequest, "invalid model_name or cache_salt")
		return
	}
	reply(w, http.StatusOK, d.answer(q))
}

// read decodes a body, or answers what is wrong with it.
func (d *Directory) read(w http.ResponseWriter, r *http.Request, to any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, d.cfg.BodyLimit))
	err := decoder.Decode(to)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one JSON value")
		}
	}
	var long *http.MaxBytesError
	switch {
	case err == nil:
		return true
	case errors.As(err, &long):
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", long.Limit))
	default:
		refuse(w, http.StatusUnprocessableEntity, err.Error())
	}
	return false
}

func refuse(w http.ResponseWriter, status int, detail string) {
	reply(w, status, map[string]string{"detail": detail})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // who is gone needs no answer
}

// Serve serves on l until ctx ends, and closes it.
func (d *Directory) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           d.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		// LMCache's own client gives up after 2s.
		ReadTimeout:  30 * time.Second,
		WriteTimeout: 30 * time.Second,
		IdleTimeout:  2 * time.Minute,
		ErrorLog:     slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("LMCache coordinator on %s: %w", l.Addr(), err)
	}
	return nil
}

// serveKeys lists keys a page at a time, for people.
func (d *Directory) serveKeys(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	number := func(name string, def, low, high int) (int, bool) {
		if !query.Has(name) {
			return def, true
		}
		n, err := strconv.Atoi(query.Get(name))
		return n, err == nil && n >= low && n <= high
	}
	offset, ok := number("offset", 0, 0, 1<<31)
	limit, ok2 := number("limit", 1000, 1, 10000)
	tier := query.Get("tier")
	if tier != "" && tier != "all" && tier != string(TierL1) && tier != string(TierL2) || !ok || !ok2 {
		refuse(w, http.StatusUnprocessableEntity, "tier is l1, l2 or all, offset 0 or more, limit 1 to 10000")
		return
	}
	if tier == "all" {
		tier = ""
	}
	reply(w, http.StatusOK, d.list(tier, query.Get("instance_id"), query.Get("backend"), offset, limit))
}
