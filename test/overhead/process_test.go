package overhead_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsttoken/firsttoken/envoy"
)

// roleVariable makes the test binary play a child.
const roleVariable = "OVERHEAD_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "empty" {
		if err := serveEmpty(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// process is a child that runs until the test ends.
type process struct {
	name   string
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr *lockedBuffer
	exited chan struct{} // closed when it is gone
}

// start runs a program. The first lines of its output are the caller's to read;
// it must print little after them.
func start(t *testing.T, name string, env []string, program string, args ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(program, args...), stderr: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = time.Second
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewReader(stdout)
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { _, _ = p.cmd.Process.Wait(); close(p.exited) }() // ends with the process
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // an error says that it is gone
		<-p.exited
		_ = stdout.Close()
		if t.Failed() {
			const enough = 4 << 10
			said := p.stderr.String()
			t.Logf("%s said:\n%s", name, said[max(0, len(said)-enough):])
		}
	})
	return p
}

// announcement decodes the line of JSON in which a program says its addresses.
func (p *process) announcement(t *testing.T, v any) {
	t.Helper()
	line, err := p.stdout.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, v)
	}
	if err != nil {
		t.Fatalf("%s printed %q: %v\n%s", p.name, line, err, p.stderr)
	}
}

// cpu is what the process has computed so far, all its threads together and to
// the nanosecond; /proc/<pid>/stat counts in hundredths of a second.
func (p *process) cpu(t *testing.T) time.Duration {
	t.Helper()
	// Linux's clock id of another process' CPU time, as clock_getcpuclockid(3)
	// makes it: MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
	const sched = 2
	clock := int32(^p.cmd.Process.Pid)<<3 | sched
	var now unix.Timespec
	if err := unix.ClockGettime(clock, &now); err != nil {
		t.Errorf("CPU time of %s: %v", p.name, err)
		return 0
	}
	return time.Duration(now.Nano())
}

// tools is the folder with Envoy and Python's packages.
func tools(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("FIRSTTOKEN_TOOLS")
	if dir == "" {
		dir = filepath.Join("..", "..", ".tools")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// need is a program that make installs or builds.
func need(t *testing.T, program, target string) string {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") == "true" || os.Getenv(benchVariable) != "" {
			t.Fatalf("%v; `%s` makes it", err, target)
		}
		t.Skipf("%v; `%s` makes it", err, target)
	}
	return program
}

// proxy is an Envoy.
type proxy struct {
	*process
	clients string // the address that clients reach
}

// startEnvoy runs a config, with one worker, and waits until it takes requests.
func startEnvoy(t *testing.T, name string, config []byte) *proxy {
	t.Helper()
	dir := t.TempDir()
	file, address := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin-address")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &proxy{process: start(t, name, nil, need(t, filepath.Join(tools(t), "envoy"), "make test"),
		"--config-path", file, "--use-dynamic-base-id", "--concurrency", "1",
		"--admin-address-path", address, "--log-level", "error")}
	admin := ""
	eventually(t, p.process, func() bool {
		text, err := os.ReadFile(address)
		admin = "http://" + strings.TrimSpace(string(text))
		return err == nil && len(text) > 0
	})
	eventually(t, p.process, func() bool { _, err := get(t.Context(), admin+"/ready"); return err == nil })
	text, err := get(t.Context(), admin+"/listeners?format=json")
	if err != nil {
		t.Fatal(err)
	}
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
	if err := json.Unmarshal(text, &listeners); err != nil || len(listeners.Statuses) != 1 {
		t.Fatalf("listeners: %v in %s", err, text)
	}
	s := listeners.Statuses[0].Local.Socket
	p.clients = fmt.Sprintf("%s:%d", s.Address, s.Port)
	return p
}

// service is the program under test.
type service struct {
	*process
	listen, admin string
}

