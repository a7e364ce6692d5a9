package lmcache

import "slices"

// Newest appends up to n keys that any rank of the instance holds, of those
// reported last first. It looks at no more than four times n records, so that
// a quiet instance among busy ones costs no more than a busy one.
func (ix *Index) Newest(dst []Key, instance string, n int) []Key {
	seen, added := 0, 0
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	in := ix.instances[instance]
	if in == nil {
		return dst
	}
	for id := ix.store.newest; id != 0 && added < n && seen < 4*n; {
		e := ix.store.entries.at(id)
		seen++
		if e.slot == in.slot || slices.ContainsFunc(ix.store.others(e), func(h holder) bool { return h.slot == in.slot }) {
			dst = append(dst, e.key)
			added++
		}
		id = e.older
	}
	return dst
}

// Records is how many chunks the ranks of the instance hold, each counted for
// every rank and location.
func (ix *Index) Records(instance string) int {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	in := ix.instances[instance]
	if in == nil {
		return 0
	}
	return in.keys(^uint64(0), -1)
}
