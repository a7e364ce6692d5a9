package stack

import (
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// reservedPort is a loopback port for a child that is told its number and binds
// it with SO_REUSEADDR, as libzmq does. Until close the system gives it to
// nobody who asks for any port: it is bound, though not listened on.
type reservedPort struct {
	fd      int
	address string
}

func reservePort() (*reservedPort, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	p := &reservedPort{fd: fd}
	unix.CloseOnExec(fd)
	if err := p.bind(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *reservedPort) bind() error {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(p.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	bound, err := unix.Getsockname(p.fd)
	if err != nil {
		return err
	}
	p.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*unix.SockaddrInet4).Port))
	return nil
}

func (p *reservedPort) close() { _ = unix.Close(p.fd) }
