//go:build cgo && !nozmq

package lmcache_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// patience is for a whole Python process to start on a busy machine.
const patience = 60 * time.Second

// installed is where setup.sh has put an LMCache release.
func installed(t *testing.T, version string) string {
	t.Helper()
	tools := os.Getenv("FIRSTTOKEN_TOOLS")
	if tools == "" {
		tools = filepath.Join(here(), "..", "..", ".tools")
	}
	dir := filepath.Join(tools, "lmcache", version)
	if _, err := os.Stat(filepath.Join(dir, ".stamp")); err != nil {
		target, wanted := "test", os.Getenv("CI") == "true"
		if strings.HasPrefix(t.Name(), "TestOlder") {
			target, wanted = "test-lmcache", os.Getenv("FIRSTTOKEN_LMCACHE_OLDER") == "true"
		}
		if wanted {
			t.Fatalf("LMCache %s is not installed: %v; run make %s", version, err, target)
		}
		t.Skipf("LMCache %s is not installed; run make %s, which installs it below .tools", version, target)
	}
	return dir
}

// here is this file's folder.
func here() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// service is our side: a controller, its index, and lookups for one endpoint.
type service struct {
	*lmcache.Controller
	index  *lmcache.Index
	source *lmcache.Source
	stop   func()
}

// serve starts a controller; at has the addresses of an earlier one or port 0.
func serve(t *testing.T, at lmcache.Addresses, keys lmcache.KeyGroup, instance string) *service {
	t.Helper()
	cfg := lmcache.DefaultControllerConfig()
	cfg.Pull, cfg.Reply, cfg.Heartbeat = at.Pull, at.Reply, at.Heartbeat
	cfg.SilentAfter, cfg.CheckInterval = 2*time.Second, 50*time.Millisecond
	log := slog.New(slog.DiscardHandler)
	s := &service{index: lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 10_000})}
	var err error
	if s.Controller, err = lmcache.NewController(cfg, s.index, log, lmcache.NewMetrics(prometheus.NewRegistry())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }() // ended by stop
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	config := lmcache.DefaultConfig()
	config.Keys = keys
	if s.source, err = lmcache.NewSource(config, s.index, s.Controller, log); err != nil {
		t.Fatal(err)
	}
	s.source.SetEndpoints(endpoints(instance))
	return s
}

func endpoints(instance string) []scoring.Endpoint {
	return []scoring.Endpoint{{ID: 1, Name: "engine", Address: "127.0.0.1:8000", Ready: true, Cache: scoring.CacheIdentity{Instance: instance}}}
}

// cached is what a prompt of these tokens finds on the instance.
func (s *service) cached(instance string, tokens []uint32) scoring.Tokens {
	n := scoring.Tokens(len(tokens))
	p := &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: tokens, Length: n, Usable: n, Copies: 1}}}
	row := s.source.Match(p, endpoints(instance))[0]
	if row == nil {
		return -1 // nothing is known of the instance
	}
	return row[0].Cached
}

// worker returns the status of the only worker there is.
func (s *service) worker() (w lmcache.WorkerStatus) {
	if all := s.Status(); len(all) == 1 {
		w = all[0]
	}
	return w
}

// realWorker is a Python process with LMCache's own worker code.
type realWorker struct {
	t       *testing.T
	stdin   io.WriteCloser
	answers chan answer
	log     *lockedBuffer

	mu     sync.Mutex // guards the following field
	frozen []bool     // calls of the engine's freeze
}

type answer struct {
	Event   string
	Done    string
	Port    int
	Enabled bool
	Keys    []json.Number
	Layout  [][]any
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startWorker starts LMCache's worker and returns it with its registered port.
func startWorker(t *testing.T, version string, at lmcache.Addresses, instance string) (*realWorker, int) {
	t.Helper()
	// 30 s is LMCache's default.
	return startImpatientWorker(t, version, at, instance, 30*time.Second)
}

// startImpatientWorker starts one that waits for answers for the given time.
func startImpatientWorker(t *testing.T, version string, at lmcache.Addresses, instance string, wait time.Duration) (*realWorker, int) {
	t.Helper()
	python := os.Getenv("PYTHON")
	if python == "" {
		python = "python3"
	}
	config, err := json.Marshal(map[string]any{"instance": instance, "pull": at.Pull, "reply": at.Reply, "heartbeat_seconds": 0.1, "receive_timeout_ms": wait.Milliseconds()})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, filepath.Join(here(), "worker.py"), string(config))
	cmd.Env = append(os.Environ(),
		"PYTHONPATH="+installed(t, version)+string(os.PathListSeparator)+filepath.Join(here(), "stubs"),
		"PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED=0", "LMCACHE_TRACK_USAGE=false", "LMCACHE_LOG_LEVEL=INFO")
	w := &realWorker{t: t, answers: make(chan answer, 16), log: &lockedBuffer{}}
	cmd.Stderr = w.log
	if w.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go w.read(stdout) // ends with the process
	t.Cleanup(func() {
		_ = w.stdin.Close()
		timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("worker: %v", err)
		}
		if t.Failed() {
			t.Logf("LMCache %s said:\n%s", version, w.log)
		}
	})
	return w, w.next("").Port
}

