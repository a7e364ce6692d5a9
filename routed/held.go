package routed

import (
	"sync"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// held is what one life of one endpoint is believed to hold.
type held struct {
	name string // set once
	cfg  Config // set once

	mu sync.RWMutex // guards the following
	// down: it got no requests when last heard of.
	down bool
	// blocks are bounded by the engine's capacity.
	blocks *stack
	guard  guard
	// waiting is what was predicted for requests on their way, until their
	// first token or end; bounded by the open bookings.
	waiting map[*scoring.Reservation]prediction
	// told is the newest reading of the engine's counters; nil: none.
	told *counters.Reading
}

// prediction is how many tokens of a prompt the engine should find cached.
type prediction struct{ believed, all scoring.Tokens }

func newHeld(name string, cfg Config) *held {
	h := &held{name: name, cfg: cfg, blocks: newStack(), waiting: make(map[*scoring.Reservation]prediction)}
	h.resizeLocked()
	return h
}

// setReady forgets what was routed before an endpoint was down whose counters
// do not tell whether it is the same as before.
func (h *held) setReady(ready bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ready && h.down && (h.told == nil || h.told.Several) {
		h.forgetLocked()
	}
	h.down = !ready
}

// capacityLocked is how many tokens the engine holds on its GPU and in its
// host's memory. Without prefix caching the first is of no use to anybody, but
// LMCache still reuses what it has. Caller must hold mu.
func (h *held) capacityLocked() (gpu, host scoring.Tokens) {
	gpu, host = h.cfg.CapacityTokens, h.cfg.HostTokens
	if h.told != nil {
		if h.told.CapacityTokens > 0 {
			gpu = h.told.CapacityTokens
		}
		if h.told.PrefixCaching == counters.SwitchOff {
			gpu = 0
		}
		if host == 0 {
			host = h.told.HostTokens
		}
	}
	return min(gpu, mostTokens), min(host, mostTokens)
}

// mostTokens bounds what is remembered of an endpoint's GPU, and of its host,
// whatever it says: it is ten times a large host tier.
const mostTokens = 20_000_000

// resizeLocked brings the tiers to the capacity, as far as it is believed.
// Caller must hold mu.
func (h *held) resizeLocked() {
	gpu, host := h.capacityLocked()
	total := int((gpu + host) / block)
	believed := int(float64(total) * shares[h.guard.level])
	var room [tiers]int
	room[onGPU] = min(believed, int(gpu/block))
	room[inHost] = believed - room[onGPU]
	room[doubted] = total - believed
	if room != h.blocks.room {
		h.blocks.resize(room)
	}
}

// forgetLocked empties it. Requests that are on their way stay known by their
// first token. Caller must hold mu.
func (h *held) forgetLocked() {
	h.blocks = newStack()
	h.guard = guard{}
	clear(h.waiting)
	h.resizeLocked()
}

// observe takes in a reading. It returns the share of the capacity that was
// believed, and that which now is.
func (h *held) observe(r *counters.Reading, restarted bool) (before, now float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before = shares[h.guard.level]
	last := h.told
	h.told = r
	switch {
	case restarted, last != nil && !last.Several && r.CacheResets > last.CacheResets:
		h.forgetLocked()
	case last != nil && r.Counted && last.Counted:
		h.guard.counted(r.PrefixHits+r.ExternalHits-last.PrefixHits-last.ExternalHits, r.Ranks)
	}
	h.resizeLocked()
	return before, shares[h.guard.level]
}

// match is what is believed to be held of a chain. The engine finds whole
// blocks of its own size, and never the last token of a prompt.
func (h *held) match(chain []uint64, length scoring.Tokens) scoring.Match {
	h.mu.RLock()
	defer h.mu.RUnlock()
	upTo := h.blocks.leading(chain)
	cached := h.foundLocked(upTo[inHost], length)
	if cached == 0 {
		return scoring.Match{}
	}
	if onGPU := h.foundLocked(upTo[onGPU], length); onGPU == 0 {
		return scoring.Match{Cached: cached, Spans: []scoring.Span{h.hostSpan(cached)}}
	} else if onGPU < cached {
		return scoring.Match{Cached: cached, Spans: []scoring.Span{{End: onGPU, Location: Location}, h.hostSpan(cached)}}
	}
	return scoring.Match{Cached: cached, Spans: []scoring.Span{{End: cached, Location: Location}}}
}

func (h *held) hostSpan(end scoring.Tokens) scoring.Span {
	return scoring.Span{End: end, Location: LocationHost, SecondsPerToken: h.cfg.HostSecondsPerToken}
}

// foundLocked is how many tokens the engine finds, of a prompt of that length
// whose first so many blocks of ours it has. Caller must hold mu.
func (h *held) foundLocked(blocks int, length scoring.Tokens) scoring.Tokens {
	n := min(scoring.Tokens(blocks)*block, length-1)
	if h.told != nil && h.told.BlockSize > 0 {
		n -= n % h.told.BlockSize
	}
	return max(0, n)
}

// decided puts the blocks of a prompt on top.
func (h *held) decided(r *scoring.Reservation, p *scoring.Prompt, root uint64) {
	chains := chainsOf(p, root)
	h.mu.Lock()
	defer h.mu.Unlock()
	var predicted prediction
	for s, chain := range chains {
		upTo := h.blocks.leading(chain)
		predicted.believed += h.foundLocked(upTo[inHost], p.Sequences[s].Length)
		predicted.all += h.foundLocked(upTo[doubted], p.Sequences[s].Length)
		h.blocks.put(chain, false)
	}
	if !p.NoCache {
		h.waiting[r] = predicted
	}
}

// computed puts the blocks of a prompt on top and marks them as held.
func (h *held) computed(p *scoring.Prompt, root uint64) {
	chains := chainsOf(p, root)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, chain := range chains {
		h.blocks.put(chain, true)
	}
}

// settle closes a prediction: the request was served there, so that the engine
// has counted what it found, or it was not.
func (h *held) settle(r *scoring.Reservation, servedThere bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p, ok := h.waiting[r]; ok {
		delete(h.waiting, r)
		if servedThere {
			h.guard.predicted(p.believed, p.all)
		}
	}
}
