//go:build cgo && !nozmq

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/firsttoken/firsttoken/engine"
)

// program starts firsttoken as a process of its own, which the test may kill.
func program(t *testing.T, args ...string) (cmd *exec.Cmd, out io.Reader) {
	t.Helper()
	cmd = exec.Command("firsttoken", args...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := new(lockedLog)
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%v said:\n%s", args[0], said)
		}
	})
	return cmd, stdout
}

// startGateway runs the Envoy below $FIRSTTOKEN_TOOLS, else .tools, and returns
// its address for clients.
func startGateway(t *testing.T, bootstrap []byte) string {
	t.Helper()
	tools := os.Getenv("FIRSTTOKEN_TOOLS")
	if tools == "" {
		tools = "../../.tools"
	}
	binary := filepath.Join(tools, "envoy")
	if _, err := os.Stat(binary); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no Envoy: %v; `make test` installs it", err)
		}
		t.Skipf("no Envoy: %v; `make test` installs it", err)
	}
	dir := t.TempDir()
	file, address := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin")
	if err := os.WriteFile(file, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--config-path", file, "--use-dynamic-base-id", "--concurrency", "1", "--admin-address-path", address, "--log-level", "warning")
	said := new(lockedLog)
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var listeners struct {
		Statuses []struct {
			Local struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	ask := func(path string) (*http.Response, error) {
		admin, err := os.ReadFile(address)
		if err != nil {
			return nil, err
		}
		return http.Get("http://" + strings.TrimSpace(string(admin)) + path)
	}
	eventually(t, "Envoy is ready", func() bool {
		ready, err := ask("/ready")
		if err != nil {
			return false
		}
		ready.Body.Close()
		resp, err := ask("/listeners?format=json")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return json.NewDecoder(resp.Body).Decode(&listeners) == nil && len(listeners.Statuses) == 1 && ready.StatusCode == http.StatusOK
	}, said.String)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(listeners.Statuses[0].Local.Socket.Port))
}

// The active service is killed: its standby, which has followed the engines' KV
// events all along, sends the next turn of every conversation where the ones
// before are cached.
func TestStandbyIsWarm(t *testing.T) {
	requireTokenizer(t)
	t.Run("static", func(t *testing.T) { testStandbyIsWarm(t, false) })
	t.Run("xDS", func(t *testing.T) { testStandbyIsWarm(t, true) })
}

// testStandbyIsWarm does so with an Envoy that has its configuration from a file,
// or from both services.
func testStandbyIsWarm(t *testing.T, dynamic bool) {
	t.Helper()
	t.Parallel()
	type section = map[string]any
	var endpoints []section
	for range 2 {
		cfg := engine.DefaultConfig()
		cfg.Models, cfg.Tokenizer, cfg.TimeScale = []string{drillModel}, drillTokenizer, 1e-3
		cfg.Events.Endpoint, cfg.Events.Replay = "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"
		e, err := engine.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
		if err := e.Start("127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		live, replay := e.EventAddresses()
		endpoints = append(endpoints, section{"address": e.Address(), "kv_events": section{"endpoint": live, "replay_endpoint": replay}})
	}
	tokenizer, err := filepath.Abs(drillTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(section{
		// Envoy is told by flags where they are; how many there are, by the services.
		"server": section{"listen": "127.0.0.1:0", "services": []string{"127.0.0.1:9002", "127.0.0.2:9002"}},
		"xds":    section{"listen": "127.0.0.1:0", "envoy_listen": "127.0.0.1:0"},
		"admin":  section{"listen": "127.0.0.1:0"}, "endpoints": endpoints,
		"lmcache": section{"enabled": false},
		"prompt":  section{"models": []section{{"name": drillModel, "tokenizer": tokenizer}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "firsttoken.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var processes []*exec.Cmd
	var services []bound
	for range 2 {
		cmd, out := program(t, "serve", "--config", file)
		var b bound
		if err := json.NewDecoder(out).Decode(&b); err != nil {
			t.Fatal(err)
		}
		awaitServing(t, dial(t, b.Listen))
		processes, services = append(processes, cmd), append(services, b)
	}
	args := []string{"envoy", "bootstrap", "--config", file, "--service", services[0].Listen + "," + services[1].Listen, "--envoy-admin", "127.0.0.1:0"}
	if dynamic {
		args = append(args, "--xds", "--xds-address", services[0].XDS+","+services[1].XDS)
	} else {
		args = append(args, "--envoy-listen", "127.0.0.1:0")
	}
	_, out := program(t, args...)
	bootstrap, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	gateway := startGateway(t, bootstrap)

	const conversations = 6
	turn := func(c, turns int) (address, reason string) {
		t.Helper()
		prompt := ""
		for i := range turns {
			prompt += prose(c*10+i, 400) + "\n"
		}
		body, err := json.Marshal(section{"model": drillModel, "prompt": prompt, "max_tokens": 2, "stream": true})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Post("http://"+gateway+"/v1/completions", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("answer: %v %s", err, resp.Status)
		}
		return resp.Header.Get("x-firsttoken-endpoint"), resp.Header.Get("x-firsttoken-reason")
	}
	home := make([]string, conversations)
	for c := range home {
		home[c], _ = turn(c, 1)
	}
	held := func(b bound) (n int) {
		var view status
		get(t, b, "/status", &view)
		for _, row := range view.KVEvents {
			n += row.Blocks["gpu"]
		}
		return n
	}
	eventually(t, "both have heard the same", func() bool { n := held(services[0]); return n > 0 && held(services[1]) == n }, func() string {
		return fmt.Sprint(held(services[0]), held(services[1]))
	})
	if err := processes[0].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for c := range home {
		if address, reason := turn(c, 2); address != home[c] || reason != "cached" {
			t.Errorf("conversation %d went to %s for %q after the kill, want %s, cached", c, address, reason, home[c])
		}
	}
}
