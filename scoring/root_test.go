package scoring

import "testing"

// Plain prompts share one root on all endpoints; each salt, each adapter and
// each pair of them has its own. A model that an endpoint does not call an
// adapter is none there.
func TestRoots(t *testing.T) {
	plain, adapters := &Endpoint{Models: []string{"m", "l"}}, &Endpoint{Models: []string{"m", "l", "k"}, Adapters: []string{"l", "k"}}
	seen := make(map[uint64]string)
	for _, tt := range []struct {
		name, model, salt string
		endpoint          *Endpoint
		same              string
	}{
		{"plain", "m", "", plain, ""},
		{"no model", "", "", adapters, "plain"},
		{"plain beside adapters", "m", "", adapters, "plain"},
		{"an alias", "l", "", plain, "plain"},
		{"salt", "m", "s", plain, ""},
		{"same salt elsewhere", "m", "s", adapters, "salt"},
		{"salt named as the adapter", "m", "l", adapters, ""},
		{"adapter", "l", "", adapters, ""},
		{"other adapter", "k", "", adapters, ""},
		{"adapter and salt", "l", "s", adapters, ""},
		{"adapter and its name as salt", "l", "l", adapters, ""},
	} {
		root := (&Prompt{Model: tt.model, Salt: tt.salt}).Root(tt.endpoint)
		if seen[root] != tt.same {
			t.Errorf("%s: the root of %q, want that of %q", tt.name, seen[root], tt.same)
		}
		if (root == 0) != (tt.name == "plain" || tt.same == "plain") {
			t.Errorf("%s: root %d", tt.name, root)
		}
		if tt.same == "" {
			seen[root] = tt.name
		}
	}
}
