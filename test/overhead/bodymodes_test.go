package overhead_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
)

// bodyMode is a way to show the service request and answer.
type bodyMode struct {
	name   string
	mode   envoy.BodyMode
	edits  [][2]string // of the printed bootstrap
	beside bool        // Envoy without the service
}

var (
	duplexRequest = [][2]string{
		{"request_body_mode: BUFFERED", "request_body_mode: FULL_DUPLEX_STREAMED"},
		{"request_trailer_mode: SKIP", "request_trailer_mode: SEND"},
	}
	bodyModes = []bodyMode{
		{name: "Envoy without ext_proc", beside: true},
		{name: "`--body-mode buffered`", mode: envoy.BodyBuffered},
		{name: "`--body-mode full-duplex`", mode: envoy.BodyFullDuplex},
		{name: "FDS request, response not shown", mode: envoy.BodyBuffered, edits: append(slices.Clone(duplexRequest),
			[2]string{"response_body_mode: STREAMED", "response_body_mode: NONE"})},
		{name: "FDS request, response STREAMED by the same filter", mode: envoy.BodyBuffered, edits: duplexRequest},
		{name: "FDS both ways", mode: envoy.BodyBuffered, edits: append(slices.Clone(duplexRequest),
			[2]string{"response_body_mode: STREAMED", "response_body_mode: FULL_DUPLEX_STREAMED"},
			[2]string{"response_trailer_mode: SKIP", "response_trailer_mode: SEND"})},
	}
)

// bootstrap is the config of a way.
func (m bodyMode) bootstrap(t *testing.T, service string, engines []*engine) []byte {
	t.Helper()
	if m.beside {
		return plainConfig(engines)
	}
	c := envoy.Config{
		Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Service: service, BodyLimit: 32 << 20,
		DecisionDeadline: 500 * time.Millisecond, Route: envoy.RouteOverrideHost, BodyMode: m.mode,
	}
	for _, e := range engines {
		c.Endpoints = append(c.Endpoints, envoy.Endpoint{Address: e.address})
	}
	config, err := envoy.Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	text := string(config)
	for _, edit := range m.edits {
		if strings.Count(text, edit[0]) != 1 {
			t.Fatalf("%q is not in the config once:\n%s", edit[0], text)
		}
		text = strings.Replace(text, edit[0], edit[1], 1)
	}
	return []byte(text)
}

// startPacedEngine serves until the test ends, as startEngine does but with a pause
// before each further chunk: Envoy is shown every chunk by itself, as engines send
// them.
func startPacedEngine(t *testing.T) *engine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	paced := func(conn net.Conn) {
		defer conn.Close()
		in := bufio.NewReaderSize(conn, 32<<10)
		for {
			post, streamed, err := readRequest(in)
			switch {
			case err != nil:
				return
			case !post:
				_, err = io.WriteString(conn, answerGet)
			case !streamed:
				_, err = conn.Write(answerWhole)
			default:
				_, err = conn.Write(answerHead)
				for _, c := range answerChunks {
					if err == nil {
						_, err = conn.Write(c)
					}
					time.Sleep(2 * time.Millisecond)
				}
			}
			if err != nil {
				return
			}
		}
	}
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go paced(conn) // ends when its client closes
		}
	}()
	return &engine{l.Addr().String()}
}

// TestBodyModes prints what the body modes cost, as a table for docs/gateways.md:
// with FIRSTTOKEN_BODY_MODES the number of rounds, else too few requests to mean
// anything, which shows that it works.
func TestBodyModes(t *testing.T) {
	rounds, requests := 1, 20
	if n := os.Getenv("FIRSTTOKEN_BODY_MODES"); n != "" {
		if _, err := fmt.Sscan(n, &rounds); err != nil {
			t.Fatal(err)
		}
		requests = 480
	}
	text, engines := newText(t), []*engine{startPacedEngine(t), startPacedEngine(t)}
	s := startService(t, engines)
	proxies := make([]*proxy, len(bodyModes))
	for i, m := range bodyModes {
		proxies[i] = startEnvoy(t, m.name, m.bootstrap(t, s.listen, engines))
		eventually(t, proxies[i].process, func() bool {
			one := load{bytes: 200, clients: 1, requests: 1}
			o := one.run(t.Context(), proxies[i].clients, text, func() {}, func() {})
			return o.faults == 0 && (m.beside || o.decided == 1)
		})
	}
	// The answer is one chunk, then many.
	type cost struct{ envoy, service []time.Duration }
	costs := make([][2]cost, len(bodyModes))
	for range rounds {
		for i := range bodyModes {
			for k, streamed := range []bool{false, true} {
				var before, after [2]time.Duration
				read := func(to *[2]time.Duration) func() {
					return func() { to[0], to[1] = proxies[i].cpu(t), s.cpu(t) }
				}
				l := load{bytes: 200, clients: 16, requests: requests, streamed: streamed}
				o := l.run(t.Context(), proxies[i].clients, text, read(&before), read(&after))
				if o.faults > 0 || len(o.latencies) != requests {
					t.Fatalf("%s: %d of %d answers, %v", bodyModes[i].name, len(o.latencies), requests, o.fault)
				}
				c := &costs[i][k]
				c.envoy = append(c.envoy, (after[0]-before[0])/time.Duration(requests))
				c.service = append(c.service, (after[1]-before[1])/time.Duration(requests))
			}
		}
	}
	middle := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Nanoseconds()) / 1e3
	}
	var b strings.Builder
	b.WriteString("| way | Envoy | service | Envoy, a further chunk | service, a further chunk |\n| --- | --- | --- | --- | --- |\n")
	for i, m := range bodyModes {
		one, many := &costs[i][0], &costs[i][1]
		further := func(one, many []time.Duration) float64 { return (middle(many) - middle(one)) / (chunks - 1) }
		service, chunk := fmt.Sprintf("%.0f", middle(one.service)), fmt.Sprintf("%.1f", further(one.service, many.service))
		if m.beside {
			service, chunk = "-", "-"
		}
		fmt.Fprintf(&b, "| %s | %.0f | %s | %.1f | %s |\n", m.name, middle(one.envoy), service, further(one.envoy, many.envoy), chunk)
	}
	t.Logf("µs of CPU, medians of %d rounds of %d requests, 16 clients\n%s", rounds, requests, &b)
}
