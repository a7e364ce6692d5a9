package envoy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
)

// engine is an upstream that answers as vLLM does: the headers of a streamed
// answer leave at once, the first chunk of the body when the first token is
// there.
type engine struct {
	address string
	// hold, when set, is called before the first token; the answer's headers
	// have left by then.
	hold func(r *http.Request)
	// accept, when set, is called before the answer's headers.
	accept func(r *http.Request)
	// pause, when set, is called after the first token.
	pause func()
	// refuse, when set, is the status of every answer.
	refuse int
	// certificate, when set, makes it speak https.
	certificate *tls.Certificate

	server   *http.Server
	requests atomic.Int64
	bytes    atomic.Int64
	// bodies, when set, gets every request whole.
	bodies chan received
	// seen are the request headers that came.
	seen chan http.Header
	// cancelled gets a value for each request that the client gave up.
	cancelled chan struct{}
}

// received is a request as an engine read it.
type received struct {
	uri    string
	header http.Header
	length int64 // Content-Length; -1: chunked
	body   string
}

// keepsBodies makes an engine keep what it reads.
func keepsBodies(e *engine) { e.bodies = make(chan received, 64) }

// startEngine serves until the test ends.
func startEngine(t *testing.T, change ...func(*engine)) *engine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{address: l.Addr().String(), seen: make(chan http.Header, 1<<16), cancelled: make(chan struct{}, 1<<16)}
	for _, f := range change {
		f(e)
	}
	if e.certificate != nil {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*e.certificate}})
	}
	e.server = &http.Server{Handler: e, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { _ = e.server.Serve(l) }()
	t.Cleanup(func() { _ = e.server.Close() })
	return e
}

// deadEngine has an address that refuses connections. The port is held until
// the test ends, so that nothing else comes alive there.
func deadEngine(t *testing.T) *engine {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := name.(*syscall.SockaddrInet4).Port //nolint:forcetypeassert // bound as such
	return &engine{address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), seen: make(chan http.Header)}
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.seen <- r.Header.Clone()
	if r.Header.Get("upgrade") != "" {
		echo(w)
		return
	}
	into := io.Discard
	var body bytes.Buffer
	if e.bodies != nil {
		into = &body
	}
	n, err := io.Copy(into, r.Body)
	if err != nil {
		return
	}
	if e.bodies != nil {
		e.bodies <- received{r.RequestURI, r.Header.Clone(), r.ContentLength, body.String()}
	}
	e.requests.Add(1)
	e.bytes.Add(n)
	if e.refuse != 0 {
		w.Header().Set("content-type", "application/json")
		w.WriteHeader(e.refuse)
		fmt.Fprintf(w, `{"error":{"message":"no","type":"BadRequestError","param":null,"code":%d}}`, e.refuse)
		return
	}
	if e.accept != nil {
		e.accept(r)
		if r.Context().Err() != nil {
			e.cancelled <- struct{}{}
			return
		}
	}
	w.Header().Set("content-type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	if e.hold != nil {
		e.hold(r)
	}
	for i := range tokens {
		if r.Context().Err() != nil {
			e.cancelled <- struct{}{}
			return
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"text\":\"%d\"}]}\n\n", i)
		_ = http.NewResponseController(w).Flush()
		if i == 0 && e.pause != nil {
			e.pause()
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// echo changes the protocol and says what it hears.
func echo(w http.ResponseWriter) {
	conn, in, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
	_, _ = io.Copy(conn, in)
}

// tokens is the length of every answer.
const tokens = 5

// answer is the whole body of a good answer.
func answer() string {
	var s string
	for i := range tokens {
		s += fmt.Sprintf("data: {\"choices\":[{\"index\":0,\"text\":\"%d\"}]}\n\n", i)
	}
	return s + "data: [DONE]\n\n"
}
