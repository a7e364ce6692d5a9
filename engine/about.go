package engine

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"time"
)

func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if s.Faults().Unhealthy {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Server) serveVersion(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"version": Version})
}

// serveLoad: as vLLM without --enable-server-load-tracking, which counts
// nothing.
func (s *Server) serveLoad(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]int{"server_load": 0})
}

// modelCard is one entry of /v1/models.
type modelCard struct {
	ID          string            `json:"id"`
	Object      string            `json:"object"`
	Created     int64             `json:"created"`
	OwnedBy     string            `json:"owned_by"`
	Root        string            `json:"root"`
	Parent      *string           `json:"parent"`
	MaxModelLen *int              `json:"max_model_len"`
	Permission  []modelPermission `json:"permission"`
}

type modelPermission struct {
	ID                 string  `json:"id"`
	Object             string  `json:"object"`
	Created            int64   `json:"created"`
	AllowCreateEngine  bool    `json:"allow_create_engine"`
	AllowSampling      bool    `json:"allow_sampling"`
	AllowLogprobs      bool    `json:"allow_logprobs"`
	AllowSearchIndices bool    `json:"allow_search_indices"`
	AllowView          bool    `json:"allow_view"`
	AllowFineTuning    bool    `json:"allow_fine_tuning"`
	Organization       string  `json:"organization"`
	Group              *string `json:"group"`
	IsBlocking         bool    `json:"is_blocking"`
}

func (s *Server) serveModels(w http.ResponseWriter, _ *http.Request) {
	var list struct {
		Object string      `json:"object"`
		Data   []modelCard `json:"data"`
	}
	list.Object = "list"
	now := time.Now().Unix()
	for _, name := range s.cfg.Models {
		list.Data = append(list.Data, modelCard{
			ID: name, Object: "model", Created: now, OwnedBy: "vllm", Root: s.cfg.Models[0], MaxModelLen: &s.cfg.MaxModelLen,
			Permission: permissions(now),
		})
	}
	for _, a := range s.cfg.Adapters {
		list.Data = append(list.Data, modelCard{
			ID: a.Name, Object: "model", Created: now, OwnedBy: "vllm", Root: a.Path, Parent: &s.cfg.Models[0],
			Permission: permissions(now),
		})
	}
	writeJSON(w, http.StatusOK, list)
}

func permissions(now int64) []modelPermission {
	return []modelPermission{{
		ID: "modelperm-" + randomHex(8), Object: "model_permission", Created: now,
		AllowSampling: true, AllowLogprobs: true, AllowView: true, Organization: "*",
	}}
}

func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	s.life.Load().metrics.handler.ServeHTTP(w, r)
}

// requestID is what the client calls the request, else a random name.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		id = randomHex(16)
		r.Header.Set("X-Request-Id", id)
	}
	return id
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
