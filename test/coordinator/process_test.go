package coordinator_test

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is for a whole Python process to start on a busy machine.
const patience = 90 * time.Second

// here is this file's folder.
func here() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

// installed are the folders that setup.sh here and in test/lmcache filled.
func installed(t *testing.T) []string {
	t.Helper()
	tools := os.Getenv("FIRSTTOKEN_TOOLS")
	if tools == "" {
		tools = filepath.Join(here(), "..", "..", ".tools")
	}
	dirs := []string{filepath.Join(tools, "lmcache", "0.5.6"), filepath.Join(tools, "coordinator")}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, ".stamp")); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("LMCache is not installed: %v; run make test", err)
			}
			t.Skipf("LMCache is not installed: %v; run make test, which installs it below .tools", err)
		}
	}
	return append(dirs, filepath.Join(here(), "..", "lmcache", "stubs"), filepath.Join(here(), "stubs"))
}

// process is a Python script that talks in JSON lines. It ends with its stdin.
type process struct {
	t     *testing.T
	stdin io.WriteCloser
	lines chan string
	stop  func()
}

// start runs a script; its first line comes from line.
func start(t *testing.T, script string, args ...string) *process {
	t.Helper()
	path := installed(t)
	cmd := exec.Command("python3", append([]string{script}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+strings.Join(path, string(os.PathListSeparator)), "PYTHONDONTWRITEBYTECODE=1",
		"PYTHONHASHSEED=0", "LMCACHE_TRACK_USAGE=false", "DO_NOT_TRACK=1", "NO_PROXY=127.0.0.1")
	p := &process{t: t, lines: make(chan string, 100)}
	var log strings.Builder
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { // ends with the process
		defer close(read)
		defer close(p.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	p.stop = sync.OnceFunc(func() {
		_ = p.stdin.Close()
		select {
		case <-read:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-read
		}
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", script, log.String())
		}
	})
	t.Cleanup(p.stop)
	return p
}

// line is the next line that has the given key, read into v.
func (p *process) line(key string, v any) {
	p.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case text, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("the process ended before it said %q", key)
			}
			var fields map[string]json.RawMessage
			if json.Unmarshal([]byte(text), &fields) != nil || fields[key] == nil {
				continue
			}
			if err := json.Unmarshal([]byte(text), v); err != nil {
				p.t.Fatal(err)
			}
			return
		case <-timeout.C:
			p.t.Fatalf("the process never said %q", key)
		}
	}
}

// do sends a command and waits until it is done.
func (p *process) do(command map[string]any) {
	p.t.Helper()
	text, err := json.Marshal(command)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.stdin.Write(append(text, '\n')); err != nil {
		p.t.Fatal(err)
	}
	var done map[string]any
	p.line("done", &done)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
