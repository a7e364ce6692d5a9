package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Kind names a way in which a request can fail; summaries count by it.
type Kind string

// The kinds, besides status_N for answers with an HTTP status other than 200.
const (
	// Connect: no connection, or it was lost before the answer's headers.
	Connect Kind = "connect"
	// Timeout: the answer was not over within the time limit.
	Timeout Kind = "timeout"
	// NoContent: the stream came to its end without any content.
	NoContent Kind = "no_content"
	// Cut: the stream ended before its [DONE].
	Cut Kind = "cut"
	// BadEvent: an event of the stream is not the JSON of a chat.
	BadEvent Kind = "bad_event"
	// ErrorEvent: the stream told an error.
	ErrorEvent Kind = "error_event"
)

// Error is why a request failed.
type Error struct {
	Kind Kind
	// Detail is for people: what the server said, or the connection's error.
	Detail string
}

// Error says the kind and the detail.
func (f *Error) Error() string { return string(f.Kind) + ": " + f.Detail }

func faultf(kind Kind, format string, args ...any) *Error {
	return &Error{kind, fmt.Sprintf(format, args...)}
}

func statusKind(status int) Kind { return Kind("status_" + strconv.Itoa(status)) }

// connectionFault is what an error of the connection means: kind, unless time
// ran out.
func connectionFault(ctx context.Context, kind Kind, err error) *Error {
	var network net.Error
	if errors.Is(context.Cause(ctx), errTimeout) || errors.As(err, &network) && network.Timeout() {
		return &Error{Timeout, errTimeout.Error()}
	}
	return &Error{kind, err.Error()}
}

var errTimeout = errors.New("the answer was not over within the time limit")
