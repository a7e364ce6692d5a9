package discovery

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// client makes the client that production uses for the server.
func client(t *testing.T, server *httptest.Server, host string, cfg TLSConfig, key string) *engineClient {
	t.Helper()
	tlsConfig, err := cfg.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	scheme, address, _ := strings.Cut(server.URL, "://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	target, err := parseAddress(scheme + "://" + net.JoinHostPort(host, port))
	if err != nil {
		t.Fatal(err)
	}
	return newEngineClient(target, address, tlsConfig, key)
}

func TestHealthResults(t *testing.T) {
	hang := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /loading", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("GET /moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/health", http.StatusFound) })
	mux.HandleFunc("GET /cut", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		conn.Close()
	})
	mux.HandleFunc("GET /hang", func(http.ResponseWriter, *http.Request) { <-hang })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(hang) })
	c := client(t, server, "127.0.0.1", TLSConfig{}, "")

	for path, want := range map[string]string{
		"/health": "ok", "/loading": "status", "/moved": "status", "/nothing": "status", "/cut": "other",
	} {
		if err := c.health(t.Context(), path); result(err) != want {
			t.Errorf("%s: %s (%v), want %s", path, result(err), err, want)
		}
	}
	expired, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if err := c.health(expired, "/hang"); result(err) != "timeout" {
		t.Errorf("deadline: %s (%v), want timeout", result(err), err)
	}

	gone := httptest.NewServer(mux)
	dead := client(t, gone, "127.0.0.1", TLSConfig{}, "")
	gone.Close()
	if err := dead.health(t.Context(), "/health"); result(err) != "connect" {
		t.Errorf("closed port: %s (%v), want connect", result(err), err)
	}
}

func TestCallsHaveTheirOwnConnections(t *testing.T) {
	var opened, calls atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if got := r.Header.Get("Authorization"); got != "Bearer k3y" {
			t.Errorf("Authorization %q", got)
		}
		if r.URL.Path == "/v1/models" {
			fmt.Fprint(w, `{"object":"list","data":[{"id":"m"}]}`)
		}
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	c := client(t, server, "127.0.0.1", TLSConfig{}, "k3y")
	for range 3 {
		if err := c.health(t.Context(), "/health"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.models(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if opened.Load() != calls.Load() {
		t.Errorf("%d connections for %d calls", opened.Load(), calls.Load())
	}
}

func TestHTTPS(t *testing.T) {
	var host, name string
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { host, name = r.Host, r.TLS.ServerName }))
	t.Cleanup(server.Close)
	server.Config.ErrorLog = nil
	file := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}

	// The test certificate is made out to example.com: the name is verified
	// and told, though the address is dialled.
	trusting := client(t, server, "example.com", TLSConfig{CAFile: file}, "")
	if err := trusting.health(t.Context(), "/health"); err != nil {
		t.Errorf("with ca_file: %v", err)
	}
	if !strings.HasPrefix(host, "example.com:") || name != "example.com" {
		t.Errorf("Host %q, server name %q", host, name)
	}
	if err := client(t, server, "other.test", TLSConfig{CAFile: file}, "").health(t.Context(), "/health"); result(err) != "other" {
		t.Errorf("another name: %v, want a refused certificate", err)
	}
	if err := client(t, server, "example.com", TLSConfig{}, "").health(t.Context(), "/health"); result(err) != "other" {
		t.Errorf("unknown authority: %v, want a refused certificate", err)
	}
	if err := client(t, server, "other.test", TLSConfig{SkipVerify: true}, "").health(t.Context(), "/health"); err != nil {
		t.Errorf("with skip_verify: %v", err)
	}
}

func TestParseModels(t *testing.T) {
	tests := []struct{ name, body, want, adapters, fault string }{
		{"own name first, then aliases, then adapters", `{"data":[{"id":"own","parent":null},{"id":"alias"},{"id":"lora","parent":"own"}]}`, "own alias lora", "lora", ""},
		{"named twice", `{"data":[{"id":"m"},{"id":"m"},{"id":""}]}`, "m", "", ""},
		{"none", `{"object":"list","data":[]}`, "", "", "lists no model"},
		{"error body", `{"error":{"message":"Unauthorized"}}`, "", "", "lists no model"},
		{"not JSON", `<html>`, "", "", "invalid character"},
		{"another shape", `{"data":{"id":"m"}}`, "", "", "cannot unmarshal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseModels([]byte(tt.body))
			if strings.Join(got.names, " ") != tt.want || strings.Join(got.adapters, " ") != tt.adapters {
				t.Errorf("%q, want %q with adapters %q", got, tt.want, tt.adapters)
			}
			if (err == nil) != (tt.fault == "") || (err != nil && !strings.Contains(err.Error(), tt.fault)) {
				t.Errorf("error %v, want %q", err, tt.fault)
			}
		})
	}
}

func TestModelsAnswerIsBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(make([]byte, maxModelsBody+1))
	}))
	t.Cleanup(server.Close)
	if _, err := client(t, server, "127.0.0.1", TLSConfig{}, "").models(t.Context()); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("error %v", err)
	}
}

func FuzzParseModels(f *testing.F) {
	f.Add([]byte(`{"object":"list","data":[{"id":"m","max_model_len":8192},{"id":"n","parent":"m"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseModels(body)
		if (len(got.names) == 0) != (err != nil) || len(got.adapters) > len(got.names) {
			t.Errorf("%+v with error %v", got, err)
		}
	})
}

func FuzzParseAddress(f *testing.F) {
	for _, seed := range []string{"engine:8000", "https://[::1]", "http://u@h:1/x?y#z", "[fe80::1%25a]:1", "https+srv://_vllm._tcp.engines"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, address string) {
		got, err := parseAddress(address)
		if err != nil {
			return
		}
		scheme := got.scheme
		if got.srv {
			scheme += "+srv"
		}
		again, err := parseAddress(scheme + "://" + got.hostPort())
		if err != nil || again != got {
			t.Errorf("%q: %+v, again %+v, %v", address, got, again, err)
		}
	})
}

// Calls for other packages are made as probes are: to the address, verified by
// the name, with the key; and no longer than the endpoint lives.
func TestGetForOthers(t *testing.T) {
	var host, key string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			host, key = r.Host, r.Header.Get("Authorization")
			fmt.Fprint(w, "12345")
		}
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.TLS.CAFile = file
	lists := make(chan []scoring.Endpoint, 100)
	w, err := New(cfg, []Entry{{Address: "https://127.0.0.1:" + port}}, "k3y", slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()),
		func(list []scoring.Endpoint) { lists <- list })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
	}()
	id := (<-lists)[0].ID

	body, err := w.Get(t.Context(), id, "/metrics", 5)
	if err != nil || string(body) != "12345" || host != "127.0.0.1:"+port || key != "Bearer k3y" {
		t.Errorf("%q, %v; Host %q, Authorization %q", body, err, host, key)
	}
	if _, err := w.Get(t.Context(), id, "/metrics", 4); err == nil || !strings.Contains(err.Error(), "longer than 4") {
		t.Errorf("a longer answer: %v", err)
	}
	if _, err := w.Get(t.Context(), id+1, "/metrics", 5); !errors.Is(err, ErrGone) {
		t.Errorf("an endpoint that is not there: %v", err)
	}
}
