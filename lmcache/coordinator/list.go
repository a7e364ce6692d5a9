package coordinator

// keyList is the answer of GET /directory/keys.
type keyList struct {
	Total int       `json:"total"`
	Keys  []keyInfo `json:"keys"`
}

type keyInfo struct {
	Key        ObjectKey   `json:"key"`
	Placements []Placement `json:"placements"`
	// NumTokens is 0: a Directory keeps no tokens.
	NumTokens   int   `json:"num_tokens"`
	AccessCount int64 `json:"access_count"`
}

// list is one page of the keys with a placement that fits, the longest unused
// first. Empty words fit all. It is for people: the cost is linear in the keys,
// and lookups wait.
func (d *Directory) list(tier, instance, backend string, offset, limit int) keyList {
	d.mu.RLock()
	defer d.mu.RUnlock()
	page := keyList{Keys: []keyInfo{}}
	for _, k := range d.records.Keys() {
		r, _ := d.records.Peek(k)
		var placements []Placement
		for _, p := range r.alive() {
			if (tier == "" || string(p.Tier) == tier) && (instance == "" || p.Instance == instance) && (backend == "" || p.Backend == backend) {
				placements = append(placements, p)
			}
		}
		if len(placements) == 0 {
			continue
		}
		if page.Total >= offset && len(page.Keys) < limit {
			of := k.space.Value()
			page.Keys = append(page.Keys, keyInfo{
				Key:        ObjectKey{k.hash.String(), of.model, k.rank, k.group, of.salt},
				Placements: placements, AccessCount: r.accesses,
			})
		}
		page.Total++
	}
	return page
}

// directoryStats is the answer of GET /directory/stats.
type directoryStats struct {
	Keys       int            `json:"num_keys"`
	Placements int64          `json:"num_placements"`
	L1Keys     map[string]int `json:"l1_keys_by_instance"`
	Blend      blendStats     `json:"blend"`
	L1Count    int64          `json:"l1_count"`
	L1Bytes    int64          `json:"l1_size_bytes"`
	L2Count    int64          `json:"l2_count"`
	L2Bytes    int64          `json:"l2_size_bytes"`
}

// blendStats are of a search that a coordinator offers on request only, and we
// do not: what it says where that is off.
type blendStats struct {
	Contents   int `json:"num_contents"`
	Chunks     int `json:"num_chunks"`
	Claims     int `json:"num_claims"`
	Namespaces int `json:"num_namespaces"`
	TableSize  int `json:"table_size"`
}

func (d *Directory) directoryStats() directoryStats {
	d.mu.RLock()
	defer d.mu.RUnlock()
	l1, l2 := d.tiers[TierL1], d.tiers[TierL2]
	s := directoryStats{
		Keys: d.records.Len(), Placements: l1.count + l2.count, L1Keys: map[string]int{}, Blend: blendStats{TableSize: 1024},
		L1Count: l1.count, L1Bytes: l1.bytes, L2Count: l2.count, L2Bytes: l2.bytes,
	}
	for id, in := range d.instances {
		if in.stream != nil {
			s.L1Keys[id] = len(in.l1)
		}
	}
	return s
}
