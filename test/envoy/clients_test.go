package envoy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// ask sends bytes to Envoy and reads the head of its answer.
func ask(t *testing.T, p *proxy, request string) (resp reply, conn net.Conn, in *bufio.Reader) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(p.clients, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	in = bufio.NewReader(conn)
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Body.Close() })
	return reply{r.StatusCode, r.Status, r.Header, r.Body}, conn, in
}

// Proxies in front of Envoy may speak HTTP/1.0, without a Host header.
func TestHTTP10(t *testing.T) {
	e := startEngine(t)
	s := startService(t, scoring.PolicyTrapezoid, e)
	p := startEnvoy(t, config(s, e))
	body := completion("hello")
	resp, _, _ := ask(t, p, fmt.Sprintf("POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body))
	if text, err := io.ReadAll(resp.body); err != nil || resp.code != http.StatusOK || string(text) != answer() {
		t.Errorf("answer: %v %s %q", err, resp.status, text)
	}
	next(t, "decision", s.events.decided)
}

// A websocket bypasses the service; the control headers of its client are removed
// all the same.
func TestWebsocket(t *testing.T) {
	e := startEngine(t)
	s := startService(t, scoring.PolicyTrapezoid, e)
	p := startEnvoy(t, config(s, e))
	resp, conn, in := ask(t, p, "GET /v1/realtime HTTP/1.1\r\nhost: engines\r\nconnection: upgrade\r\nupgrade: websocket\r\n"+
		"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nx-gateway-destination-endpoint: 192.0.2.1:8000\r\n\r\n")
	if resp.code != http.StatusSwitchingProtocols {
		t.Fatalf("answer: %s", resp.status)
	}
	if got := next(t, "request at the engine", e.seen).Get("x-gateway-destination-endpoint"); got != "" {
		t.Errorf("the engine saw the client's control header: %q", got)
	}
	const said = "hello"
	if _, err := io.WriteString(conn, said); err != nil {
		t.Fatal(err)
	}
	echo := make([]byte, len(said))
	if _, err := io.ReadFull(in, echo); err != nil || string(echo) != said {
		t.Errorf("echo: %v %q", err, echo)
	}
	none(t, "decision", s.events.decided)
}
