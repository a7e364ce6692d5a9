package envoy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
)

// envoyBinary is the real Envoy below $FIRSTTOKEN_TOOLS, else .tools.
func envoyBinary(tb testing.TB) string {
	tb.Helper()
	tools := os.Getenv("FIRSTTOKEN_TOOLS")
	if tools == "" {
		_, file, _, _ := runtime.Caller(0)
		tools = filepath.Join(filepath.Dir(file), "..", "..", ".tools")
	}
	path := filepath.Join(tools, "envoy")
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatalf("no Envoy: %v; `make test` installs it", err)
		}
		tb.Skipf("no Envoy: %v; `make test` installs it", err)
	}
	return path
}

// proxy is a running Envoy.
type proxy struct {
	// clients and admin are base URLs.
	clients, admin string
	output         *lockedBuffer
}

// startEnvoy runs the recommended config of c on ports of the system's choice.
func startEnvoy(t *testing.T, c envoy.Config) *proxy {
	t.Helper()
	c.Listen, c.Admin = "127.0.0.1:0", "127.0.0.1:0"
	config, err := envoy.Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	return startEnvoyWith(t, config)
}

// startEnvoyWith runs a config and waits until Envoy takes requests. Drain are
// flags that say how long a listener that ends lets its connections live.
func startEnvoyWith(t *testing.T, config []byte, drain ...string) *proxy {
	t.Helper()
	if drain == nil {
		drain = []string{"--drain-time-s", "1", "--parent-shutdown-time-s", "2"}
	}
	dir := t.TempDir()
	file, address := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin-address")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &proxy{output: &lockedBuffer{}}
	// The ELF ends with its parent, so it is a child that is waited for.
	cmd := exec.Command(envoyBinary(t), append([]string{
		"--config-path", file, "--use-dynamic-base-id", "--concurrency", "1",
		"--admin-address-path", address, "--log-level", "warning",
	}, drain...)...)
	cmd.Stdout, cmd.Stderr = p.output, p.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			const enough = 4 << 10
			said := p.output.String()
			t.Logf("envoy said:\n%s", said[max(0, len(said)-enough):])
		}
	})
	eventually(t, "Envoy writes its admin address", func() bool {
		select {
		case <-exited:
			t.Fatalf("envoy ended:\n%s", p.output)
		default:
		}
		text, err := os.ReadFile(address)
		p.admin = "http://" + strings.TrimSpace(string(text))
		return err == nil && len(text) > 0
	})
	eventually(t, "Envoy is ready", func() bool {
		code, _ := p.ask(t, "/ready")
		return code == http.StatusOK
	})
	p.clients = "http://" + p.listener(t)
	return p
}

// listener is the address that clients reach.
func (p *proxy) listener(t *testing.T) string {
	t.Helper()
	_, text := p.ask(t, "/listeners?format=json")
	var listeners struct {
		Statuses []struct {
			Local struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(text), &listeners); err != nil || len(listeners.Statuses) != 1 {
		t.Fatalf("listeners: %v in %s", err, text)
	}
	s := listeners.Statuses[0].Local.Socket
	return net.JoinHostPort(s.Address, strconv.Itoa(s.Port))
}

// ask gets a page of the admin interface.
func (p *proxy) ask(t *testing.T, path string) (code int, text string) {
	t.Helper()
	resp, err := http.Get(p.admin + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// stat is a counter or gauge of Envoy.
func (p *proxy) stat(t *testing.T, name string) int {
	t.Helper()
	_, text := p.ask(t, "/stats?filter="+url.QueryEscape("^"+regexp.QuoteMeta(name)+"$"))
	_, value, ok := strings.Cut(strings.TrimSpace(text), ": ")
	n, err := strconv.Atoi(value)
	if !ok || err != nil {
		t.Fatalf("stat %s: %q", name, text)
	}
	return n
}

// patience is how long a condition may take on a busy machine.
const patience = 20 * time.Second

// eventually waits for a condition that another process makes true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !is() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// lockedBuffer collects the output of a child.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