func (w *realWorker) read(stdout io.Reader) {
	defer close(w.answers)
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var a answer
		d := json.NewDecoder(strings.NewReader(lines.Text()))
		d.UseNumber()
		if err := d.Decode(&a); err != nil {
			_, _ = fmt.Fprintf(w.log, "not JSON: %s\n", lines.Text())
			continue
		}
		if a.Event == "freeze" {
			w.mu.Lock()
			w.frozen = append(w.frozen, a.Enabled)
			w.mu.Unlock()
			continue
		}
		w.answers <- a
	}
}

func (w *realWorker) next(done string) answer {
	w.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a, ok := <-w.answers:
		if !ok || a.Done != done {
			w.t.Fatalf("worker answered %+v, want %q; it said:\n%s", a, done, w.log)
		}
		return a
	case <-timer.C:
		w.t.Fatalf("worker did not answer %q; it said:\n%s", done, w.log)
	}
	return answer{}
}

func (w *realWorker) do(command map[string]any) answer {
	w.t.Helper()
	line, err := json.Marshal(command)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.stdin.Write(append(line, '\n')); err != nil {
		w.t.Fatal(err)
	}
	return w.next(command["do"].(string))
}

func (w *realWorker) freezes() []bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]bool(nil), w.frozen...)
}

func tokens(n int, seed uint32) []uint32 {
	out := make([]uint32, n)
	for i := range out {
		out[i] = (uint32(i)*7 + seed) % 150_000
	}
	return out
}

// texts are keys as LMCache's Python has them.
func texts(keys []lmcache.Key) []json.Number {
	out := make([]json.Number, len(keys))
	for i, k := range keys {
		out[i] = json.Number(fmt.Sprint(int64(k)))
	}
	return out
}

// The keys of a chunk without vLLM beside LMCache: no process differs.
func keyGroup(version string) lmcache.KeyGroup {
	g := lmcache.DefaultKeyGroup()
	g.LMCacheVersion, g.VLLMVersion, g.PythonVersion = version, lmcache.NoVLLM, "3.12"
	return g
}

