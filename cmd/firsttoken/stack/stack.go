package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

// Truth is how the service learns what the engines have cached.
type Truth string

// The ways that engines report.
const (
	// LMCache: through the controller, in chunks, what their host memory holds.
	LMCache Truth = "lmcache"
	// KVEvents: by vLLM's own events, in blocks, what their prefix cache holds.
	KVEvents Truth = "kv_events"
)

// Config says what is run.
type Config struct {
	// Program is the firsttoken binary, Envoy Envoy's, Tokenizer the folder of
	// the tokenizer that engines and service use.
	Program, Envoy, Tokenizer string
	// Engines is the number of simulated engines, Profile their speed and size,
	// TimeScale the seconds that pass for one of the profile's; 0: 1.
	Engines   int
	Profile   string
	TimeScale float64
	// Model is the name that clients ask for.
	Model string
	// Scoring is the section scoring of the service's configuration.
	Scoring map[string]any
	// Hold: the service may hold requests back, and Envoy lets it.
	Hold bool
	// SessionKey is the service's server.session_key.
	SessionKey string
	Truth      Truth
}

// CheckEnvoy says how to get Envoy where it is missing.
func CheckEnvoy(program string) error {
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("envoy: %w; make .tools/envoy fetches it", err)
	}
	return nil
}

// Stack is one running set of engines, service and Envoy. Safe for concurrent
// use, except Stop.
type Stack struct {
	// Engines are the addresses of the engines, Admin is the base URL of the
	// service's admin port, Gateway Envoy's. Set once.
	Engines        []string
	Admin, Gateway string

	cfg      Config
	dir      string // files of our own; gone with Stop
	events   *reservedPort
	children *children
	http     *http.Client
}

// announced are the addresses that our own programs print as their first line.
type announced struct {
	Listen  string `json:"listen"`
	Admin   string `json:"admin"`
	LMCache struct {
		Pull      string `json:"pull"`
		Reply     string `json:"reply"`
		Heartbeat string `json:"heartbeat"`
	} `json:"lmcache"`
}

// EngineName is how the engine with index i is called.
func EngineName(i int) string { return "engine-" + strconv.Itoa(i+1) }

// Start starts everything and returns when a request would be served, or when
// ctx ends. The caller calls Stop.
func Start(ctx context.Context, cfg Config) (_ *Stack, err error) {
	s := &Stack{cfg: cfg, children: newChildren(), http: &http.Client{Transport: &http.Transport{Proxy: nil}, Timeout: 5 * time.Second}}
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "firsttoken-stack-"); err != nil {
		return nil, err
	}
	// Engines must know where the service hears them, and the service where the
	// engines are. So the engines' ports are opened here and handed over; what
	// connects meanwhile waits in the kernel's queue.
	var ports []*os.File
	defer func() {
		for _, p := range ports {
			_ = p.Close()
		}
	}()
	for range cfg.Engines {
		port, address, err := openPort(ctx)
		if err != nil {
			return nil, err
		}
		ports, s.Engines = append(ports, port), append(s.Engines, address)
	}
	service, err := s.startService(ctx)
	if err != nil {
		return nil, err
	}
	for i, port := range ports {
		if err := s.startEngine(i, port, service); err != nil {
			return nil, err
		}
	}
	if err := s.startEnvoy(ctx, service.Listen); err != nil {
		return nil, err
	}
	return s, s.awaitReady(ctx)
}

// openPort opens a loopback port that the system chooses, as a file to hand to
// a child.
func openPort(ctx context.Context) (*os.File, string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	return f, l.Addr().String(), err
}

func (s *Stack) startService(ctx context.Context) (announced, error) {
	var service announced
	if s.cfg.Truth == KVEvents {
		var err error
		if s.events, err = reservePort(); err != nil {
			return service, fmt.Errorf("a port for the engines' events: %w", err)
		}
	}
	file := filepath.Join(s.dir, "firsttoken.yml")
	text, err := s.serviceConfig()
	if err != nil {
		return service, err
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return service, err
	}
	c, err := s.children.start("firsttoken serve", nil, s.cfg.Program, "serve", "--config", file)
	if err != nil {
		return service, err
	}
	err = c.announcement(ctx, &service)
	s.Admin = "http://" + service.Admin
	return service, err
}

func (s *Stack) startEngine(i int, port *os.File, service announced) error {
	args := []string{
		"engine", "--listen", "fd:3", "--model", s.cfg.Model, "--tokenizer", s.cfg.Tokenizer, "--profile", s.cfg.Profile,
	}
	if s.cfg.TimeScale != 0 {
		args = append(args, "--time-scale", strconv.FormatFloat(s.cfg.TimeScale, 'g', -1, 64))
	}
	switch s.cfg.Truth {
	case LMCache:
		args = append(args, "--lmcache-instance-id", EngineName(i),
			"--lmcache-controller-pull", service.LMCache.Pull, "--lmcache-controller-reply", service.LMCache.Reply)
	case KVEvents:
		args = append(args, "--kv-events-endpoint", "tcp://"+s.events.address, "--kv-events-topic", EngineName(i))
	}
	_, err := s.children.start(EngineName(i), port, s.cfg.Program, args...)
	return err
}

