package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

var errDown = errors.New("connection refused")

func testRoster(t *testing.T, entries ...Entry) *roster {
	t.Helper()
	r, err := newRoster(2, entries)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func addrs(list ...string) []netip.Addr {
	var ips []netip.Addr
	for _, a := range list {
		ips = append(ips, netip.MustParseAddr(a))
	}
	return ips
}

// resolveTo tells the addresses of the entry at a position.
func resolveTo(r *roster, position int, ips []netip.Addr) (added, removed []*member) {
	e := r.entries[position]
	return r.resolved(e, e.target.at(ips))
}

// show writes a list so that a person can read the difference.
func show(list []scoring.Endpoint) string {
	var b strings.Builder
	for _, e := range list {
		state := "ready"
		if !e.Ready {
			state = "down"
		}
		fmt.Fprintf(&b, "%d %s %s %s %v\n", e.ID, e.Name, e.Address, state, e.Models)
	}
	return b.String()
}

func TestProbesDecideReadiness(t *testing.T) {
	tests := []struct {
		name   string
		probes string // g good, b bad, s bad with a request that failed to connect
		want   string // readiness after each probe
	}{
		{"eligible until the first failed probe", "b", "-"},
		{"good at once", "g", "+"},
		{"one failure is forgiven", "gbg", "+++"},
		{"two in a row are not", "gbb", "++-"},
		{"two with a success between them are", "gbgbg", "+++++"},
		{"one success brings it back", "gbbbg", "++--+"},
		{"and then two failures again", "gbbgbb", "++-++-"},
		{"a failed request and a failed probe make two", "gs", "+-"},
		{"a new endpoint comes up", "bbg", "--+"},
		{"and is forgiven from then on", "bgb", "-++"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := testRoster(t, Entry{Address: "10.0.0.1:8000"})
			resolveTo(r, 0, addrs("10.0.0.1"))
			if !r.endpoints()[0].Ready {
				t.Error("not eligible before the first probe")
			}
			var got strings.Builder
			for _, p := range tt.probes {
				fault := errDown
				if p == 'g' {
					fault = nil
				}
				r.probed(1, time.Unix(0, 0), fault, p == 's')
				if r.endpoints()[0].Ready {
					got.WriteByte('+')
				} else {
					got.WriteByte('-')
				}
			}
			if got.String() != tt.want {
				t.Errorf("probes %s: readiness %s, want %s", tt.probes, got.String(), tt.want)
			}
		})
	}
}

// Only a success brings an endpoint back that is down, however few its failed
// probes were.
func TestDownStaysDown(t *testing.T) {
	r, err := newRoster(5, []Entry{{Address: "10.0.0.1:8000"}})
	if err != nil {
		t.Fatal(err)
	}
	resolveTo(r, 0, addrs("10.0.0.1"))
	r.probed(1, time.Unix(0, 0), nil, false)
	if !r.probed(1, time.Unix(1, 0), errDown, true) || r.endpoints()[0].Ready {
		t.Error("a failed request and a failed probe did not take it out")
	}
	if r.probed(1, time.Unix(2, 0), errDown, false) || r.endpoints()[0].Ready {
		t.Error("a failed probe brought it back")
	}
}

func TestChangedAddressIsAnotherEndpoint(t *testing.T) {
	r := testRoster(t, Entry{Name: "gpu", Address: "engine.example:8000"}, Entry{Address: "10.0.0.9:8000"})
	resolveTo(r, 1, addrs("10.0.0.9"))
	resolveTo(r, 0, addrs("10.0.0.1"))
	r.learned(2, served{names: []string{"m"}})
	if got, want := show(r.endpoints()), "2 gpu 10.0.0.1:8000 ready [m]\n1 10.0.0.9:8000 10.0.0.9:8000 ready []\n"; got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}

	added, removed := resolveTo(r, 0, addrs("10.0.0.2"))
	if len(added) != 1 || len(removed) != 1 || removed[0].id != 2 {
		t.Errorf("added %v, removed %v", added, removed)
	}
	// What the former life was told comes too late.
	r.probed(2, time.Unix(0, 0), errDown, false)
	r.learned(2, served{names: []string{"old"}})
	if got, want := show(r.endpoints()), "3 gpu 10.0.0.2:8000 ready []\n1 10.0.0.9:8000 10.0.0.9:8000 ready []\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}

	// Back at the first address: a third life.
	resolveTo(r, 0, addrs("10.0.0.1"))
	if id := r.endpoints()[0].ID; id != 4 {
		t.Errorf("id %d of an address that came back, want 4", id)
	}
}

