package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
)

// migrated is the configuration that a command line of the router becomes, as
// `firsttoken check` reads it.
func migrated(t *testing.T, args ...string) (cfg config, notes string) {
	t.Helper()
	var out, said bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(&said)
	root.SetArgs(append([]string{"migrate"}, args...))
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "firsttoken.yml")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := checkFile(t, "--config", file); err != nil {
		t.Fatalf("%v\n%s\n%s", err, text, out.String())
	}
	cfg = defaultConfig()
	if faults, err := decodeYAML(out.Bytes(), &cfg); err != nil || len(faults) > 0 {
		t.Fatal(err, faults)
	}
	return cfg, said.String()
}

func TestMigrateFaults(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "there is nothing to migrate"},
		{[]string{"--dynamic-config"}, "--dynamic-config: names no file"},
		{[]string{"--dynamic-config", "/nonexistent"}, "--dynamic-config: open /nonexistent"},
		{[]string{"--routing-logic 'x"}, "ends inside quotes"},
		{[]string{"--", "--service-discovery", "static", "--static-backends", "http://a:1/v1", "--routing-logic", "roundrobin"}, "endpoints[0].address"},
	} {
		root := newRootCommand()
		root.SetOut(io.Discard)
		root.SetArgs(append([]string{"migrate"}, tt.args...))
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.args, err, tt.want)
		}
	}
}

// A command line of production-stack's router migrates and serves: its clients
// go on as before, through real Envoy.
func TestMigratedServes(t *testing.T) {
	engines := []string{simulatedEngine(t, "m"), simulatedEngine(t, "m"), simulatedEngine(t, "m")}
	line := func(more string) string {
		return "python3 -m vllm_router.app --host 0.0.0.0 --port 8001 --service-discovery static " +
			"--static-backends '" + strings.Join(engines, ",") + "' --static-models m,m,m --static-aliases gpt-4:m --engine-stats-interval 15 " + more
	}
	completion := func(model string, ids int, from int) string {
		prompt := make([]int, ids)
		for i := range prompt {
			prompt[i] = from + i
		}
		text, _ := json.Marshal(map[string]any{"model": model, "prompt": prompt, "max_tokens": 1})
		return string(text)
	}
	t.Run("roundrobin", func(t *testing.T) {
		m := startMigrated(t, line("--routing-logic roundrobin"))
		last, served := "", map[string]int{}
		for range 9 {
			at := m.served(completion("gpt-4", 10, 0))
			if at == last {
				t.Errorf("two requests in a row at %s", at)
			}
			last = at
			served[at]++
		}
		for at, n := range served {
			if n != 3 {
				t.Errorf("%s served %d of 9", at, n)
			}
		}
		for path, want := range map[string]string{"/v1/models": `"gpt-4"`, "/engines": `"engine_id"`, "/health": `"healthy"`, "/version": `"version"`} {
			if status, text, _ := m.ask(http.MethodGet, path, ""); status != http.StatusOK || !strings.Contains(text, want) {
				t.Errorf("%s: %d %s", path, status, text)
			}
		}
		id := strings.TrimPrefix(engines[1], "http://")
		for range 3 {
			if _, _, header := m.ask(http.MethodPost, "/v1/completions?id="+id, completion("m", 10, 0)); header.Get(envoy.HeaderServed) != id {
				t.Errorf("pinned to %s, served by %s", id, header.Get(envoy.HeaderServed))
			}
		}
		if status, text, _ := m.ask(http.MethodPost, "/v1/completions", completion("gpt-5", 10, 0)); status != http.StatusNotFound {
			t.Errorf("unknown model: %d %s", status, text)
		}
		if !strings.Contains(m.notes, "--port: by hand: ") || !strings.Contains(m.notes, "--engine-stats-interval: no equal: ") {
			t.Errorf("said\n%s", m.notes)
		}
	})
	t.Run("models are learnt", func(t *testing.T) {
		pools := map[string][]string{"m": engines[:2], "n": {simulatedEngine(t, "n"), simulatedEngine(t, "n")}}
		m := startMigrated(t, "vllm-router --service-discovery static --routing-logic roundrobin --static-aliases other:n --static-backends "+
			strings.Join(slices.Concat(pools["m"], pools["n"]), ","))
		poll := time.NewTicker(10 * time.Millisecond)
		defer poll.Stop()
		for deadline := time.Now().Add(20 * time.Second); ; <-poll.C {
			_, text, _ := m.ask(http.MethodGet, "/engines", "")
			if strings.Count(text, `"serving_models":["`) == 4 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for all models: %s", text)
			}
		}
		if _, text, _ := m.ask(http.MethodGet, "/v1/models", ""); strings.Count(text, `"id":"m"`) != 1 || strings.Count(text, `"id":"n"`) != 1 || !strings.Contains(text, `"id":"other"`) {
			t.Errorf("/v1/models: %s", text)
		}
		for asked, model := range map[string]string{"m": "m", "n": "n", "other": "n"} {
			served := map[string]bool{}
			for range 4 {
				served["http://"+m.served(completion(asked, 10, 0))] = true
			}
			for _, e := range pools[model] {
				if !served[e] {
					t.Errorf("%s: not served by %s", asked, e)
				}
			}
			if len(served) != 2 {
				t.Errorf("%s: served by %v", asked, served)
			}
		}
		if status, text, _ := m.ask(http.MethodPost, "/v1/completions", completion("gpt", 10, 0)); status != http.StatusNotFound {
			t.Errorf("unknown model: %d %s", status, text)
		}
	})
	t.Run("session", func(t *testing.T) {
		m := startMigrated(t, line("--routing-logic session --session-key x-user-id"))
		homes := map[string]bool{}
		for user := range 12 {
			name := fmt.Sprint("user-", user)
			home := m.served(completion("gpt-4", 10, 0), "x-user-id", name)
			homes[home] = true
			for range 4 {
				if at := m.served(completion("m", 20, user), "x-user-id", name); at != home {
					t.Errorf("%s at %s, then at %s", name, home, at)
				}
			}
		}
		if len(homes) < 2 {
			t.Errorf("all sessions are at home at %v", homes)
		}
	})
	t.Run("kvaware", func(t *testing.T) {
		m := startMigrated(t, line("--routing-logic kvaware --session-key x-user-id --lmcache-controller-port 9000 --lmcache-instances a,b,c --kv-aware-threshold 200"))
		homes := map[string]bool{}
		for prompt := range 6 {
			home := m.served(completion("m", 1000, 10_000*prompt))
			homes[home] = true
			for range 3 {
				if at := m.served(completion("gpt-4", 1010, 10_000*prompt)); at != home {
					t.Errorf("prompt %d was computed at %s, and then sent to %s", prompt, home, at)
				}
			}
		}
		if len(homes) < 2 {
			t.Errorf("all prompts went to %v", homes)
		}
	})
}

