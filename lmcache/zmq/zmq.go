// Package zmq is the one door to libzmq: sockets, frames in and out, and a poll
// over several sockets that other goroutines can interrupt. It knows nothing
// of what the frames mean.
//
// Binaries built without cgo, or with the tag nozmq, compile against the same
// API; NewContext then returns ErrNoZMQ.
package zmq

import (
	"errors"
	"time"
)

// Errors of this package.
var (
	// ErrNoZMQ: this binary was built without libzmq.
	ErrNoZMQ = errors.New("built without ZeroMQ: build with cgo, libzmq and without the tag nozmq")
	// ErrAgain: nothing to receive now, or no room to send now.
	ErrAgain = errors.New("zmq: would block")
	// ErrUnreachable: a ROUTER has no peer of that identity any more.
	ErrUnreachable = errors.New("zmq: no such peer")
)

// Kind is the socket's pattern.
type Kind int

// The kinds.
const (
	Pull Kind = iota
	Push
	Router
	Dealer
	Req
	Rep
	Pub
	XPub
	Sub
)

// String is the name of the kind as the ZeroMQ documentation writes it.
func (k Kind) String() string {
	names := [...]string{"PULL", "PUSH", "ROUTER", "DEALER", "REQ", "REP", "PUB", "XPUB", "SUB"}
	if k < 0 || int(k) >= len(names) {
		return "unknown"
	}
	return names[k]
}

// Options are set on a socket before it binds or connects. The zero value is
// ZeroMQ's default, but for Linger.
type Options struct {
	// RecvHWM and SendHWM bound the messages queued per peer; 0: 1,000.
	RecvHWM, SendHWM int
	// Linger is how long Close keeps trying to deliver what is queued. 0 drops
	// it at once, so that a dead peer cannot hold up the end of the program.
	Linger time.Duration
	// MaxPart is the largest message part in bytes that a peer may send; the
	// connection of one that sends more is closed. 0: no limit.
	MaxPart int64
	// Topics are what a Sub socket subscribes to; [""] is everything.
	Topics []string
}
