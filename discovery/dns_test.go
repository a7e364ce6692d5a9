package discovery

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/firsttoken/firsttoken/scoring"
)

// dnsServer answers from a table, over UDP and TCP.
type dnsServer struct {
	address string

	mu sync.Mutex
	// table has "A name" and "SRV name" with records in the words of a zone file:
	// an ip, or "priority weight port target". A single "!" fails. Guarded by mu.
	table map[string][]string
	// overTCP counts the questions that came that way. Guarded by mu.
	overTCP int
}

func startDNS(t *testing.T, table map[string][]string) *dnsServer {
	t.Helper()
	s := &dnsServer{table: table}
	var packets net.PacketConn
	var streams net.Listener
	for range 20 { // The port that UDP gets may be taken for TCP.
		var err error
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if streams, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			break
		}
		packets.Close()
	}
	if streams == nil {
		t.Fatal("no port for UDP and TCP")
	}
	s.address = packets.LocalAddr().String()
	var tasks sync.WaitGroup
	t.Cleanup(func() { packets.Close(); streams.Close(); tasks.Wait() })
	tasks.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			const most = 1232 // what Go's resolver says that it takes
			answer := s.answer(buf[:n], most)
			_, _ = packets.WriteTo(answer, from)
		}
	})
	tasks.Go(func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer conn.Close()
				var length [2]byte
				if _, err := io.ReadFull(conn, length[:]); err != nil {
					return
				}
				question := make([]byte, binary.BigEndian.Uint16(length[:]))
				if _, err := io.ReadFull(conn, question); err != nil {
					return
				}
				s.mu.Lock()
				s.overTCP++
				s.mu.Unlock()
				answer := s.answer(question, 1<<16)
				_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			})
		}
	})
	return s
}

func (s *dnsServer) set(key string, records ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table[key] = records
}

// answer is the answer to a question, or, where it is longer than most, only
// that it is.
func (s *dnsServer) answer(question []byte, most int) []byte {
	var asked dnsmessage.Message
	if err := asked.Unpack(question); err != nil || len(asked.Questions) != 1 {
		return nil
	}
	q := asked.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	kind := map[dnsmessage.Type]string{dnsmessage.TypeA: "A", dnsmessage.TypeAAAA: "AAAA", dnsmessage.TypeSRV: "SRV"}[q.Type]
	s.mu.Lock()
	records, ok := s.table[kind+" "+name]
	_, other := s.table["A "+name]
	s.mu.Unlock()
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: asked.ID, Response: true, RecursionAvailable: true, RecursionDesired: true},
		Questions: asked.Questions,
	}
	switch {
	case slices.Equal(records, []string{"!"}):
		reply.RCode = dnsmessage.RCodeServerFailure
		records = nil
	case !ok && !other:
		reply.RCode = dnsmessage.RCodeNameError
	}
	for _, r := range records {
		header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 1}
		var body dnsmessage.ResourceBody
		if ip, err := netip.ParseAddr(r); err == nil && ip.Is4() {
			body = &dnsmessage.AResource{A: ip.As4()}
		} else if err == nil {
			header.Type = dnsmessage.TypeAAAA
			body = &dnsmessage.AAAAResource{AAAA: ip.As16()}
		} else {
			srv, target := &dnsmessage.SRVResource{}, ""
			if _, err := fmt.Sscanf(r, "%d %d %d %s", &srv.Priority, &srv.Weight, &srv.Port, &target); err != nil {
				panic(err)
			}
			srv.Target = dnsmessage.MustNewName(target)
			body = srv
		}
		reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: header, Body: body})
	}
	packed, err := reply.Pack()
	if err != nil {
		panic(err)
	}
	if len(packed) > most {
		reply.Truncated, reply.Answers = true, nil
		packed, _ = reply.Pack()
	}
	return packed
}

func (s *dnsServer) sockets() *sockets {
	return &sockets{dns: Config{DNSServer: s.address}.resolver()}
}

// resolved is what an address leads to, for people.
func (s *dnsServer) resolved(t *testing.T, address string) string {
	t.Helper()
	target, err := parseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.sockets().resolve(t.Context(), target)
	if err != nil {
		return "error"
	}
	var list []string
	for _, f := range all {
		list = append(list, f.host+"="+f.address.String())
	}
	return strings.Join(list, " ")
}