// serving is a migrated service with an Envoy before it.
type serving struct {
	t     *testing.T
	url   string
	notes string
}

func startMigrated(t *testing.T, line string) *serving {
	t.Helper()
	cfg, notes := migrated(t, line)
	b := startLoggedService(t, cfg, slog.New(slog.DiscardHandler))
	conn := dial(t, b.Listen)
	awaitServing(t, conn)
	text, err := staticBootstrap(cfg, envoy.Config{Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Service: b.Listen, Route: envoy.RouteOverrideHost})
	if err != nil {
		t.Fatal(err)
	}
	return &serving{t, startProxy(t, text), notes}
}

// ask sends a request and reads its answer.
func (m *serving) ask(method, path, body string, headers ...string) (status int, text string, header http.Header) {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.url+path, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for pair := range slices.Chunk(headers, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.StatusCode, string(answer), resp.Header
}

// served is who answers a completion.
func (m *serving) served(body string, headers ...string) string {
	m.t.Helper()
	status, text, header := m.ask(http.MethodPost, "/v1/completions", body, headers...)
	if status != http.StatusOK {
		m.t.Fatalf("%d %s", status, text)
	}
	return header.Get(envoy.HeaderServed)
}

// simulatedEngine is the base URL of one that serves a model until the test ends.
func simulatedEngine(t *testing.T, model string) string {
	t.Helper()
	read, write := io.Pipe()
	root := newRootCommand()
	root.SetArgs([]string{"engine", "--model", model, "--listen", "127.0.0.1:0", "--profile", "3090-7b", "--time-scale", "0.001"})
	root.SetOut(write)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { // ends with ctx
		err := root.ExecuteContext(ctx)
		write.CloseWithError(err)
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(line), "listening on ")
}

// startProxy runs real Envoy with a config until the test ends, and returns
// where it takes requests.
func startProxy(t *testing.T, config []byte) string {
	t.Helper()
	tools := os.Getenv("FIRSTTOKEN_TOOLS")
	if tools == "" {
		tools = filepath.Join("..", "..", ".tools")
	}
	program, err := filepath.Abs(filepath.Join(tools, "envoy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no Envoy: %v; `make test` installs it", err)
		}
		t.Skipf("no Envoy: %v; `make test` installs it", err)
	}
	dir := t.TempDir()
	file, address := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer // read once Envoy has ended
	cmd := exec.Command(program, "--config-path", file, "--use-dynamic-base-id", "--concurrency", "1", "--admin-address-path", address, "--log-level", "warning")
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("envoy said:\n%s", said.String())
		}
	})
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		<-poll.C
		admin, err := os.ReadFile(address)
		if err != nil || len(admin) == 0 {
			continue
		}
		page := func(path string) (int, string) {
			resp, err := http.Get("http://" + strings.TrimSpace(string(admin)) + path)
			if err != nil {
				return 0, ""
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, strings.TrimSpace(string(text))
		}
		if ready, _ := page("/ready"); ready != http.StatusOK {
			continue
		}
		_, text := page("/listeners")
		if _, listener, ok := strings.Cut(text, "::"); ok {
			return "http://" + listener
		}
	}
	t.Fatal("waited in vain for Envoy")
	return ""
}