// startEnvoy starts Envoy with the configuration that firsttoken envoy
// bootstrap prints, and asks it which port it got.
func (s *Stack) startEnvoy(ctx context.Context, service string) error {
	limits := extproc.DefaultConfig()
	cfg := envoy.Config{
		Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Service: service,
		BodyLimit: limits.BodyLimit, DecisionDeadline: limits.DecisionDeadline, Route: envoy.RouteOverrideHost,
	}
	if s.cfg.Hold {
		cfg.MaxMessageTimeout = limits.MaxMessageTimeout
	}
	for _, address := range s.Engines {
		cfg.Endpoints = append(cfg.Endpoints, envoy.Endpoint{Address: address})
	}
	bootstrap, err := envoy.Bootstrap(cfg)
	if err != nil {
		return err
	}
	file, adminFile := filepath.Join(s.dir, "envoy.yaml"), filepath.Join(s.dir, "admin")
	if err := os.WriteFile(file, bootstrap, 0o600); err != nil {
		return err
	}
	_, err = s.children.start("envoy", nil, s.cfg.Envoy, "--config-path", file, "--admin-address-path", adminFile,
		"--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
	if err != nil {
		return err
	}
	return s.until(ctx, "Envoy listens", func(ctx context.Context) error {
		admin, err := os.ReadFile(adminFile) //nolint:gosec // Its name is ours.
		if err != nil {
			return err
		}
		address, err := s.envoyListener(ctx, "http://"+string(admin))
		if err != nil {
			return err
		}
		s.Gateway = "http://" + address
		// It has its address a little before it listens there.
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// envoyListener is the address of Envoy's one listener.
func (s *Stack) envoyListener(ctx context.Context, admin string) (string, error) {
	text, err := s.get(ctx, admin+"/listeners?format=json")
	if err != nil {
		return "", err
	}
	var listeners struct {
		Statuses []struct {
			Address struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(text, &listeners); err != nil {
		return "", fmt.Errorf("envoy's listeners: %w", err)
	}
	if len(listeners.Statuses) == 0 {
		return "", errors.New("envoy has no listener yet")
	}
	socket := listeners.Statuses[0].Address.Socket
	return net.JoinHostPort(socket.Address, strconv.Itoa(socket.Port)), nil
}

// awaitReady waits until the service sees every engine, and its LMCache worker
// where it has one.
func (s *Stack) awaitReady(ctx context.Context) error {
	return s.until(ctx, "all engines are there", func(ctx context.Context) error {
		text, err := s.get(ctx, s.Admin+"/status")
		if err != nil {
			return err
		}
		var status struct {
			Endpoints []struct {
				Ready bool `json:"ready"`
			} `json:"endpoints"`
			LMCache struct {
				Workers []struct {
					Registered bool `json:"registered"`
				} `json:"workers"`
			} `json:"lmcache"`
		}
		if err := json.Unmarshal(text, &status); err != nil {
			return err
		}
		ready, registered := 0, 0
		for _, e := range status.Endpoints {
			if e.Ready {
				ready++
			}
		}
		for _, w := range status.LMCache.Workers {
			if w.Registered {
				registered++
			}
		}
		if ready < s.cfg.Engines || s.cfg.Truth == LMCache && registered < s.cfg.Engines {
			return fmt.Errorf("of %d engines %d are ready and %d have registered their LMCache", s.cfg.Engines, ready, registered)
		}
		return nil
	})
}

// until asks again and again until done returns nil, ctx ends or a child dies.
func (s *Stack) until(ctx context.Context, what string, done func(context.Context) error) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		last := done(ctx)
		if last == nil {
			return nil
		}
		select {
		case err := <-s.children.died:
			return err
		case <-ctx.Done():
			return fmt.Errorf("waited until %s: %w (last: %w)", what, context.Cause(ctx), last)
		case <-again.C:
		}
	}
}

// Died has one error when a process ends that Stop has not ended.
func (s *Stack) Died() <-chan error { return s.children.died }

// Watch gives a context that ends with ctx, with stop, or with the first process
// that dies, which is its cause then.
func (s *Stack) Watch(ctx context.Context) (_ context.Context, stop func()) {
	ctx, fail := context.WithCancelCause(ctx)
	go func() { // ends with the context
		select {
		case err := <-s.children.died:
			fail(err)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { fail(nil) }
}

// Decision is what the service recorded of one request.
func (s *Stack) Decision(ctx context.Context, id string) (*firsttokenv1.Decision, error) {
	text, err := s.get(ctx, s.Admin+"/decisions?id="+id)
	if err != nil {
		return nil, err
	}
	d := new(firsttokenv1.Decision)
	return d, protojson.Unmarshal(text, d)
}

// Decisions are the service's last records, at most the thousand that it keeps,
// the newest first.
func (s *Stack) Decisions(ctx context.Context) ([]*firsttokenv1.Decision, error) {
	text, err := s.get(ctx, s.Admin+"/decisions")
	if err != nil {
		return nil, err
	}
	var raw struct {
		Decisions []json.RawMessage `json:"decisions"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("/decisions: %w", err)
	}
	records := make([]*firsttokenv1.Decision, len(raw.Decisions))
	for i, text := range raw.Decisions {
		records[i] = new(firsttokenv1.Decision)
		if err := protojson.Unmarshal(text, records[i]); err != nil {
			return nil, fmt.Errorf("/decisions: %w", err)
		}
	}
	return records, nil
}

func (s *Stack) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: status %d: %.200s", url, resp.StatusCode, text)
	}
	return text, err
}

// Stop ends everything that Start started.
func (s *Stack) Stop() {
	s.children.stop()
	s.http.CloseIdleConnections()
	if s.events != nil {
		s.events.close()
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}
