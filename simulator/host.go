package simulator

import (
	"maps"
	"slices"
)

// host is the tier behind the KV memory: a set of chunks, least recently used
// first to go.
type host struct {
	chunks int // capacity
	byKey  map[Key]int32
	// entries are the chunks in a ring; entries[0] is its sentinel, whose next is
	// the first to go.
	entries []hostEntry
	shared  *Shared // told of what comes and goes; nil: nobody is
	// of is the tier that this one looks ahead of, as long as it is no copy of it;
	// nil elsewhere. What was to be done since then waits in later, and stored
	// says whether any of it changes what is held.
	of     *host
	later  []deferred
	stored bool
}

// deferred are chunks to be touched or stored.
type deferred struct {
	keys  []Key
	store bool
}

type hostEntry struct {
	key        Key
	prev, next int32
}

func newHost(chunks int, shared *Shared) *host {
	return &host{chunks: chunks, byKey: make(map[Key]int32), entries: make([]hostEntry, 1), shared: shared}
}

// ahead is a tier that may change while h does not, and tells shared of it.
// Mostly a look ahead ends before anybody finds what was stored in it, so the
// tier, which is large, is copied only then.
func (h *host) ahead(shared *Shared) *host {
	if h.of != nil {
		return &host{shared: shared, of: h.of, later: slices.Clone(h.later), stored: h.stored}
	}
	return &host{shared: shared, of: h}
}

// copied makes h a tier of its own.
func (h *host) copied() {
	later := h.later
	*h = host{shared: h.shared, chunks: h.of.chunks, byKey: maps.Clone(h.of.byKey), entries: slices.Clone(h.of.entries)}
	for _, d := range later {
		if d.store {
			h.store(d.keys, nil)
		} else {
			h.touch(d.keys)
		}
	}
}

// match is the length of the longest run of stored chunks from the first on.
func (h *host) match(keys []Key) int {
	if h.of != nil && !h.stored {
		return h.of.match(keys)
	}
	if h.of != nil {
		h.copied()
	}
	for i, k := range keys {
		if _, ok := h.byKey[k]; !ok {
			return i
		}
	}
	return len(keys)
}

// touch makes chunks the last to go, the first of them last of all: without its
// beginning the rest of a prefix is of no use.
func (h *host) touch(keys []Key) {
	if h.of != nil {
		h.later = append(h.later, deferred{keys: keys})
		return
	}
	for _, k := range slices.Backward(keys) {
		if i, ok := h.byKey[k]; ok && h.entries[0].prev != i {
			h.unlink(i)
			h.append(i)
		}
	}
}

func (h *host) unlink(i int32) {
	e := &h.entries[i]
	h.entries[e.prev].next, h.entries[e.next].prev = e.next, e.prev
}

// append makes an entry that is not in the ring the last to go.
func (h *host) append(i int32) {
	last := h.entries[0].prev
	h.entries[i].prev, h.entries[i].next = last, 0
	h.entries[last].next, h.entries[0].prev = i, i
}

// store keeps the chunks of one prompt and appends to changes those that are new
// and those that had to go for them. A prompt larger than the tier keeps its
// beginning. One that looks ahead appends nothing.
func (h *host) store(keys []Key, changes []HostChange) []HostChange {
	if h.of != nil {
		h.later, h.stored = append(h.later, deferred{keys: keys, store: true}), true
		return changes
	}
	keys = keys[:min(len(keys), h.chunks)]
	h.touch(keys)
	for _, k := range keys {
		if _, ok := h.byKey[k]; ok {
			continue
		}
		i := int32(len(h.entries)) //nolint:gosec // bounded by chunks, which fits
		if len(h.byKey) == h.chunks {
			i = h.entries[0].next
			oldest := h.entries[i].key
			h.unlink(i)
			delete(h.byKey, oldest)
			h.shared.lose(oldest)
			changes = append(changes, HostChange{oldest, true})
		} else {
			h.entries = append(h.entries, hostEntry{})
		}
		h.entries[i].key = k
		h.append(i)
		h.byKey[k] = i
		h.shared.gain(k)
		changes = append(changes, HostChange{k, false})
	}
	h.touch(keys)
	return changes
}

// keys lists what is stored, the next to go first.
func (h *host) keys() []Key {
	if h.of != nil {
		h.copied()
	}
	all := make([]Key, 0, len(h.byKey))
	for i := h.entries[0].next; i != 0; i = h.entries[i].next {
		all = append(all, h.entries[i].key)
	}
	return all
}

// Shared is what the host tiers of several engines hold together, so that each
// can read what another has. It belongs to the goroutine of those engines.
type Shared struct {
	holders map[Key]int // bounded by the tiers
	// under is what a look ahead began with: its holders are more or less than
	// those. Nil elsewhere.
	under *Shared
}

// NewShared is for engines to come; Options takes it.
func NewShared() *Shared { return &Shared{holders: make(map[Key]int)} }

// Holds reports whether any engine's host tier has a chunk.
func (s *Shared) Holds(k Key) bool {
	n := 0
	for ; s != nil; s = s.under {
		n += s.holders[k]
	}
	return n > 0
}

func (s *Shared) gain(k Key) { s.add(k, 1) }
func (s *Shared) lose(k Key) { s.add(k, -1) }

func (s *Shared) add(k Key, n int) {
	if s == nil {
		return
	}
	if s.holders[k] += n; s.holders[k] == 0 {
		delete(s.holders, k)
	}
}

// ahead may change while s does not.
func (s *Shared) ahead() *Shared {
	if s == nil {
		return nil
	}
	return &Shared{holders: make(map[Key]int), under: s}
}

// Drop forgets what one engine held that is gone, as its HostKeys last told.
func (s *Shared) Drop(keys []Key) {
	for _, k := range keys {
		s.lose(k)
	}
}
