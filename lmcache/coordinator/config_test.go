package coordinator_test

import (
	"math"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/lmcache/coordinator"
)

// TestConfig: each fault names its key.
func TestConfig(t *testing.T) {
	if err := coordinator.DefaultConfig().Validate("x"); err != nil {
		t.Error(err)
	}
	var c coordinator.Config
	c.Listen = "9300"
	c.Models = map[string]coordinator.Model{"m": {Name: "a@b", WorldSize: 256}}
	c.SecondsPerToken = coordinator.TierSeconds{L1: math.NaN(), L2: math.Inf(1)}
	faults := strings.Split(c.Validate("x").Error(), "\n")
	for i, want := range []string{
		"x.chunk_size: is 0; ",
		"x.models.m.world_size: is 256; ",
		`x.models.m.name: "a@b" `,
		"x.seconds_per_token.l1: is NaN; ",
		"x.seconds_per_token.l2: is +Inf; ",
		`x.listen: "9300" is no address `,
		"x.max_keys: is 0; ",
		"x.body_limit_bytes: is 0; ",
		"x.instance_timeout: is 0s; ",
	} {
		if i >= len(faults) || !strings.HasPrefix(faults[i], want) {
			t.Errorf("fault %d is not %q:\n%s", i, want, strings.Join(faults, "\n"))
		}
	}
}