func TestResolve(t *testing.T) {
	s := startDNS(t, map[string][]string{
		"A engines.test":          {"10.0.0.2", "10.0.0.1"},
		"A a.test":                {"10.0.0.1"},
		"A b.test":                {"10.0.0.3", "10.0.0.2"},
		"A broken.test":           {"!"},
		"A six.test":              {},
		"AAAA six.test":           {"fd00::1"},
		"SRV _vllm._tcp.test":     {"0 0 8001 a.test.", "0 0 8000 A.test.", "10 5 8000 b.test."},
		"SRV some.test":           {"0 0 8000 a.test.", "0 0 8000 gone.test."},
		"SRV all-gone.test":       {"0 0 8000 gone.test."},
		"SRV one-broken.test":     {"0 0 8000 a.test.", "0 0 8000 broken.test."},
		"SRV no-service.test":     {"0 0 0 ."},
		"SRV not-answered.test":   {"!"},
		"SRV twice.test":          {"0 0 8000 a.test.", "1 0 8000 a.test."},
		"SRV other-families.test": {"0 0 8000 a.test.", "0 0 8000 _vllm._tcp.test."},
	})
	for _, c := range []struct{ name, address, want string }{
		{"a name", "engines.test:8000", "engines.test=10.0.0.1:8000 engines.test=10.0.0.2:8000"},
		{"IPv6 alone", "six.test:8000", "six.test=[fd00::1]:8000"},
		{"a name that is none", "gone.test:8000", "error"},
		{
			"records with their own ports, whatever their priority", "http+srv://_vllm._tcp.test",
			"a.test=10.0.0.1:8000 a.test=10.0.0.1:8001 b.test=10.0.0.2:8000 b.test=10.0.0.3:8000",
		},
		{"one engine is gone", "http+srv://some.test", "a.test=10.0.0.1:8000"},
		{"all are gone", "http+srv://all-gone.test", "error"},
		{"one cannot be asked for: it is not known to be gone", "http+srv://one-broken.test", "error"},
		{"no such service", "http+srv://no-service.test", "error"},
		{"no such name", "http+srv://gone.test", "error"},
		{"the server fails", "http+srv://not-answered.test", "error"},
		{"two records of one engine", "http+srv://twice.test", "a.test=10.0.0.1:8000"},
		{"a target without address", "http+srv://other-families.test", "a.test=10.0.0.1:8000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := s.resolved(t, c.address); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// A hosts file may tell only an address of the family that was not asked for.
func TestAnotherFamilyIsNoFault(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&net.AddrError{Err: "no suitable address", Addr: "engine"}, true},
		{&net.DNSError{IsNotFound: true}, true},
		{&net.DNSError{IsTimeout: true}, false},
		{context.DeadlineExceeded, false},
	} {
		if got := isNotFound(c.err); got != c.want {
			t.Errorf("%v: got %t", c.err, got)
		}
	}
}

// Hundreds of engines do not fit into a datagram.
func TestResolveManyRecords(t *testing.T) {
	s := startDNS(t, map[string][]string{})
	var records, want []string
	for i := range 300 {
		records = append(records, fmt.Sprintf("0 0 %d e.test.", 8000+i))
		want = append(want, fmt.Sprintf("e.test=10.0.0.1:%d", 8000+i))
	}
	s.set("SRV many.test", records...)
	s.set("A e.test", "10.0.0.1")
	if got := s.resolved(t, "http+srv://many.test"); got != strings.Join(want, " ") {
		t.Errorf("got %s", got)
	}
	if s.overTCP == 0 {
		t.Error("nothing was asked over TCP; is the answer long enough?")
	}
}

// Engines behind names come and go as the DNS says, each with the name that its
// own record gives it.
func TestWatcherFollowsDNS(t *testing.T) {
	engines := make([]string, 3) // ports
	for i := range engines {
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		t.Cleanup(server.Close)
		_, engines[i], _ = net.SplitHostPort(server.Listener.Addr().String())
	}
	record := func(i int) string { return "0 0 " + engines[i] + " local.test." }
	s := startDNS(t, map[string][]string{
		"A local.test": {"127.0.0.1"}, "SRV engines.test": {record(0)}, "A plain.test": {"127.0.0.1"},
	})
	lists := make(chan string, 1<<10)
	cfg := DefaultConfig()
	cfg.DNSServer, cfg.ResolveInterval = s.address, 5*time.Millisecond
	w, err := New(cfg, []Entry{{Address: "http+srv://engines.test", Models: []string{"m"}}, {Name: "plain", Address: "plain.test:" + engines[2], Models: []string{"m"}}}, "",
		slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), func(list []scoring.Endpoint) {
			var names []string
			for _, e := range list {
				names = append(names, e.Name+" "+e.Address+" "+e.Cluster)
			}
			lists <- strings.Join(names, ", ")
		})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	until := func(want string) {
		t.Helper()
		timeout := time.NewTimer(20 * time.Second)
		defer timeout.Stop()
		var last string
		for last != want {
			select {
			case last = <-lists:
			case <-timeout.C:
				t.Fatalf("waited in vain for\n%s, the last list is\n%s", want, last)
			}
		}
	}
	at := func(i int) string { return "127.0.0.1:" + engines[i] }
	plain := "plain " + at(2) + " plain"
	until("engines.test " + at(0) + " engines.test, " + plain)

	s.set("SRV engines.test", record(1), record(0))
	both := []string{"engines.test@" + at(0) + " " + at(0) + " ", "engines.test@" + at(1) + " " + at(1) + " "}
	if len(engines[0]) > len(engines[1]) || (len(engines[0]) == len(engines[1]) && engines[0] > engines[1]) {
		slices.Reverse(both)
	}
	until(strings.Join(both, ", ") + ", " + plain)

	// What the DNS does not answer for changes nothing, what it takes back does.
	s.set("SRV engines.test", "!")
	s.set("A plain.test", "127.0.0.2")
	until(strings.Join(both, ", ") + ", plain 127.0.0.2:" + engines[2] + " plain")
	s.set("SRV engines.test", record(1))
	until("engines.test " + at(1) + " engines.test, plain 127.0.0.2:" + engines[2] + " plain")
}