func hasher(t *testing.T, g lmcache.KeyGroup) *lmcache.Hasher {
	t.Helper()
	h, err := lmcache.NewHasher(g)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

var anyPort = lmcache.Addresses{Pull: "127.0.0.1:0", Reply: "127.0.0.1:0", Heartbeat: "127.0.0.1:0"}

// A real worker of era D: it registers, reports by keys of the real token
// database, evicts, and after a restart of ours tells everything again.
func TestWorkerOfEraD(t *testing.T) {
	const instance = "vllm-d"
	group := keyGroup("0.5.6")
	first := serve(t, anyPort, group, instance)
	worker, port := startWorker(t, "0.5.6", first.Addresses(), instance)

	eventually(t, "registration and heartbeats", func() bool {
		w := first.worker()
		return w.Registered && w.Instance == instance && w.IP == "127.0.0.1" && w.Port == port && w.LastHeartbeatSeconds != nil
	})
	if len(worker.freezes()) > 0 {
		t.Error("an engine that has just started was frozen for a full sync")
	}

	prompt := tokens(10*256+100, 3)
	stored := worker.do(map[string]any{"do": "store", "tokens": prompt}).Keys
	if diff := cmp.Diff(texts(hasher(t, group).Keys(nil, prompt)), stored); diff != "" {
		t.Fatalf("keys (-ours +LMCache's token database):\n%s", diff)
	}
	eventually(t, "10 chunks cached", func() bool { return first.cached(instance, prompt) == 10*256 })
	if got := first.cached(instance, tokens(10*256, 4)); got != 0 {
		t.Errorf("another prompt finds %d tokens", got)
	}

	worker.do(map[string]any{"do": "evict", "keys": stored[7:8]})
	eventually(t, "the eviction of chunk 7", func() bool { return first.cached(instance, prompt) == 7*256 })

	// We restart, on the same addresses and without memory.
	first.stop()
	second := serve(t, first.Addresses(), group, instance)
	eventually(t, "a full sync", func() bool {
		return second.worker().Sync == "completed" && second.cached(instance, prompt) == 7*256
	})
	if w := second.worker(); w.Port != port || w.Keys[lmcache.LocationCPU] != 9 {
		t.Errorf("after the sync: %+v, want all 9 keys", w)
	}
	eventually(t, "the engine leaving its freeze", func() bool { return cmp.Equal([]bool{true, false}, worker.freezes()) })

	worker.do(map[string]any{"do": "admit", "keys": stored[7:8]})
	eventually(t, "chunk 7 again", func() bool { return second.cached(instance, prompt) == 10*256 })
	if w := second.worker(); w.Gaps > 0 || w.Sync != "completed" {
		t.Errorf("after the sync reports go on without a gap: %+v", w)
	}
	if layout := worker.do(map[string]any{"do": "p2p", "hashes": stored}).Layout; !cmp.Equal([][]any{{"", "", json.Number("0"), ""}}, layout) {
		t.Errorf("nobody else holds it, but the lookup answers %v", layout)
	}
}

// Chunks that a worker reports while its full sync runs must not get lost, nor
// those of many workers that sync at once be mixed up.
func TestWorkersOfEraDSyncTogether(t *testing.T) {
	group := keyGroup("0.5.6")
	first := serve(t, anyPort, group, "")
	const n = 3
	workers := make([]*realWorker, n)
	prompts := make([][]uint32, n)
	for i := range workers {
		workers[i], _ = startWorker(t, "0.5.6", first.Addresses(), fmt.Sprintf("vllm-%d", i))
		prompts[i] = tokens(5*256, uint32(1000*i))
		workers[i].do(map[string]any{"do": "store", "tokens": prompts[i]})
	}
	holds := func(s *service, i, chunks int) bool {
		keys := hasher(t, group).Keys(nil, prompts[i])
		return s.index.Match(nil, keys, []string{fmt.Sprintf("vllm-%d", i)})[0].Chunks == chunks
	}
	for i := range workers {
		eventually(t, "reports", func() bool { return holds(first, i, 5) })
	}
	first.stop()
	second := serve(t, first.Addresses(), group, "")
	// While each may be syncing, its last chunk goes and comes back.
	for i, w := range workers {
		last := texts(hasher(t, group).Keys(nil, prompts[i]))[4:]
		w.do(map[string]any{"do": "evict", "keys": last})
		w.do(map[string]any{"do": "admit", "keys": last})
	}
	for i := range workers {
		eventually(t, "its own keys after the sync", func() bool { return holds(second, i, 5) })
	}
	eventually(t, "all syncs", func() bool {
		done := 0
		for _, w := range second.Status() {
			if w.Sync == "completed" && w.Keys[lmcache.LocationCPU] == 5 {
				done++
			}
		}
		return done == n
	})
}

// An engine that starts before we listen is lost to us until it restarts: its
// worker gives up, yet the registration that it sent arrives when we come. We
// cannot mend that, but we say so.
func TestWorkerOfEraDThatGaveUpIsNamed(t *testing.T) {
	const instance = "vllm-early"
	group := keyGroup("0.5.6")
	before := serve(t, anyPort, group, instance)
	before.stop() // its addresses are free, nobody listens
	worker, _ := startImpatientWorker(t, "0.5.6", before.Addresses(), instance, 200*time.Millisecond)
	eventually(t, "the worker giving up", func() bool { return strings.Contains(worker.log.String(), "Failed to register") })

	late := serve(t, before.Addresses(), group, instance)
	eventually(t, "its registration arriving", func() bool { return late.worker().Registered })
	worker.do(map[string]any{"do": "store", "tokens": tokens(256, 1)})
	eventually(t, "the silence being told", func() bool { return late.worker().Silent })
	if w := late.worker(); len(w.Keys) > 0 || w.LastHeartbeatSeconds != nil {
		t.Errorf("%+v: the worker speaks after all", w)
	}
}

// A real worker of era C: nothing that it sends is answered but lookups. Its
// real keys differ from one process to the next on Python up to 3.11, so it is
// driven with ours.
func TestWorkerOfEraC(t *testing.T) {
	const instance = "vllm-c"
	group := keyGroup("0.3.11")
	prompt := tokens(4*256, 9)
	keys := texts(hasher(t, group).Keys(nil, prompt))

	first := serve(t, anyPort, group, instance)
	worker, port := startWorker(t, "0.3.11", first.Addresses(), instance)
	eventually(t, "registration", func() bool { w := first.worker(); return w.Registered && w.Port == port })

	worker.do(map[string]any{"do": "admit", "keys": keys})
	eventually(t, "4 chunks cached", func() bool { return first.cached(instance, prompt) == 4*256 })
	worker.do(map[string]any{"do": "evict", "keys": keys[3:]})
	eventually(t, "the eviction", func() bool { return first.cached(instance, prompt) == 3*256 })
	eventually(t, "heartbeats", func() bool { return first.worker().LastHeartbeatSeconds != nil })
	if layout := worker.do(map[string]any{"do": "p2p", "hashes": keys}).Layout; !cmp.Equal([][]any{{"", "", json.Number("0"), ""}}, layout) {
		t.Errorf("nobody else holds it, but the lookup answers %v", layout)
	}

	// Era C cannot repeat itself: after a restart of ours its heartbeats tell
	// who it is, and what it reports from then on counts.
	first.stop()
	second := serve(t, first.Addresses(), group, instance)
	eventually(t, "its heartbeat", func() bool { return second.worker().Registered && second.worker().Port == port })
	worker.do(map[string]any{"do": "evict", "keys": keys[:1]})
	worker.do(map[string]any{"do": "admit", "keys": keys[:1]})
	eventually(t, "chunk 0 again", func() bool { return second.cached(instance, prompt) == 256 })
	if w := second.worker(); w.Gaps > 0 || w.Sync != "none" {
		t.Errorf("%+v, want no gap and no sync", w)
	}
}

// A real worker of era B: one message a key, without numbers, and every message
// but lookups on PULL, unanswered.
func TestOlderWorkerOfEraB(t *testing.T) {
	const version, instance = "0.3.9.post2", "vllm-b"
	group := keyGroup(version)
	prompt := tokens(4*256+100, 5) // up to 0.3.10 a prompt's tail is kept too
	keys := texts(hasher(t, group).Keys(nil, prompt))

	first := serve(t, anyPort, group, instance)
	worker, port := startWorker(t, version, first.Addresses(), instance)
	eventually(t, "registration", func() bool { w := first.worker(); return w.Registered && w.Port == port })
	worker.do(map[string]any{"do": "admit", "keys": keys})
	eventually(t, "4 chunks and the tail cached", func() bool { return first.cached(instance, prompt) == 4*256+100 })
	if got := first.cached(instance, prompt[:4*256+50]); got != 4*256 {
		t.Errorf("a shorter prompt finds %d tokens, want the whole chunks' %d", got, 4*256)
	}
	worker.do(map[string]any{"do": "evict", "keys": keys[2:3]})
	eventually(t, "the eviction", func() bool { return first.cached(instance, prompt) == 2*256 })
	eventually(t, "heartbeats", func() bool { return first.worker().LastHeartbeatSeconds != nil })

	// It asks by REQ who else has what it holds itself: nobody, then another
	// instance has the first chunk.
	nobody := [][]any{{"", "", json.Number("0"), ""}}
	if layout := worker.do(map[string]any{"do": "p2p", "hashes": keys}).Layout; !cmp.Equal(nobody, layout) {
		t.Errorf("nobody else holds it, but the lookup answers %v", layout)
	}
	other, _ := startWorker(t, version, first.Addresses(), "vllm-other")
	other.do(map[string]any{"do": "admit", "keys": keys[:1]})
	eventually(t, "the other's chunk", func() bool {
		return first.index.Match(nil, hasher(t, group).Keys(nil, prompt), []string{"vllm-other"})[0].Chunks == 1
	})
	if layout, want := worker.do(map[string]any{"do": "p2p", "hashes": keys}).Layout, "[[vllm-other LocalCPUBackend 1 127.0.0.1:1]]"; fmt.Sprint(layout) != want {
		t.Errorf("the lookup answers %v, want %s", layout, want)
	}

	// After a restart of ours its heartbeats tell who it is; it is asked for
	// nothing and what it reports from then on counts.
	first.stop()
	second := serve(t, first.Addresses(), group, instance)
	eventually(t, "both heartbeats", func() bool {
		n := 0
		for _, w := range second.Status() {
			if w.Registered && w.LastHeartbeatSeconds != nil {
				n++
			}
		}
		return n == 2
	})
	worker.do(map[string]any{"do": "evict", "keys": keys[:1]})
	worker.do(map[string]any{"do": "admit", "keys": keys[:1]})
	eventually(t, "chunk 0 again", func() bool { return second.cached(instance, prompt) == 256 })
	for _, w := range second.Status() {
		if w.Gaps > 0 || w.Sync != "none" {
			t.Errorf("%+v, want no gap and no sync", w)
		}
	}
}

// What the tests run is the code of the wheels, unchanged.
func TestWorkerCodeIsLMCaches(t *testing.T) {
	for _, version := range []string{"0.5.6", "0.3.11"} {
		checkRecord(t, version)
	}
}

func TestOlderWorkerCodeIsLMCaches(t *testing.T) { checkRecord(t, "0.3.9.post2") }

func checkRecord(t *testing.T, version string) {
	t.Helper()
	dir := installed(t, version)
	info, err := filepath.Glob(filepath.Join(dir, "lmcache-"+version+".dist-info", "RECORD"))
	if err != nil || len(info) != 1 {
		t.Errorf("%s: %v, %v; run test/lmcache/setup.sh %s", version, info, err, version)
	}
}
