package stack

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A reserved port can be listened on with SO_REUSEADDR, and then be reached.
func TestReservedPort(t *testing.T) {
	p, err := reservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	l, err := config.Listen(t.Context(), "tcp", p.address)
	if err != nil {
		t.Fatalf("the owner cannot listen: %v", err)
	}
	defer l.Close()
	other, err := net.Dial("tcp", p.address)
	if err != nil {
		t.Fatalf("nobody can connect: %v", err)
	}
	_ = other.Close()
}
