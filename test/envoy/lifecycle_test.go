package envoy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// serviceEnv makes the test binary a service of the engines that it names, at the
// address of listenEnv.
const (
	serviceEnv = "FIRSTTOKEN_TEST_ENGINES"
	listenEnv  = "FIRSTTOKEN_TEST_LISTEN"
)

func TestMain(m *testing.M) {
	if engines := os.Getenv(serviceEnv); engines != "" {
		if err := serve(strings.Split(engines, ",")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serve is the service as a process: it prints its address, and drains when it
// is told to end.
func serve(engines []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	picker, err := scoring.NewPicker(scoring.DefaultConfig(), time.Now, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		return err
	}
	var list []*engine
	for _, address := range engines {
		list = append(list, &engine{address: address})
	}
	picker.SetEndpoints(endpoints(list))
	cfg := extproc.DefaultConfig()
	if os.Getenv(rescueEnv) != "" {
		rescuing(&cfg, nil)
	}
	server := extproc.NewServer(cfg, extproc.Deps{
		Picker: picker, Encoder: encoder{}, Metrics: extproc.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler),
	})
	l, err := extproc.Listen(ctx, os.Getenv(listenEnv))
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	server.SetReady(true)
	return server.Run(ctx, l)
}

// startProcess runs the service as a process of its own.
func startProcess(t *testing.T, engines ...*engine) (process *os.Process, address string, exited <-chan error) {
	t.Helper()
	return startProcessOn(t, "127.0.0.1:0", engines...)
}

// startProcessOn is startProcess that listens where it is told.
func startProcessOn(t *testing.T, listen string, engines ...*engine) (process *os.Process, address string, exited <-chan error) {
	t.Helper()
	var addresses []string
	for _, e := range engines {
		addresses = append(addresses, e.address)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serviceEnv+"="+strings.Join(addresses, ","), listenEnv+"="+listen)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	done, gone := make(chan error, 1), make(chan struct{})
	go func() { done <- cmd.Wait(); close(gone) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-gone })
	return cmd.Process, strings.TrimSpace(line), done
}

// Under load the service dies or stops: no request is lost. What was asked of
// a dead service falls back to least_request.
func TestServiceEnds(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		signal     os.Signal
	}{
		{"killed", "BUFFERED", syscall.SIGKILL},
		{"stopped", "BUFFERED", syscall.SIGTERM},
		// In full duplex a kill costs what is asked before Envoy's health
		// check notices; a drain costs nothing.
		{"stopped", "FULL_DUPLEX_STREAMED", syscall.SIGTERM},
	} {
		t.Run(c.name+" "+c.mode, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t)}
			process, address, exited := startProcess(t, engines...)
			p := startEnvoyWith(t, withModes(t, config(&service{address: address}, engines...), c.mode, "SEND", "STREAMED"))
			load := startLoad(t, p, 8)
			load.reach(t, 500)
			if chosen := load.chosen.Load(); chosen == 0 {
				t.Error("the service chose for no request")
			}
			if err := process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			err := next(t, "end of the service", exited)
			if c.signal == syscall.SIGTERM && err != nil {
				t.Errorf("the service ended with %v", err)
			}
			load.reach(t, load.done.Load()+1000)
			if failed := load.stop(); len(failed) > 0 {
				t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
			}
		})
	}
}

// load is clients that ask without end.
type load struct {
	done, chosen atomic.Int64 // answers, and those whose endpoint the service chose
	body         string
	cancel       context.CancelFunc
	clients      sync.WaitGroup
	mu           sync.Mutex
	failed       []string // guarded by mu
}

func startLoad(t *testing.T, p *proxy, clients int) *load {
	t.Helper()
	return startLoadOf(t, p, clients, completion("hello"))
}

// startLoadOf is startLoad with what is asked.
func startLoadOf(t *testing.T, p *proxy, clients int, body string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, body: body}
	for range clients {
		l.clients.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			for ctx.Err() == nil {
				if err := l.ask(context.WithoutCancel(ctx), transport, p); err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, err.Error())
					l.mu.Unlock()
				}
				l.done.Add(1)
			}
		})
	}
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *load) ask(ctx context.Context, transport *http.Transport, p *proxy) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.clients+"/v1/completions", strings.NewReader(l.body))
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(text) != answer() {
		return fmt.Errorf("%s %q %w", resp.Status, text, err)
	}
	switch resp.Header.Get("x-firsttoken-reason") {
	case "", "-":
	default:
		l.chosen.Add(1)
	}
	return nil
}

// reach waits until so many answers have come.
func (l *load) reach(t *testing.T, n int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d requests are answered", n), func() bool { return l.done.Load() >= n })
}

// stop ends the clients and returns what went wrong.
func (l *load) stop() []string {
	l.cancel()
	l.clients.Wait()
	return l.failed
}

// A service that hangs is left alone after Envoy's message timeout: the request
// still goes through.
func TestServiceHangs(t *testing.T) {
	e := startEngine(t)
	process, address, _ := startProcess(t, e)
	c := config(&service{address: address}, e)
	c.DecisionDeadline = extproc.DefaultConfig().DecisionDeadline
	p := startEnvoy(t, c)
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resp := post(t, p, completion("hello"))
	if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
		t.Errorf("answer: %v %s %q", err, resp.status, body)
	}
}
