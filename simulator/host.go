package simulator

import (
	"container/list"
	"slices"
)

// host is the tier behind the KV memory: a set of chunks, least recently used
// first to go.
type host struct {
	chunks int // capacity
	byKey  map[Key]*list.Element
	order  list.List // of Key; the front goes first
}

func newHost(chunks int) *host {
	return &host{chunks: chunks, byKey: make(map[Key]*list.Element)}
}

// match is the length of the longest run of stored chunks from the first on.
func (h *host) match(keys []Key) int {
	for i, k := range keys {
		if h.byKey[k] == nil {
			return i
		}
	}
	return len(keys)
}

// touch makes chunks the last to go, the first of them last of all: without its
// beginning the rest of a prefix is of no use.
func (h *host) touch(keys []Key) {
	for _, k := range slices.Backward(keys) {
		if e := h.byKey[k]; e != nil {
			h.order.MoveToBack(e)
		}
	}
}

// store keeps the chunks of one prompt and appends to changes those that are new
// and those that had to go for them. A prompt larger than the tier keeps its
// beginning.
func (h *host) store(keys []Key, changes []HostChange) []HostChange {
	keys = keys[:min(len(keys), h.chunks)]
	h.touch(keys)
	for _, k := range keys {
		if h.byKey[k] != nil {
			continue
		}
		if h.order.Len() == h.chunks {
			oldest := h.order.Remove(h.order.Front()).(Key)
			delete(h.byKey, oldest)
			changes = append(changes, HostChange{oldest, true})
		}
		h.byKey[k] = h.order.PushBack(k)
		changes = append(changes, HostChange{k, false})
	}
	h.touch(keys)
	return changes
}

// keys lists what is stored, the next to go first.
func (h *host) keys() []Key {
	all := make([]Key, 0, h.order.Len())
	for e := h.order.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(Key))
	}
	return all
}
