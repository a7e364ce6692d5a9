package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// The examples that run on one machine do: a prompt that is sent twice is cached
// at the same engine the second time, and Ctrl-C leaves nothing behind.
func TestExamples(t *testing.T) {
	if _, err := native.LoadTokenizer("nowhere", native.Options{}); errors.Is(err, native.ErrNotBuilt) {
		t.Skip("the examples need the tokenizer library")
	}
	envoy := envoyProgram(t)
	for _, name := range []string{"static-envoy", "cluster-header", "xds", "sidecar"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, ports := copyExamples(t)
			output := &lockedLog{}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.Command(filepath.Join(root, "examples", name, "start.sh"))
			cmd.Env = append(os.Environ(), "FIRSTTOKEN=firsttoken", "ENVOY="+envoy)
			cmd.Stdout, cmd.Stderr = output, output
			// What the script leaves behind is told apart by its process group.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			defer func() {
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				<-ended
				if t.Failed() {
					t.Logf("%s", output)
				}
			}()
			poll := time.NewTicker(50 * time.Millisecond)
			defer poll.Stop()
			for reason := ""; reason != "cached"; reason = askExample(ctx, ports["8080"]) {
				select {
				case <-poll.C:
				case <-ended:
					t.Fatal("the script ended")
				case <-ctx.Done():
					t.Fatal("no engine answers with the prompt cached")
				}
			}
			if text := output.String(); strings.Contains(text, "registered again") {
				t.Error("two engines have one LMCache instance id")
			}
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			<-ended
			if err := syscall.Kill(-cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("some process goes on (%v)", err)
			}
		})
	}
}

