package remote_test

import (
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/lmcache/remote"
)

// TestConfig: each fault names its key.
func TestConfig(t *testing.T) {
	good := remote.DefaultConfig()
	good.Coordinator, good.Controller = "http://lmcache:9300", "https://lmcache:9000/"
	if err := good.Validate("x"); err != nil {
		t.Error(err)
	}
	bad := remote.Config{Coordinator: "lmcache:9300", Controller: "http://lmcache:9000/lookup", Deadline: time.Microsecond}
	faults := strings.Split(bad.Validate("x").Error(), "\n")
	for i, want := range []string{
		`x.coordinator: "lmcache:9300" is no address `,
		`x.controller: "http://lmcache:9000/lookup" is no address `,
		"x.deadline: is 1µs; ",
		"x.members_interval: is 0s; ",
		"x.pause: is 0s; ",
		"x.concurrency: is 0; ",
		"x.failures: is 0; ",
	} {
		if i >= len(faults) || !strings.HasPrefix(faults[i], want) {
			t.Errorf("fault %d is not %q:\n%s", i, want, strings.Join(faults, "\n"))
		}
	}
}