// startService runs the program with its defaults, but for LMCache, of which
// there is none here, and waits until all engines are ready and the tokenizer is
// loaded.
func startService(t *testing.T, engines []*engine) *service {
	t.Helper()
	dir := t.TempDir()
	var text strings.Builder
	text.WriteString("server: {listen: 127.0.0.1:0}\nadmin: {listen: 127.0.0.1:0}\nlmcache: {enabled: false}\nlog: {level: warn}\n")
	fmt.Fprintf(&text, "prompt: {models: [{name: %s, tokenizer: %q}]}\nendpoints:\n", model, tokenizer(t))
	for _, e := range engines {
		fmt.Fprintf(&text, "  - address: %s\n", e.address)
	}
	file := filepath.Join(dir, "firsttoken.yml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	program := need(t, filepath.Join(tools(t), "..", "bin", "firsttoken"), "make build")
	s := &service{process: start(t, "firsttoken", nil, program, "serve", "--config", file)}
	var bound struct{ Listen, Admin string }
	s.announcement(t, &bound)
	s.listen, s.admin = bound.Listen, "http://"+bound.Admin
	eventually(t, s.process, func() bool {
		var state struct {
			Models []struct {
				Loaded bool `json:"loaded"`
			} `json:"models"`
			Endpoints []struct {
				Ready bool `json:"ready"`
			} `json:"endpoints"`
		}
		text, err := get(t.Context(), s.admin+"/status")
		if err != nil || json.Unmarshal(text, &state) != nil {
			return false
		}
		ready := 0
		for _, e := range state.Endpoints {
			if e.Ready {
				ready++
			}
		}
		return ready == len(engines) && len(state.Models) == 1 && state.Models[0].Loaded
	})
	return s
}

// tokenizer is the folder of $TOKENIZER, else the repository's small one.
func tokenizer(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("TOKENIZER")
	if dir == "" {
		dir = filepath.Join("..", "tokenizer")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startEmpty runs the server that decides nothing.
func startEmpty(t *testing.T) (p *process, listen string) {
	t.Helper()
	p = start(t, "empty server", []string{roleVariable + "=empty"}, os.Args[0])
	var bound struct{ Listen string }
	p.announcement(t, &bound)
	return p, bound.Listen
}

// envoyConfig is the config that `firsttoken envoy bootstrap` prints, with ports
// that the system chooses. duplex: the request's body comes in full duplex.
func envoyConfig(t *testing.T, service string, engines []*engine, duplex bool) []byte {
	t.Helper()
	c := envoy.Config{
		Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Service: service, BodyLimit: 32 << 20,
		DecisionDeadline: 500 * time.Millisecond, Route: envoy.RouteOverrideHost,
	}
	for _, e := range engines {
		c.Endpoints = append(c.Endpoints, envoy.Endpoint{Address: e.address})
	}
	config, err := envoy.Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	if !duplex {
		return config
	}
	text := string(config)
	for _, edit := range [][2]string{
		{"request_body_mode: BUFFERED", "request_body_mode: FULL_DUPLEX_STREAMED"},
		{"request_trailer_mode: SKIP", "request_trailer_mode: SEND"}, // Envoy asks for it
	} {
		if strings.Count(text, edit[0]) != 1 {
			t.Fatalf("%q is not in the config once:\n%s", edit[0], text)
		}
		text = strings.Replace(text, edit[0], edit[1], 1)
	}
	return []byte(text)
}

// plainConfig is Envoy as it is without the service: round robin, and limits as
// high as those of envoyConfig.
func plainConfig(engines []*engine) []byte {
	var members strings.Builder
	for _, e := range engines {
		host, port, _ := strings.Cut(e.address, ":")
		fmt.Fprintf(&members, "          - endpoint: {address: {socket_address: {address: %s, port_value: %s}}}\n", host, port)
	}
	return []byte(`
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: clients
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    per_connection_buffer_limit_bytes: 34603008
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: clients
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: engines
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: pool, timeout: 0s}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: pool
    type: STATIC
    lb_policy: ROUND_ROBIN
    circuit_breakers: {thresholds: [{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000}]}
    load_assignment:
      cluster_name: pool
      endpoints:
      - lb_endpoints:
` + members.String())
}

// get is a page's text.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.200s", url, resp.Status, text)
	}
	return text, err
}

// patience is how long a process may take to be ready on a busy machine.
const patience = time.Minute

// eventually waits for a condition that another process makes true.
func eventually(t *testing.T, alive *process, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for !is() {
		select {
		case <-alive.exited:
			t.Fatalf("%s ended:\n%s", alive.name, alive.stderr)
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("%s was not ready within %s:\n%s", alive.name, patience, alive.stderr)
		}
	}
}

// lockedBuffer collects the output of a child.
type lockedBuffer struct {
	mu  sync.Mutex
	buf strings.Builder // guarded by mu
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
