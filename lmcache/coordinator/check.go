package coordinator

import (
	"encoding/json"
	"log/slog"

	"github.com/firsttoken/firsttoken/lmcache"
)

// checks notices servers whose keys no prompt can match: with another hash,
// another chunk size, under another model's name or split over other ranks.
// Guarded by Directory.mu.
type checks struct {
	// told has what was warned of, so that it is once; at most maxTold.
	told map[string]bool
	// spaces are the models' names and numbers of ranks that were compared with
	// the present endpoints'; at most maxTold.
	spaces map[keySpace]bool
}

type keySpace struct {
	model string
	ranks int
}

const maxTold = 64

func newChecks() checks {
	return checks{told: make(map[string]bool), spaces: make(map[keySpace]bool)}
}

// once reports whether a warning is still to be given.
func (c *checks) once(what string) bool {
	if c.told[what] || len(c.told) >= maxTold {
		return false
	}
	c.told[what] = true
	return true
}

// foreign warns of a key that cannot be one of blake3.
func (c *checks) foreign(log *slog.Logger, k *ObjectKey) {
	if c.once("foreign") {
		log.Warn("an LMCache server makes keys that no prompt can match; start it with --hash-algorithm blake3",
			"key_bytes", len(k.ChunkHash)/2, "object_group", k.ObjectGroup)
	}
}

// checkLocked makes the key of a first chunk anew from its token ids, where
// they are told. Caller must hold mu.
func (d *Directory) checkLocked(e *entry, got lmcache.Digest) {
	d.checkSpaceLocked(&e.Key)
	if e.TokenOffset == nil || *e.TokenOffset != 0 || len(e.TokenIDs) == 0 {
		return
	}
	var tokens []uint32
	if json.Unmarshal(e.TokenIDs, &tokens) != nil || len(tokens) == 0 {
		return
	}
	d.counts.Checked++
	keys := d.hasher.Keys(nil, tokens)
	switch {
	case len(tokens) != d.cfg.ChunkSize:
		d.counts.Mismatched++
		if d.checks.once("chunk size") {
			d.log.Warn("an LMCache server has another chunk size than lmcache.coordinator.chunk_size; nothing of it matches",
				"server", len(tokens), "here", d.cfg.ChunkSize)
		}
	case keys[0] != got:
		d.counts.Mismatched++
		if d.checks.once("hash") {
			d.log.Warn("an LMCache server makes other keys of the same tokens; start it with --hash-algorithm blake3")
		}
	}
}

// checkSpaceLocked warns of a model's name or number of ranks that no endpoint
// has. Caller must hold mu.
func (d *Directory) checkSpaceLocked(k *ObjectKey) {
	ranks := int(k.KVRank>>24) & maxWorldSize
	this := keySpace{k.ModelName, ranks}
	if d.checks.spaces[this] || len(d.checks.spaces) >= maxTold {
		return
	}
	d.checks.spaces[this] = true
	named := len(d.endpoints) == 0
	for i := range d.endpoints {
		e := &d.endpoints[i]
		if len(e.Models) == 0 {
			named = true // not known yet
			continue
		}
		name := e.Models[0]
		m := d.cfg.Models[name]
		if m.Name != "" {
			name = m.Name
		}
		if name != k.ModelName {
			continue
		}
		named = true
		if size := max(1, m.WorldSize); size != ranks && d.checks.once("ranks "+name) {
			d.log.Warn("LMCache splits a model over another number of ranks than lmcache.coordinator.models says; nothing of it matches",
				"model", e.Models[0], "lmcache_name", name, "ranks", ranks, "world_size", size)
		}
	}
	if !named && d.checks.once("model "+k.ModelName) {
		d.log.Warn("LMCache reports of a model that no endpoint has; give its name to the endpoints' model in lmcache.coordinator.models",
			"lmcache_name", k.ModelName)
	}
}
