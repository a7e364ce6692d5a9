package overhead_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// benchVariable names the page that the benchmark at full size writes; empty:
// it is not run. SCALE shortens it.
const benchVariable = "FIRSTTOKEN_BENCHMARKS"

// The variants of a case, in the order in which they take turns.
const (
	plain = iota // Envoy alone, round robin
	emptyBuffered
	oursBuffered
	emptyDuplex
	oursDuplex
	variants
)

// bench is everything that runs.
type bench struct {
	text    *text
	engines []*engine
	empty   *process
	service *service
	proxies [variants]*proxy
}

// startBench starts four engines, the service, the empty server and an Envoy
// for each variant. Those that are not under load cost next to nothing.
func startBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{text: newText(t)}
	for range 4 {
		b.engines = append(b.engines, startEngine(t))
	}
	var listen string
	b.empty, listen = startEmpty(t)
	b.service = startService(t, b.engines)
	b.proxies = [variants]*proxy{
		plain:         startEnvoy(t, "envoy alone", plainConfig(b.engines)),
		emptyBuffered: startEnvoy(t, "envoy, empty server", envoyConfig(t, listen, b.engines, false)),
		oursBuffered:  startEnvoy(t, "envoy, service", envoyConfig(t, b.service.listen, b.engines, false)),
		emptyDuplex:   startEnvoy(t, "envoy, empty server, full duplex", envoyConfig(t, listen, b.engines, true)),
		oursDuplex:    startEnvoy(t, "envoy, service, full duplex", envoyConfig(t, b.service.listen, b.engines, true)),
	}
	for v, p := range b.proxies {
		// Envoy asks a service only once its health check has succeeded.
		eventually(t, p.process, func() bool {
			one := load{bytes: 200, clients: 1, requests: 1}
			o := one.run(t.Context(), p.clients, b.text, func() {}, func() {})
			if v != oursBuffered && v != oursDuplex {
				return o.faults == 0
			}
			return o.decided == 1
		})
	}
	return b
}

// server is the process that a variant's Envoy asks; nil: none.
func (b *bench) server(v int) *process {
	switch v {
	case emptyBuffered, emptyDuplex:
		return b.empty
	case oursBuffered, oursDuplex:
		return b.service.process
	}
	return nil
}

// sample is one run of one variant.
type sample struct {
	outcome
	envoyCPU, serverCPU time.Duration // for one request
}

// measure runs a load on a variant.
func (b *bench) measure(t *testing.T, v int, l load) sample {
	t.Helper()
	var before, after [2]time.Duration
	read := func(to *[2]time.Duration) func() {
		return func() {
			to[0] = b.proxies[v].cpu(t)
			if p := b.server(v); p != nil {
				to[1] = p.cpu(t)
			}
		}
	}
	s := sample{outcome: l.run(t.Context(), b.proxies[v].clients, b.text, read(&before), read(&after))}
	if s.faults > 0 {
		t.Errorf("%s, %s: %d requests failed: %v", b.proxies[v].name, l.name, s.faults, s.fault)
	}
	if n := len(s.latencies); n > 0 {
		s.envoyCPU, s.serverCPU = (after[0]-before[0])/time.Duration(n), (after[1]-before[1])/time.Duration(n)
	}
	return s
}

// rounds measures all variants in turn, again and again.
func (b *bench) rounds(t *testing.T, l load, n int) [variants][]sample {
	t.Helper()
	var all [variants][]sample
	for range n {
		for v := range variants {
			all[v] = append(all[v], b.measure(t, v, l))
		}
	}
	return all
}

// cases are all that is measured, a table's rows.
func cases(clients []int, sizes []int) (all []load) {
	for _, streamed := range []bool{false, true} {
		for _, size := range sizes {
			for _, c := range clients {
				kind := "not streamed"
				if streamed {
					kind = fmt.Sprintf("%d chunks", chunks)
				}
				all = append(all, load{
					name:  fmt.Sprintf("%s, %s, c=%d", sizeName(size), kind, c),
					bytes: size, streamed: streamed, clients: c,
				})
			}
		}
	}
	return all
}

func sizeName(bytes int) string {
	if bytes >= 1000 {
		return strconv.Itoa(bytes/1000) + " KB"
	}
	return strconv.Itoa(bytes) + " B"
}

// Everything that the benchmark does is done once, at its smallest: no request
// is lost, each of those through the service is decided by it, and the page has
// a row for each case.
func TestBenchmarkWorks(t *testing.T) {
	if os.Getenv(benchVariable) != "" {
		t.Skip("the benchmark itself is running")
	}
	b := startBench(t)
	r := newReport("a test", 1)
	for _, l := range cases([]int{3}, []int{200, 80_000}) {
		l.requests = 12
		all := b.rounds(t, l, 1)
		for v, s := range all {
			if got := len(s[0].latencies); got != l.requests {
				t.Errorf("%s, %s: %d answers, want %d", b.proxies[v].name, l.name, got, l.requests)
			}
			if ours := v == oursBuffered || v == oursDuplex; ours && s[0].decided != l.requests {
				t.Errorf("%s, %s: %d of %d requests were decided", b.proxies[v].name, l.name, s[0].decided, l.requests)
			}
			if s[0].envoyCPU <= 0 || (b.server(v) != nil) != (s[0].serverCPU > 0) {
				t.Errorf("%s, %s: CPU of Envoy %s, of the server %s", b.proxies[v].name, l.name, s[0].envoyCPU, s[0].serverCPU)
			}
		}
		r.add(l, all)
	}
	page := r.markdown()
	if rows := strings.Count(page, "| **service** |"); rows != 2*4 {
		t.Errorf("%d rows of the service, want 8:\n%s", rows, page)
	}
}

// TestBenchmarks is `make bench-envoy`.
func TestBenchmarks(t *testing.T) {
	file := os.Getenv(benchVariable)
	if file == "" {
		t.Skip("make bench-envoy runs it")
	}
	scale := 1.0
	if text := os.Getenv("SCALE"); text != "" {
		var err error
		if scale, err = strconv.ParseFloat(text, 64); err != nil || scale <= 0 {
			t.Fatalf("SCALE is %q; write a number above 0", text)
		}
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * scale * float64(time.Second)) }
	const turns = 3
	command := "make bench-envoy"
	if scale != 1 {
		command += fmt.Sprintf(" SCALE=%g", scale)
	}
	b := startBench(t)
	r := newReport(command, turns)
	r.tokenizer = filepath.Base(tokenizer(t))
	for _, l := range wanted(cases([]int{1, 32, 256, 1000}, []int{200, 80_000})) {
		// All clients must have had an answer before counting begins.
		l.warmUp, l.window = seconds(0.4+float64(l.clients)/1000), seconds(1.6)
		all := b.rounds(t, l, turns)
		r.add(l, all)
		t.Log(r.lastLine())
	}
	for _, l := range wanted([]load{
		{name: "200 B, 50 chunks, c=32, profile", bytes: 200, streamed: true, clients: 32},
		{name: "80 KB, 50 chunks, c=32, profile", bytes: 80_000, streamed: true, clients: 32},
	}) {
		l.warmUp, l.window = seconds(0.5), seconds(5)
		r.profiles = append(r.profiles, b.profile(t, l))
		t.Log(r.profiles[len(r.profiles)-1])
	}
	b.compare(t, r, max(100, int(2000*scale)), turns)
	r.write(t, file)
}

// wanted are the loads whose name holds $CASES; all of them without it.
func wanted(all []load) []load {
	part := os.Getenv("CASES")
	return slices.DeleteFunc(all, func(l load) bool { return !strings.Contains(l.name, part) })
}
