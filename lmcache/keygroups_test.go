package lmcache

import "testing"

// TestKeyGroupsShare: groups whose settings come down to the same make a
// prompt's keys once together.
func TestKeyGroupsShare(t *testing.T) {
	cfg := DefaultConfig()
	no := false
	cfg.Groups = map[string]KeyGroup{"same": {LMCacheVersion: "0.5.1", SaveUnfullChunk: &no}, "other": {ChunkSize: 128}}
	g, err := newKeyGroups(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if g.byName["same"] != g.byDefault || g.byName["other"] == g.byDefault {
		t.Errorf("default %p, same %p, other %p", g.byDefault, g.byName["same"], g.byName["other"])
	}
}