func TestSeveralAddressesOfOneName(t *testing.T) {
	r := testRoster(t, Entry{Name: "pool", Address: "pool.example:8000", LMCache: LMCacheEntry{Instance: "i", WorkerPort: 7, Group: "g"}})
	resolveTo(r, 0, addrs("10.0.0.1"))
	if e := r.endpoints()[0]; e.Cache.Instance != "i" || e.Cluster != "pool" {
		t.Errorf("alone: %+v", e)
	}
	resolveTo(r, 0, addrs("10.0.0.2", "10.0.0.1"))
	if got, want := show(r.endpoints()), "1 pool@10.0.0.1:8000 10.0.0.1:8000 ready []\n2 pool@10.0.0.2:8000 10.0.0.2:8000 ready []\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, e := range r.endpoints() {
		if e.Cluster != "" {
			t.Errorf("%s: cluster %q, which holds the others too", e.Name, e.Cluster)
		}
		if e.Cache != (scoring.CacheIdentity{WorkerPort: 7, Group: "g"}) {
			t.Errorf("%s: cache identity %+v; one instance cannot be two engines", e.Name, e.Cache)
		}
	}
}

func TestOneAddressIsOneEndpoint(t *testing.T) {
	r := testRoster(t, Entry{Address: "10.0.0.1:8000"}, Entry{Name: "n", Address: "name.example:8000"})
	resolveTo(r, 0, addrs("10.0.0.1"))
	if added, _ := resolveTo(r, 1, addrs("10.0.0.1", "::ffff:10.0.0.1")); len(added) != 0 {
		t.Errorf("added %v, held by the first entry", added)
	}
	resolveTo(r, 0, nil)
	if added, _ := resolveTo(r, 1, addrs("10.0.0.1")); len(added) != 1 {
		t.Error("the address is free now, but was not added")
	}
}

func TestConfiguredModelsAreKept(t *testing.T) {
	r := testRoster(t, Entry{Address: "[::1]:8000", Models: []string{"own", "alias"}, Cluster: "c"})
	resolveTo(r, 0, addrs("::1"))
	r.learned(1, served{names: []string{"other", "alias"}, adapters: []string{"alias"}})
	e := r.endpoints()[0]
	if got := strings.Join(e.Models, " "); got != "own alias" {
		t.Errorf("models %q", got)
	}
	if got := strings.Join(e.Adapters, " "); got != "alias" {
		t.Errorf("adapters %q, want what the engine says of them", got)
	}
	if r.learned(1, served{names: []string{"other", "alias"}, adapters: []string{"alias"}}) {
		t.Error("the same again is no news")
	}
	if !r.learned(1, served{names: []string{"other", "alias"}}) || r.endpoints()[0].Adapters != nil {
		t.Error("an alias that is no adapter any more is news")
	}
	if e.Address != "[::1]:8000" || e.Name != "[::1]:8000" || e.Cluster != "c" {
		t.Errorf("%+v", e)
	}
}

func TestParseAddress(t *testing.T) {
	good := map[string]string{
		"10.0.0.1:8000":           "http 10.0.0.1:8000",
		"Engine.Example:8000":     "http engine.example:8000",
		"http://engine:8000/":     "http engine:8000",
		"https://engine.example":  "https engine.example:443",
		"http://[2001:db8::1]:80": "http [2001:db8::1]:80",
		"[::1]:8000":              "http [::1]:8000",
		"http://engine":           "http engine:80",

		"http+srv://_vllm._tcp.Engines.example": "http _vllm._tcp.engines.example",
		"https+srv://engines.example":           "https engines.example",
	}
	for address, want := range good {
		got, err := parseAddress(address)
		if err != nil || got.scheme+" "+got.hostPort() != want {
			t.Errorf("%q: %q, %v; want %q", address, got.scheme+" "+got.hostPort(), err, want)
		}
	}
	bad := map[string]string{
		"":                       "is empty",
		"engine":                 "no port",
		"engine:":                "no port",
		"http://engine:":         "no port",
		":8000":                  "not an address",
		"engine:0":               "port 0",
		"engine:65536":           "port 65536",
		"engine:http":            "not an address",
		"grpc://engine:1":        `scheme "grpc"`,
		"http://e:1/v1":          "path or query",
		"http://e:1?x=1":         "path or query",
		"http://[fe80::1%25e]:1": "zone",
		"2001:db8::1":            "not an address",
		"http://u:secret@e:1":    "VLLM_API_KEY",

		"http+srv://e:1":       "has a port",
		"https+srv://10.0.0.1": "is an address",
		"srv://e":              `scheme "srv"`,
		"http+srv://e/x":       "path or query",
	}
	for address, want := range bad {
		_, err := parseAddress(address)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", address, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error repeats the secret: %v", address, err)
		}
	}
}

func TestOnePerEngine(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"both families are one engine", "::1 127.0.0.1", "[127.0.0.1]"},
		{"IPv6 where there is nothing else", "2001:db8::2 2001:db8::1", "[2001:db8::1 2001:db8::2]"},
		{"sorted, once each", "10.0.0.2 10.0.0.1 ::ffff:10.0.0.2", "[10.0.0.1 10.0.0.2]"},
		{"no zones", "fe80::1%eth0", "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := onePerEngine(addrs(strings.Fields(tt.in)...))
			if fmt.Sprint(got) != tt.want || (err != nil) != (tt.want == "[]") {
				t.Errorf("%v, %v; want %s", got, err, tt.want)
			}
		})
	}
}
