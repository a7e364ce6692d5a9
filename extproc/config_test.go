package extproc

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestConfigFaults(t *testing.T) {
	if err := DefaultConfig().Validate("server"); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Listen = "9002" }, `server.listen: "9002" is no address`},
		{func(c *Config) { c.Listen = "unix:" }, `server.listen: "unix:" names no file`},
		{func(c *Config) { c.DecisionDeadline = 0 }, "server.decision_deadline: is 0s"},
		{func(c *Config) { c.MaxMessageTimeout = 0 }, "server.max_message_timeout: is 0s"},
		{func(c *Config) { c.MaxMessageTimeout = 61 * time.Minute }, "server.max_message_timeout: is 1h1m0s"},
		{func(c *Config) { c.BodyLimit = 0 }, "server.body_limit_bytes: is 0"},
		{func(c *Config) { c.BodyLimit = 2 << 30 }, "server.body_limit_bytes: is 2147483648"},
		{func(c *Config) { c.Fallbacks = 3 }, "server.fallbacks: is 3"},
		{func(c *Config) { c.Fallbacks = -1 }, "server.fallbacks: is -1"},
		{func(c *Config) { c.DestinationHeader, c.DestinationMetadata, c.ClusterHeader = false, false, false }, "server.destination_header: no way"},
		{func(c *Config) { c.SessionKey = "x user" }, `server.session_key: "x user" is no name of a header`},
		{func(c *Config) { c.SessionKey = ":path" }, `server.session_key: ":path" is no name of a header`},
		{func(c *Config) { c.DrainDelay = -1 }, "server.drain_delay: is -1ns"},
		{func(c *Config) { c.DrainTimeout = 0 }, "server.drain_timeout: is 0s"},
		{func(c *Config) { c.Shadow.ServedHeader = "x served" }, `server.shadow.served_header: "x served" is no header's name`},
		{func(c *Config) { c.Shadow.Streams = -1 }, "server.shadow.streams: is -1"},
		{func(c *Config) { c.Shadow.BodyBytes = 0 }, "server.shadow.body_bytes: is 0"},
		{func(c *Config) { c.DecisionLogs = -1 }, "server.decision_logs_per_second: is -1"},
		{func(c *Config) { c.Rescue.Floor = 0 }, "server.rescue.floor: is 0s"},
		{func(c *Config) { c.Rescue.Factor = 0.5 }, "server.rescue.factor: is 0.5"},
		{func(c *Config) { c.Rescue.Factor = math.NaN() }, "server.rescue.factor: is NaN"},
		{func(c *Config) { c.Rescue.Max = time.Second }, "server.rescue.max: is 1s; write at least server.rescue.floor (2s)"},
		{func(c *Config) { c.Rescue.Max = time.Hour }, "server.rescue.max: is 1h0m0s"},
		{func(c *Config) { c.Rescue.Tries = 3 }, "server.rescue.tries: is 3; write 1 or 2"},
		{func(c *Config) { c.Rescue.Enabled, c.Fallbacks = true, 1 }, "server.rescue.tries: is 2, but Envoy is told 1 addresses"},
		{func(c *Config) { c.Rescue.Unstreamed = -1 }, "server.rescue.unstreamed: is -1ns"},
		{func(c *Config) { c.Rescue.Enabled, c.DestinationHeader, c.DestinationMetadata = true, false, false }, "server.rescue.enabled: is true"},
	} {
		cfg := DefaultConfig()
		c.change(&cfg)
		if err := cfg.Validate("server"); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("fault %v, want %s", err, c.want)
		}
	}
	bad := Config{Listen: "x", Fallbacks: 9, Rescue: defaultRescue(), Shadow: DefaultShadowConfig()}
	if err := bad.Validate("s"); err == nil || len(strings.Split(err.Error(), "\n")) != 7 {
		t.Errorf("not every fault is named: %v", err)
	}
}
