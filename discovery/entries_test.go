package discovery

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// An engine whose address stays in the list is still the same endpoint, with
// what is known of it; the order is that of the new list.
func TestSetEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := func() *fakeEngine { return &fakeEngine{serves: []string{"m"}} }
		const three = "10.0.0.3:8000"
		w := &world{
			engines: map[string]*fakeEngine{one: up(), two: {down: true}, three: up(), "10.0.1.1:8000": up(), "10.0.1.2:8000": up()},
			names:   map[string]string{"old": "10.0.1.1", "new": "10.0.1.2"},
		}
		f := run(t, w, Entry{Address: one}, Entry{Address: two}, Entry{Address: "old:8000"})
		expect(t, f, "1 10.0.0.1:8000 10.0.0.1:8000 ready [m]\n2 10.0.0.2:8000 10.0.0.2:8000 down []\n3 old:8000 10.0.1.1:8000 ready [m]\n")

		f.SetEntries([]Entry{{Address: three}, {Name: "second", Address: two}, {Address: one, Drain: true}, {Address: "old:8000"}})
		expect(t, f, "4 10.0.0.3:8000 10.0.0.3:8000 ready [m]\n2 second 10.0.0.2:8000 down []\n1 10.0.0.1:8000 10.0.0.1:8000 down [m]\n3 old:8000 10.0.1.1:8000 ready [m]\n")

		// Another feed begins another life.
		f.SetEntries([]Entry{{Address: one, KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557"}}, {Address: "old:8000", Models: []string{"x"}}})
		expect(t, f, "5 10.0.0.1:8000 10.0.0.1:8000 ready [m]\n6 old:8000 10.0.1.1:8000 ready [x]\n")

		f.SetEntries([]Entry{{Address: "new:8000"}})
		expect(t, f, "7 new:8000 10.0.1.2:8000 ready [m]\n")
		probes := len(w.engines[one].probes)
		time.Sleep(time.Minute)
		synctest.Wait()
		if more := len(w.engines[one].probes) - probes; more != 0 {
			t.Errorf("%d probes of an engine that is not in the list", more)
		}

		// A name that cannot be resolved takes nothing away before it was tried.
		f.SetEntries([]Entry{{Address: "unknown:8000"}, {Address: one}})
		expect(t, f, "8 10.0.0.1:8000 10.0.0.1:8000 ready [m]\n")
		if slices.Contains(f.lists, "") {
			t.Errorf("an empty list was published: %q", f.lists)
		}
	})
}

// An engine that is written in another way, as an address in place of a name or
// with another scheme, is in the list at all times.
func TestEnginesWrittenAnotherWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			engines: map[string]*fakeEngine{one: {serves: []string{"m"}}, two: {serves: []string{"m"}}},
			names:   map[string]string{"engines": "10.0.0.1 10.0.0.2"},
		}
		f := run(t, w, Entry{Address: one}, Entry{Address: two})
		for _, step := range []struct {
			entries []Entry
			want    string
		}{
			{
				[]Entry{{Address: "engines:8000"}},
				"3 engines:8000@10.0.0.1:8000 10.0.0.1:8000 ready [m]\n4 engines:8000@10.0.0.2:8000 10.0.0.2:8000 ready [m]\n",
			},
			{
				[]Entry{{Address: "https://" + one}, {Address: two}},
				"5 10.0.0.1:8000 10.0.0.1:8000 ready [m]\n6 10.0.0.2:8000 10.0.0.2:8000 ready [m]\n",
			},
			{
				[]Entry{{Address: one}, {Address: "engines:8000"}},
				"7 10.0.0.1:8000 10.0.0.1:8000 ready [m]\n8 engines:8000 10.0.0.2:8000 ready [m]\n",
			},
			// What two entries mean is the other's when the one goes.
			{
				[]Entry{{Address: "engines:8000"}, {Address: two}},
				"9 engines:8000@10.0.0.1:8000 10.0.0.1:8000 ready [m]\n8 engines:8000@10.0.0.2:8000 10.0.0.2:8000 ready [m]\n",
			},
			{[]Entry{{Address: two}}, "10 10.0.0.2:8000 10.0.0.2:8000 ready [m]\n"},
		} {
			f.SetEntries(step.entries)
			expect(t, f, step.want)
		}
		if slices.Contains(f.lists, "") {
			t.Errorf("an empty list was published: %q", f.lists)
		}
	})
}

// Whatever lists follow one another, at any pace: the last one is what holds,
// and ids of endpoints that stay do not change.
func TestSetEntriesAtRandom(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			w := &world{engines: map[string]*fakeEngine{}, names: map[string]string{"a": "10.0.1.1 10.0.1.2", "b": "10.0.1.2 10.0.1.3"}}
			pick := func() (entries []Entry) {
				all := []string{"10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000", "a:8000", "b:8000", "10.0.1.2:8000", "https://10.0.0.1:8000"}
				rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				for _, address := range all[:1+rng.IntN(len(all))] {
					entries = append(entries, Entry{Address: address, Drain: rng.IntN(4) == 0, Models: []string{"m"}[:rng.IntN(2)]})
				}
				return entries
			}
			f := run(t, w, pick()...)
			var last []Entry
			for range 10 {
				last = pick()
				f.SetEntries(last)
				if rng.IntN(2) == 0 {
					synctest.Wait()
				}
			}
			synctest.Wait()
			want := make(map[netip.AddrPort]bool)
			for _, e := range last {
				target, _ := parseAddress(e.Address)
				if ip, ok := target.literal(); ok {
					want[netip.AddrPortFrom(ip, target.port)] = true
					continue
				}
				all, _ := w.resolve(t.Context(), target)
				for _, found := range all {
					want[found.address] = true
				}
			}
			ids := make(map[scoring.EndpointID]bool)
			for _, s := range f.Status() {
				address := netip.MustParseAddrPort(s.Endpoint.Address)
				if !want[address] {
					t.Errorf("seed %d: %s is there twice, or is not wanted", seed, address)
				}
				delete(want, address)
				ids[s.Endpoint.ID] = true
			}
			if len(want) > 0 || len(ids) != len(f.Status()) {
				t.Errorf("seed %d: missing %v; ids %v", seed, want, ids)
			}
			for _, list := range f.lists {
				if list == "" {
					t.Errorf("seed %d: an empty list was published: %s", seed, strings.Join(f.lists, "\n"))
				}
			}
			if t.Failed() {
				t.Log(fmt.Sprint(last))
			}
		})
	}
}
