package vllm_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program that the test started and ends, with all that it
// started itself: vLLM's engine is a child of its API server.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *lockedBuffer
	exited chan struct{} // closed when it is gone
}

// start runs a program until stop, kill or the end of the test.
func start(t *testing.T, name string, env []string, program string, args ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(program, args...), output: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A grandchild that outlives its parent holds the pipes open.
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.exited) }() // ends with the process
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			const enough = 6 << 10
			said := p.output.String()
			t.Logf("%s said:\n%s", name, said[max(0, len(said)-enough):])
		}
	})
	return p
}

// kill ends the process and its children at once, as a crash would.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // an error says that they are gone
	<-p.exited
}

// stop lets the process end in order.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error says that it is gone
	grace := time.NewTimer(20 * time.Second)
	defer grace.Stop()
	select {
	case <-p.exited:
	case <-grace.C:
	}
	p.kill()
}

// eventually waits until another process made a condition true.
func eventually(t *testing.T, patience time.Duration, what string, alive *process, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for !is() {
		select {
		case <-alive.exited:
			t.Fatalf("%s ended while waiting until %s", alive.name, what)
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("waited %s in vain until %s", patience, what)
		}
	}
}

// freeAddress is a loopback address that nothing listens on. The engines and
// the service must find each other there again after a restart, so the system
// cannot choose for them; and the port is below those that the system gives to
// connections, one of which could have it by the time it is bound.
func freeAddress(t *testing.T) string {
	t.Helper()
	const lowest, ports, tries = 15_000, 17_000, 100
	for range tries {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(lowest+rand.IntN(ports)))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatalf("none of %d ports tried from %d on is free", tries, lowest)
	panic("unreachable")
}

// lockedBuffer collects the output of a process.
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
