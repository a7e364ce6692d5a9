package discovery

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/scoring"
)

func TestEventFeed(t *testing.T) {
	capacity := scoring.TierCapacity{CPU: defaultCPUTokens, Storage: defaultStorageTokens}
	for _, tt := range []struct {
		name  string
		entry KVEventsEntry
		alone bool
		want  scoring.EventFeed
	}{
		{"none", KVEventsEntry{}, true, scoring.EventFeed{}},
		{
			"all",
			KVEventsEntry{"tcp://*:5557", "tcp://*:5558", "kv", true, 4, CapacityTokens{1, 2, 3}},
			true,
			scoring.EventFeed{Endpoint: "tcp://*:5557", Replay: "tcp://*:5558", Topic: "kv", Bind: true, Ranks: 4, Capacity: scoring.TierCapacity{GPU: 1, CPU: 2, Storage: 3}},
		},
		{"defaults", KVEventsEntry{Endpoint: "tcp://e:1"}, true, scoring.EventFeed{Endpoint: "tcp://e:1", Ranks: 1, Capacity: capacity}},
		{"several engines, each at its own address", KVEventsEntry{Endpoint: "tcp://*:1"}, false, scoring.EventFeed{Endpoint: "tcp://*:1", Ranks: 1, Capacity: capacity}},
		{"several engines, one address", KVEventsEntry{Endpoint: "tcp://e:1"}, false, scoring.EventFeed{}},
		{"several engines connect", KVEventsEntry{Endpoint: "tcp://*:1", Bind: true}, false, scoring.EventFeed{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.entry.feed(tt.alone)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// What the operator wrote arrives with the endpoint.
func TestEndpointHasItsFeed(t *testing.T) {
	r, err := newRoster(1, []Entry{{Address: "10.0.0.1:8000", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557"}}})
	if err != nil {
		t.Fatal(err)
	}
	resolveTo(r, 0, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
	if got := r.endpoints()[0].Cache.Events.Endpoint; got != "tcp://*:5557" {
		t.Errorf("events at %q", got)
	}
}

// At one address only topics tell engines apart.
func TestDoubledFeeds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		a, b   Entry
		faults int
	}{
		{"own addresses", Entry{Address: "a:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557"}}, Entry{Address: "b:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557"}}, 0},
		{"one host", Entry{Address: "a:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557"}}, Entry{Address: "a:2", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557"}}, 1},
		{"one host, ranks overlap", Entry{Address: "a:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557", DataParallelRanks: 8}}, Entry{Address: "a:2", KVEvents: KVEventsEntry{Endpoint: "tcp://a:5560", DataParallelRanks: 4}}, 1},
		{"bound, topics", Entry{Address: "a:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557", Bind: true, Topic: "x"}}, Entry{Address: "b:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557", Bind: true, Topic: "y"}}, 0},
		{"bound, one topic", Entry{Address: "a:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557", Bind: true, Topic: "x"}}, Entry{Address: "b:1", KVEvents: KVEventsEntry{Endpoint: "tcp://*:5557", Bind: true}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := ValidateEntries("endpoints", []Entry{tt.a, tt.b})
			if n := strings.Count(errText(err), "kv_events.endpoint"); n != tt.faults {
				t.Errorf("%d faults, want %d: %v", n, tt.faults, err)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
