package counters

import (
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Reading is what one engine said of itself at one moment, all its ranks
// together. What it did not say is zero. It is an immutable value; a receiver
// must not write to CachedBySource.
type Reading struct {
	// At is when the answer had come.
	At time.Time `json:"at"`
	// Started is when the engine's process began.
	Started time.Time `json:"started,omitzero"`
	// Several: more than one process answers behind the address. What each
	// counts, and when it began, is left out.
	Several bool `json:"several_processes,omitempty"`

	// CapacityTokens is how many tokens the cache on the GPU holds, HostTokens
	// the one in the host's memory, summed over ranks.
	CapacityTokens scoring.Tokens `json:"capacity_tokens"`
	HostTokens     scoring.Tokens `json:"host_tokens"`
	// Ranks is the number of data-parallel ranks, each with a cache of its own.
	Ranks int `json:"ranks"`
	// BlockSize is the number of tokens that are cached or evicted as one.
	BlockSize scoring.Tokens `json:"block_size"`
	// PrefixCaching says whether the engine reuses what it computed.
	PrefixCaching Switch `json:"prefix_caching"`
	// HashAlgorithm is what the engine hashes its blocks with.
	HashAlgorithm string `json:"hash_algorithm"`

	// Counted is true where PrefixQueries and PrefixHits are told.
	Counted bool `json:"counted"`
	// PrefixQueries are the prompt tokens looked up in the engine's own cache
	// since it was started, PrefixHits those found.
	PrefixQueries uint64 `json:"prefix_queries"`
	PrefixHits    uint64 `json:"prefix_hits"`
	// ExternalQueries and ExternalHits are the same for what lies behind a KV
	// connector (LMCache, offloading); asked is what the own cache did not have.
	ExternalQueries uint64 `json:"external_queries"`
	ExternalHits    uint64 `json:"external_hits"`
	// PromptTokens are those of all prompts that were computed.
	PromptTokens uint64 `json:"prompt_tokens"`
	// Answers are those that came to their end, AnswerTokens what was generated
	// for them.
	Answers      uint64 `json:"answers"`
	AnswerTokens uint64 `json:"answer_tokens"`
	// CachedBySource are the prompt tokens found, by where: device, host, p2p,
	// disk, external_unspecified. Nil: not told.
	CachedBySource map[string]uint64 `json:"cached_by_source,omitempty"`
	// CacheResets is how often somebody made the engine forget its cache: calls
	// of /reset_prefix_cache and /sleep.
	CacheResets uint64 `json:"cache_resets"`

	// Running and Waiting are requests in the engine at this moment.
	Running int `json:"running"`
	Waiting int `json:"waiting"`
	// Usage is the share of the GPU's cache that running requests use, 0 to 1,
	// the mean of all ranks.
	Usage float64 `json:"usage"`
}

// Switch is a setting that may not be told.
type Switch string

// The values of a Switch.
const (
	SwitchUnknown Switch = ""
	SwitchOn      Switch = "on"
	SwitchOff     Switch = "off"
)

// startJitter is how far the start of one process may seem to move: some
// clients compute it anew from the kernel's boot time, which is in seconds and
// follows the clock. No engine is back sooner after its end.
const startJitter = 1500 * time.Millisecond

// ofAnother reports whether r is of another process than before: its start
// moved, or it counted less.
func (r *Reading) ofAnother(before *Reading) bool {
	if !r.Started.IsZero() && !before.Started.IsZero() && r.Started.Sub(before.Started).Abs() > startJitter {
		return true
	}
	fell := r.PromptTokens < before.PromptTokens || r.ExternalQueries < before.ExternalQueries || r.ExternalHits < before.ExternalHits
	return fell || r.Counted && before.Counted && (r.PrefixQueries < before.PrefixQueries || r.PrefixHits < before.PrefixHits)
}
