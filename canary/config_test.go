package canary_test

import (
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/canary"
)

// Every fault is named by its key, with the value and what to write.
func TestFaults(t *testing.T) {
	good := canary.Arm{Name: "canary", Weight: 1}
	for _, c := range []struct {
		name   string
		config canary.Config
		want   string
	}{
		{"no name", canary.Config{Arms: []canary.Arm{{Weight: 1}}}, `canary.arms[0].name: "" is no name`},
		{"a name that is no label", canary.Config{Arms: []canary.Arm{{Name: "a b", Weight: 1}}}, `canary.arms[0].name: "a b" is no name`},
		{"a name twice", canary.Config{Arms: []canary.Arm{good, good}}, `canary.arms[1].name: "canary" is that of canary.arms[0] too`},
		{"a negative weight", canary.Config{Arms: []canary.Arm{{Name: "a", Weight: -1}}}, "canary.arms[0].weight: is -1; write 0 to 100000"},
		{"a weight too large", canary.Config{Arms: []canary.Arm{{Name: "a", Weight: 100_001}}}, "canary.arms[0].weight: is 100001"},
		{"nothing comes", canary.Config{Arms: []canary.Arm{{Name: "a"}}}, "canary.arms[0].weight: is 0 and the arm has no header"},
		{"an unknown policy", canary.Config{Arms: []canary.Arm{{Name: "a", Weight: 1, Policy: "nope"}}}, `canary.arms[0].policy: unknown policy "nope"; write one of envoy, `},
		{"no header", canary.Config{Arms: []canary.Arm{{Name: "a", Header: ": on"}}}, `canary.arms[0].header: ": on" is no header`},
		{"a header of two lines", canary.Config{Arms: []canary.Arm{{Name: "a", Header: "x: a\nb"}}}, "canary.arms[0].header: "},
		{"an empty model", canary.Config{Arms: []canary.Arm{{Name: "a", Weight: 1, Models: []string{"m", ""}}}}, "canary.arms[0].models[1]: is empty"},
		{"a user header that is none", canary.Config{Sticky: true, UserHeader: "x user"}, `canary.user_header: "x user" is no header's name`},
		{"a user header for nothing", canary.Config{UserHeader: "x-user"}, "canary.user_header: is \"x-user\", but canary.sticky is false"},
		{"too many", canary.Config{Arms: make([]canary.Arm, 17)}, "canary.arms: has 17 arms; write at most 16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.config.Validate("canary")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
		})
	}
	for _, c := range []canary.Config{
		canary.DefaultConfig(),
		{Arms: []canary.Arm{{Name: "a", Header: "x-canary"}, {Name: "b.2_c-d", Weight: 100_000, Header: "X-Canary: yes: it is"}}},
	} {
		if err := c.Validate("canary"); err != nil {
			t.Error(err)
		}
	}
}
