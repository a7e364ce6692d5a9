package stack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long a child may take to end by itself after SIGTERM.
const stopGrace = 5 * time.Second

// child is a process that this one started and ends. Stop must be called; should
// this process die first, the kernel ends the child (Linux).
type child struct {
	name   string
	cmd    *exec.Cmd
	lines  chan []byte   // lines of standard output that nobody took yet; closed at its end
	exited chan struct{} // closed when the process is gone; err is set before
	err    error
	stderr tail
}

// startChild starts program in its own process group, so that Ctrl-C on a
// terminal reaches this process alone, which then ends the children in order.
// port becomes the child's file descriptor 3, unless it is nil.
func startChild(name string, port *os.File, program string, args ...string) (*child, error) {
	c := &child{name: name, lines: make(chan []byte, 16), exited: make(chan struct{})}
	c.cmd = exec.Command(program, args...) //nolint:noctx,gosec // Stop ends it, with a grace that a context does not give; gosec: the programs are our own and Envoy
	c.cmd.SysProcAttr = childAttr()
	c.cmd.Stderr = &c.stderr
	if port != nil {
		c.cmd.ExtraFiles = []*os.File{port}
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	// This goroutine ends with the process, which Stop ends.
	go func() {
		// The kernel ends the child when the thread that started it ends, so
		// that thread must live as long as the child.
		runtime.LockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		c.read(stdout)
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// read keeps the first lines for announcement and drops what nobody waits for,
// so that a child never blocks on its output.
func (c *child) read(stdout io.Reader) {
	defer close(c.lines)
	r := bufio.NewReader(stdout)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 0 {
			select {
			case c.lines <- line:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// announcement waits for the first line of output that is a JSON object and
// decodes it into v. The error says how the child ended, where it did.
func (c *child) announcement(ctx context.Context, v any) error {
	for {
		select {
		case line, ok := <-c.lines:
			if !ok {
				<-c.exited
				return c.failure()
			}
			if bytes.HasPrefix(line, []byte("{")) {
				if err := json.Unmarshal(line, v); err != nil {
					return fmt.Errorf("%s printed %q: %w", c.name, line, err)
				}
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("%s did not print its address: %w", c.name, context.Cause(ctx))
		}
	}
}

// failure describes a child that ended by itself. Call it after exited.
func (c *child) failure() error {
	status := "status 0"
	if c.err != nil {
		status = c.err.Error()
	}
	if last := c.stderr.String(); last != "" {
		return fmt.Errorf("%s ended (%s); it said:\n%s", c.name, status, last)
	}
	return fmt.Errorf("%s ended (%s)", c.name, status)
}

// stop ends the child and waits until it is gone. It may be called twice.
func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // an error says that it is gone already
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-c.exited:
	case <-grace.C:
		_ = c.cmd.Process.Kill()
		<-c.exited
	}
}

// children are the processes of one stack.
type children struct {
	list []*child // in order of start
	// died gets one error for the first child that ends before stop is called.
	died     chan error
	stopping chan struct{}
}

func newChildren() *children {
	return &children{died: make(chan error, 1), stopping: make(chan struct{})}
}

// start starts one more child; see startChild.
func (cs *children) start(name string, port *os.File, program string, args ...string) (*child, error) {
	c, err := startChild(name, port, program, args...)
	if err != nil {
		return nil, err
	}
	cs.list = append(cs.list, c)
	// This goroutine ends with the child or with stop.
	go func() {
		select {
		case <-c.exited:
		case <-cs.stopping:
			return
		}
		select {
		case <-cs.stopping: // it was told to end
		default:
			select {
			case cs.died <- c.failure():
			default: // another one was first
			}
		}
	}()
	return c, nil
}

// stop ends all children, the last started first: Envoy before the service that
// it asks, the service before the engines that it probes.
func (cs *children) stop() {
	close(cs.stopping)
	for _, c := range slices.Backward(cs.list) {
		c.stop()
	}
}

// tail keeps the last lines written to it. Safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu; at most twice tailSize
}

// tailSize is enough for the few lines in which a program says why it ended.
const tailSize = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailSize):]...)
	if len(t.buf) > 2*tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf[max(0, len(t.buf)-tailSize):]))
}
