package kvevents

import (
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		name, engine, endpoint, replay string
		bind                           bool
		rank                           int
		live, after                    string // empty live: refused
	}{
		{"as the engine writes it", "10.0.0.1:8000", "tcp://*:5557", "tcp://*:5558", false, 0, "tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558"},
		{"IPv6", "[fd00::1]:8000", "tcp://*:5557", "", false, 0, "tcp://[fd00::1]:5557", ""},
		{"another host", "10.0.0.1:8000", "tcp://events.example:5557", "tcp://10.0.0.2:1", false, 3, "tcp://events.example:5560", "tcp://10.0.0.2:4"},
		{"ours", "10.0.0.1:8000", "tcp://*:5557", "tcp://*:5558", true, 1, "tcp://*:5558", "tcp://10.0.0.1:5559"},
		{"any port", "10.0.0.1:8000", "tcp://127.0.0.1:0", "", true, 1, "tcp://127.0.0.1:0", ""},
		{"no scheme", "10.0.0.1:8000", "10.0.0.1:5557", "", false, 0, "", ""},
		{"no port", "10.0.0.1:8000", "tcp://10.0.0.1", "", false, 0, "", ""},
		{"past the last port", "10.0.0.1:8000", "tcp://*:65535", "", false, 1, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := scoring.Endpoint{Address: tt.engine, Cache: scoring.CacheIdentity{
				Events: scoring.EventFeed{Endpoint: tt.endpoint, Replay: tt.replay, Bind: tt.bind},
			}}
			live, after, err := addresses(e, tt.rank)
			if live != tt.live || after != tt.after || (err != nil) != (tt.live == "") {
				t.Errorf("%q, %q, %v; want %q, %q", live, after, err, tt.live, tt.after)
			}
		})
	}
}
