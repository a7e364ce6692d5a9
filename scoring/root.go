package scoring

import (
	"hash/fnv"
	"slices"
)

// Root is where the chain of the prompt's blocks begins on an endpoint, prev of
// its first ChainBlock: 0 for a plain prompt, and another number for each pair
// of adapter and cache_salt, since an engine reuses nothing across them.
func (p *Prompt) Root(e *Endpoint) uint64 {
	adapter := ""
	if slices.Contains(e.Adapters, p.Model) {
		adapter = p.Model
	}
	return ChainRoot(adapter, p.Salt)
}

// ChainRoot is the root of prompts for an adapter with a cache_salt; either may
// be empty, and without both it is 0.
func ChainRoot(adapter, salt string) uint64 {
	if adapter == "" && salt == "" {
		return 0
	}
	h := fnv.New64a()
	// A name with a zero byte in it is no adapter's.
	_, _ = h.Write([]byte(adapter + "\x00" + salt)) // never fails
	return max(1, h.Sum64())
}

// BlockKey tells a block of a Sequence.Chain apart from the same block under
// another root.
func BlockKey(root, block uint64) uint64 {
	if root == 0 {
		return block
	}
	return stir(block, root)
}
