package demo

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
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

// engines is the number of simulated engines.
const engines = 3

// model is the name that clients ask for.
const model = "demo"

// stack is one running set of engines, service and Envoy.
type stack struct {
	children *children
	engines  []string // addresses
	admin    string   // http://host:port of the service's admin port
	gateway  string   // http://host:port of Envoy
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

// startStack starts everything for one policy and returns when a request would
// be served. dir is an empty folder for Envoy's files. The caller stops it.
func startStack(ctx context.Context, o Options, policy, dir string) (_ *stack, err error) {
	s := &stack{children: newChildren(), http: &http.Client{Transport: &http.Transport{Proxy: nil}, Timeout: 5 * time.Second}}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	// Engines must know where the service's LMCache controller is, and the
	// service where the engines are. So the engines' ports are opened here and
	// handed over; what connects meanwhile waits in the kernel's queue.
	var ports []*os.File
	defer func() {
		for _, p := range ports {
			_ = p.Close()
		}
	}()
	for range engines {
		port, address, err := openPort(ctx)
		if err != nil {
			return nil, err
		}
		ports, s.engines = append(ports, port), append(s.engines, address)
	}
	service, err := s.startService(ctx, o, policy)
	if err != nil {
		return nil, err
	}
	for i, port := range ports {
		_, err := s.children.start(engineName(i), port, o.Program, "engine", "--listen", "fd:3", "--model", model, "--tokenizer", o.Tokenizer,
			"--profile", "demo", "--lmcache-instance-id", engineName(i),
			"--lmcache-controller-pull", service.LMCache.Pull, "--lmcache-controller-reply", service.LMCache.Reply)
		if err != nil {
			return nil, err
		}
	}
	if err := s.startEnvoy(ctx, o, service.Listen, dir); err != nil {
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

func (s *stack) startService(ctx context.Context, o Options, policy string) (announced, error) {
	var names []string
	for i := range s.engines {
		names = append(names, engineName(i))
	}
	var service announced
	c, err := s.children.start("firsttoken serve", nil, o.Program, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
		"--lmcache-pull", "127.0.0.1:0", "--lmcache-reply", "127.0.0.1:0", "--lmcache-heartbeat", "127.0.0.1:0",
		"--policy", policy, "--backends", strings.Join(s.engines, ","), "--lmcache-instances", strings.Join(names, ","),
		"--model", model, "--tokenizer", o.Tokenizer)
	if err != nil {
		return service, err
	}
	err = c.announcement(ctx, &service)
	s.admin = "http://" + service.Admin
	return service, err
}

// startEnvoy starts Envoy with the configuration that firsttoken envoy
// bootstrap prints, and asks it which port it got.
func (s *stack) startEnvoy(ctx context.Context, o Options, service, dir string) error {
	limits := extproc.DefaultConfig()
	cfg := envoy.Config{
		Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Service: service,
		BodyLimit: limits.BodyLimit, DecisionDeadline: limits.DecisionDeadline, Route: envoy.RouteOverrideHost,
	}
	for _, address := range s.engines {
		cfg.Endpoints = append(cfg.Endpoints, envoy.Endpoint{Address: address})
	}
	bootstrap, err := envoy.Bootstrap(cfg)
	if err != nil {
		return err
	}
	file, adminFile := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin")
	if err := os.WriteFile(file, bootstrap, 0o600); err != nil {
		return err
	}
	_, err = s.children.start("envoy", nil, o.Envoy, "--config-path", file, "--admin-address-path", adminFile,
		"--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
	if err != nil {
		return err
	}
	return s.until(ctx, "Envoy listens", func(ctx context.Context) error {
		admin, err := os.ReadFile(adminFile) //nolint:gosec // Its name is ours.
		if err != nil {
			return err
		}
		s.gateway, err = s.envoyListener(ctx, "http://"+string(admin))
		return err
	})
}

// envoyListener is the address of Envoy's one listener.
func (s *stack) envoyListener(ctx context.Context, admin string) (string, error) {
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
	return "http://" + net.JoinHostPort(socket.Address, strconv.Itoa(socket.Port)), nil
}

// awaitReady waits until the service sees every engine and its LMCache worker.
func (s *stack) awaitReady(ctx context.Context) error {
	return s.until(ctx, "all engines and their LMCache are there", func(ctx context.Context) error {
		text, err := s.get(ctx, s.admin+"/status")
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
		if ready < engines || registered < engines {
			return fmt.Errorf("of %d engines %d are ready and %d have registered their LMCache", engines, ready, registered)
		}
		return nil
	})
}

// until asks again and again until done returns nil, ctx ends or a child dies.
func (s *stack) until(ctx context.Context, what string, done func(context.Context) error) error {
	var last error
	for {
		if last = done(ctx); last == nil {
			return nil
		}
		select {
		case err := <-s.children.died:
			return err
		default:
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("waited until %s: %w (last: %w)", what, err, last)
		}
	}
}

// decision is what the service recorded of one request.
func (s *stack) decision(ctx context.Context, id string) (*firsttokenv1.Decision, error) {
	text, err := s.get(ctx, s.admin+"/decisions?id="+id)
	if err != nil {
		return nil, err
	}
	d := new(firsttokenv1.Decision)
	return d, protojson.Unmarshal(text, d)
}

func (s *stack) get(ctx context.Context, url string) ([]byte, error) {
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

// stop ends everything that startStack started.
func (s *stack) stop() {
	s.children.stop()
	s.http.CloseIdleConnections()
}
