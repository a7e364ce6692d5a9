package vllm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

// stack is two engines, the service and Envoy before them.
type stack struct {
	source  truth
	venv    string
	program string // bin/firsttoken
	config  string // the service's file
	admin   string // http://host:port of the service
	service *process
	engines []*engine
	client  *client
}

// tools is the folder with Envoy and the engine's Python.
func tools(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", ".tools"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startStack starts everything and returns when a request would be served by
// either engine.
func startStack(t *testing.T, source truth, tokenizer string) *stack {
	t.Helper()
	s := &stack{source: source, venv: filepath.Join(tools(t), "vllm"), program: filepath.Join(tools(t), "..", "bin", "firsttoken")}
	model := modelFolder(t, tokenizer)
	controller := controllerAddresses{freeAddress(t), freeAddress(t), freeAddress(t)}
	for _, name := range []string{"e1", "e2"} {
		s.engines = append(s.engines, &engine{
			name: name, address: freeAddress(t), events: freeAddress(t), replay: freeAddress(t), lmcachePort: port(freeAddress(t)),
			source: source, model: model, controller: controller,
		})
	}
	listen, admin, gateway := freeAddress(t), freeAddress(t), freeAddress(t)
	s.admin, s.client = "http://"+admin, newClient("http://"+gateway)
	s.config = s.writeConfig(t, model, listen, admin, controller)

	// The service first: an LMCache worker that finds no controller when it
	// starts never reports.
	s.startService(t)
	for _, e := range s.engines {
		e.run(t, s.venv)
	}
	s.startEnvoy(t, gateway)
	for _, e := range s.engines {
		e.ready(t)
	}
	s.awaitReady(t)
	return s
}

func port(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

func (s *stack) writeConfig(t *testing.T, model, listen, admin string, controller controllerAddresses) string {
	t.Helper()
	var text bytes.Buffer
	fmt.Fprintf(&text, "server: {listen: %q}\nadmin: {listen: %q}\n", listen, admin)
	fmt.Fprintf(&text, "prompt: {models: [{name: %s, tokenizer: %q, max_model_len: 8192}]}\n", modelName, model)
	fmt.Fprintf(&text, "lmcache:\n  enabled: %t\n", s.source == fromLMCache)
	fmt.Fprintf(&text, "  keys: {lmcache_version: 0.5.6, vllm_version: 0.32.0, python_version: \"3.11\", pythonhashseed: \"0\", chunk_size: %d}\n", chunkSize)
	fmt.Fprintf(&text, "  controller: {pull: %q, reply: %q, heartbeat: %q}\n", controller.pull, controller.reply, controller.heartbeat)
	text.WriteString("endpoints:\n")
	for _, e := range s.engines {
		fmt.Fprintf(&text, "  - name: %s\n    address: %q\n", e.name, e.address)
		switch s.source {
		case fromLMCache:
			fmt.Fprintf(&text, "    lmcache: {instance: %s}\n", e.name)
		case fromEvents:
			// Without * in its endpoint the engine connects, so we listen.
			fmt.Fprintf(&text, "    kv_events: {endpoint: %q, replay_endpoint: %q, bind: true}\n", "tcp://"+e.events, "tcp://"+e.replay)
		case fromMemory:
		}
	}
	file := filepath.Join(t.TempDir(), "firsttoken.yml")
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// startService starts the service, again after its end.
func (s *stack) startService(t *testing.T) {
	t.Helper()
	s.service = start(t, "firsttoken", nil, s.program, "serve", "--config", s.config)
	eventually(t, time.Minute, "its admin port is open", s.service, func() bool {
		_, err := s.get(t.Context(), "/healthz")
		return err == nil
	})
}

func (s *stack) startEnvoy(t *testing.T, gateway string) {
	t.Helper()
	config, err := exec.Command(s.program, "envoy", "bootstrap", "--config", s.config,
		"--envoy-listen", gateway, "--envoy-admin", freeAddress(t)).Output()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "envoy", nil, filepath.Join(tools(t), "envoy"), "--config-path", file, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
}

// state is what these tests read of /status.
type state struct {
	OpenBookings int `json:"open_bookings"`
	Models       []struct {
		Loaded bool `json:"loaded"`
	} `json:"models"`
	Endpoints []struct {
		Name  string `json:"name"`
		Ready bool   `json:"ready"`
	} `json:"endpoints"`
	LMCache *struct {
		Workers []struct {
			Registered bool           `json:"registered"`
			Sync       string         `json:"sync"`
			Keys       map[string]int `json:"keys"`
		} `json:"workers"`
	} `json:"lmcache"`
	KVEvents []struct {
		Known  bool           `json:"known"`
		Blocks map[string]int `json:"blocks"`
	} `json:"kv_events"`
}

// reported is how many chunks or blocks engines have told of.
func (v state) reported() (n int) {
	if v.LMCache != nil {
		for _, w := range v.LMCache.Workers {
			for _, count := range w.Keys {
				n += count
			}
		}
	}
	for _, e := range v.KVEvents {
		for _, count := range e.Blocks {
			n += count
		}
	}
	return n
}

func (s *stack) state(t *testing.T) (v state) {
	t.Helper()
	text, err := s.get(t.Context(), "/status")
	if err != nil {
		return v
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// awaitReady waits until every engine is ready in the service's eyes, its
// cache is reported as far as it can be, and Envoy serves.
func (s *stack) awaitReady(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, "the service sees both engines and their caches", s.service, func() bool {
		v := s.state(t)
		// Without its tokenizer the service serves too, but predicts nothing.
		if len(v.Models) != 1 || !v.Models[0].Loaded {
			return false
		}
		good := 0
		for _, e := range v.Endpoints {
			if e.Ready {
				good++
			}
		}
		switch s.source {
		case fromLMCache:
			for _, w := range v.LMCache.Workers {
				if w.Registered && len(w.Keys) > 0 {
					good++
				}
			}
		case fromEvents:
			for _, e := range v.KVEvents {
				if e.Known {
					good++
				}
			}
		case fromMemory:
			good += len(s.engines)
		}
		return good == 2*len(s.engines)
	})
	// Without us Envoy would serve too, by a choice of its own.
	eventually(t, time.Minute, "Envoy serves and asks the service", s.service, func() bool {
		resp, err := s.client.http.Get(s.client.base + "/v1/models")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK && resp.Header.Get(idHeader) != ""
	})
}

// decision is what the service recorded of one request, once it has ended.
func (s *stack) decision(ctx context.Context, id string) (*firsttokenv1.Decision, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		text, err := s.get(ctx, "/decisions?id="+id)
		if err != nil {
			return nil, err
		}
		d := new(firsttokenv1.Decision)
		if err := protojson.Unmarshal(text, d); err != nil || d.Outcome != nil {
			return d, err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("decision %s has no end yet: %w", id, ctx.Err())
		}
	}
}

func (s *stack) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.admin+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: status %d: %.200s", path, resp.StatusCode, text)
	}
	return text, err
}

// encode are the token ids that the service computes of each request.
func (s *stack) encode(t *testing.T, answers []*answer) [][]uint32 {
	t.Helper()
	var lines bytes.Buffer
	for _, a := range answers {
		line, err := json.Marshal(map[string]any{"path": a.path, "body": json.RawMessage(a.body)})
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(line, '\n'))
	}
	cmd := exec.Command(s.program, "encode", "--tokenizer", s.engines[0].model)
	cmd.Stdin = &lines
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("firsttoken encode: %v", err)
	}
	var all [][]uint32
	for line := range bytes.Lines(out) {
		var v struct {
			Prompts []struct {
				TokenIDs []uint32 `json:"token_ids"`
			} `json:"prompts"`
		}
		if err := json.Unmarshal(line, &v); err != nil || len(v.Prompts) != 1 {
			t.Fatalf("firsttoken encode printed %.200s: %v", line, err)
		}
		all = append(all, v.Prompts[0].TokenIDs)
	}
	if len(all) != len(answers) {
		t.Fatalf("firsttoken encode: %d lines for %d requests", len(all), len(answers))
	}
	return all
}
