//go:build !cgo || nozmq

package zmq

import "time"

// Context stands in for libzmq's; NewContext never makes one.
type Context struct{}

// Socket stands in for libzmq's.
type Socket struct{}

// Poller stands in for libzmq's.
type Poller struct{}

// NewContext returns ErrNoZMQ.
func NewContext() (*Context, error) { return nil, ErrNoZMQ }

// Close does nothing.
func (*Context) Close() error { return nil }

// Socket returns ErrNoZMQ.
func (*Context) Socket(Kind, Options) (*Socket, error) { return nil, ErrNoZMQ }

// NewPoller returns ErrNoZMQ.
func (*Context) NewPoller(...*Socket) (*Poller, error) { return nil, ErrNoZMQ }

// Bind returns ErrNoZMQ.
func (*Socket) Bind(string) (string, error) { return "", ErrNoZMQ }

// Connect returns ErrNoZMQ.
func (*Socket) Connect(string) error { return ErrNoZMQ }

// Recv returns ErrNoZMQ.
func (*Socket) Recv() ([][]byte, error) { return nil, ErrNoZMQ }

// Send returns ErrNoZMQ.
func (*Socket) Send(...[]byte) error { return ErrNoZMQ }

// Close does nothing.
func (*Socket) Close() error { return nil }

// Add does nothing.
func (*Poller) Add(*Socket) {}

// Remove does nothing.
func (*Poller) Remove(*Socket) {}

// Poll returns ErrNoZMQ.
func (*Poller) Poll(time.Duration) ([]*Socket, error) { return nil, ErrNoZMQ }

// Wake does nothing.
func (*Poller) Wake() {}

// Close does nothing.
func (*Poller) Close() error { return nil }