// askExample sends a prompt; the answer is the reason of the choice, or what went
// wrong.
func askExample(ctx context.Context, address string) string {
	body := `{"model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": "` + strings.Repeat("over and over ", 300) + `"}]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return resp.Header.Get("x-firsttoken-reason")
}

// copyExamples copies the examples, and the tokenizer that they name, to a folder
// of the test's own, with each port of theirs changed to a free one.
func copyExamples(t *testing.T) (root string, ports map[string]string) {
	t.Helper()
	root, ports = t.TempDir(), map[string]string{}
	for _, port := range []string{"8000", "8001", "8080", "9901", "9002", "9003", "9090", "8300", "8400", "8500"} {
		ports[port] = holdPort(t)
	}
	number := regexp.MustCompile(`(127\.0\.0\.1:|port_value: )(\d+)`)
	for _, folder := range []string{"examples", "test/tokenizer"} {
		from := filepath.Join("..", "..", folder)
		err := fs.WalkDir(os.DirFS(from), ".", func(name string, d fs.DirEntry, err error) error {
			to := filepath.Join(root, folder, name)
			if err != nil || d.IsDir() {
				return errors.Join(err, os.MkdirAll(to, 0o755))
			}
			text, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				return err
			}
			if folder == "examples" {
				text = number.ReplaceAllFunc(text, func(match []byte) []byte {
					m := number.FindSubmatch(match)
					free, ok := ports[string(m[2])]
					if !ok {
						return match
					}
					_, port, _ := net.SplitHostPort(free)
					return append(m[1], port...)
				})
			}
			return os.WriteFile(to, bytes.Clone(text), 0o755)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return root, ports
}

// holdPort is a loopback address for a child that binds it with SO_REUSEADDR, as
// all of the examples' do. Until the test ends the system gives it to nobody who
// asks for any port: it is bound, though not listened on.
func holdPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	bound, err := unix.Sockaddr(nil), errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
	)
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*unix.SockaddrInet4).Port))
}

// envoyProgram is the real Envoy below $FIRSTTOKEN_TOOLS, else .tools.
func envoyProgram(t *testing.T) string {
	t.Helper()
	tools := os.Getenv("FIRSTTOKEN_TOOLS")
	if tools == "" {
		tools = filepath.Join("..", "..", ".tools")
	}
	path, err := filepath.Abs(filepath.Join(tools, "envoy"))
	if err == nil {
		_, err = os.Stat(path)
	}
	switch {
	case err != nil && os.Getenv("CI") == "true":
		t.Fatalf("no Envoy: %v; make .tools/envoy fetches it", err)
	case err != nil:
		t.Skipf("no Envoy: %v; make .tools/envoy fetches it", err)
	}
	return path
}

// The configurations of all examples are good.
func TestExampleConfigs(t *testing.T) {
	var n int
	err := filepath.WalkDir("../../examples", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yml" {
			return err
		}
		n++
		exampleConfig(t, path)
		return nil
	})
	if err != nil || n < 8 {
		t.Errorf("%d configurations, %v", n, err)
	}
}

func exampleConfig(t *testing.T, path string) config {
	t.Helper()
	flags := configFlags{file: path}
	cfg, err := flags.load(pflag.NewFlagSet("", pflag.ContinueOnError))
	if err != nil {
		t.Error(err)
	}
	return cfg
}

// What the engines of examples/vllm-lmcache run with is what the service's
// configurations beside them say.
func TestExampleEnginesFitTheService(t *testing.T) {
	const folder = "../../examples/vllm-lmcache/"
	cfg := exampleConfig(t, folder+"firsttoken.yml")
	keys, env := cfg.LMCache.Keys, exampleEngine(t, folder+"lmcache.yaml").env()
	const host = "firsttoken.inference.svc.cluster.local:"
	for name, want := range map[string]string{
		"PYTHONHASHSEED":                     keys.PythonHashSeed,
		"LMCACHE_PRE_CACHING_HASH_ALGORITHM": keys.Algorithm,
		"LMCACHE_CHUNK_SIZE":                 strconv.Itoa(keys.ChunkSize),
		"LMCACHE_ENABLE_CONTROLLER":          "true",
		"LMCACHE_CONTROLLER_PULL_URL":        host + strings.TrimPrefix(cfg.LMCache.Controller.Pull, "*:"),
		"LMCACHE_CONTROLLER_REPLY_URL":       host + strings.TrimPrefix(cfg.LMCache.Controller.Reply, "*:"),
	} {
		if env[name] != want {
			t.Errorf("%s: the engines have %q, the service %q", name, env[name], want)
		}
	}
	events := exampleConfig(t, folder+"firsttoken-kv-events.yml").Endpoints[0].KVEvents
	var flag struct {
		Enabled        bool   `json:"enable_kv_cache_events"`
		Publisher      string `json:"publisher"`
		Endpoint       string `json:"endpoint"`
		ReplayEndpoint string `json:"replay_endpoint"`
	}
	if err := json.Unmarshal([]byte(exampleEngine(t, folder+"kv-events.yaml").flag("--kv-events-config=")), &flag); err != nil {
		t.Fatal(err)
	}
	if !flag.Enabled || flag.Publisher != "zmq" || flag.Endpoint != events.Endpoint || flag.ReplayEndpoint != events.ReplayEndpoint {
		t.Errorf("the engines publish at %+v, the service listens at %+v", flag, events)
	}
	for _, name := range []string{"lmcache", "kv-events"} {
		engine, model := exampleEngine(t, folder+name+".yaml"), cfg.Prompt.Models[0]
		if engine.Args[0] != model.Tokenizer || engine.flag("--served-model-name=") != model.Name {
			t.Errorf("%s serves %s as %s, the service knows %s of %s", name, engine.Args[0], engine.flag("--served-model-name="), model.Name, model.Tokenizer)
		}
	}
}

// vllmContainer is what of a Deployment's first container the service depends on.
type vllmContainer struct {
	Args []string `yaml:"args"`
	Env  []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
}

func exampleEngine(t *testing.T, path string) vllmContainer {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []vllmContainer `yaml:"containers"`
				} `yaml:"spec"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(text, &deployment); err != nil || len(deployment.Spec.Template.Spec.Containers) == 0 {
		t.Fatalf("%s: no container (%v)", path, err)
	}
	return deployment.Spec.Template.Spec.Containers[0]
}

func (c vllmContainer) env() map[string]string {
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	return env
}

// flag is the value of the argument that begins with it.
func (c vllmContainer) flag(begin string) string {
	for _, a := range c.Args {
		if value, ok := strings.CutPrefix(a, begin); ok {
			return value
		}
	}
	return ""
}

// systemd itself finds no fault in the units, and what they start is there.
func TestExampleUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze")
	}
	dir := t.TempDir()
	for _, name := range []string{"firsttoken.service", "envoy.service"} {
		text, err := os.ReadFile("../../examples/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		// The programs are installed where the test is not.
		for _, program := range []string{"firsttoken", "envoy"} {
			text = bytes.ReplaceAll(text, []byte("/usr/local/bin/"+program), []byte("/bin/true"))
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", filepath.Join(dir, "firsttoken.service"), filepath.Join(dir, "envoy.service")).CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}
