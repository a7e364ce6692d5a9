package scoring

import "slices"

// heldOrder has the requests that are held, in the order in which they may go.
// Those of one model have the same endpoints to choose from and are a group: once
// none of these is free, nothing of the group can go, however many wait. What it
// costs to hold many is so the cost of those that go. It is guarded by ledger.mu;
// each request in it has a client that waits, which bounds it.
type heldOrder struct {
	groups []*heldGroup // none is empty
	count  int
}

// heldGroup is the requests for one model, as clients name it.
type heldGroup struct {
	key groupKey
	// endpoints may serve the model; accounts are theirs, in the same order.
	endpoints []Endpoint
	accounts  []*account
	// order is by key, among equals by arrival.
	order []*Held
	// asked and gone count the requests that a pass has asked and those of them
	// that went.
	asked, gone int
}

// before reports whether h may go before other.
func (h *Held) before(other *Held) bool {
	if h.key != other.key {
		return h.key < other.key
	}
	return h.number < other.number
}

// groupKey names a group. Models that no endpoint is known to serve are one group:
// their names are the clients', their endpoints the same.
type groupKey struct {
	model  string
	listed bool
}

// group is that of a key; nil: nothing is held for it.
func (o *heldOrder) group(key groupKey) *heldGroup {
	for _, g := range o.groups {
		if g.key == key {
			return g
		}
	}
	return nil
}

// insert takes h in, in the group that it names.
func (o *heldOrder) insert(h *Held) {
	g := h.group
	if len(g.order) == 0 {
		o.groups = append(o.groups, g)
	}
	at, _ := g.find(h)
	g.order = slices.Insert(g.order, at, h)
	o.count++
}

// remove takes h out.
func (o *heldOrder) remove(h *Held) {
	g := h.group
	at, found := g.find(h)
	if !found {
		return
	}
	g.order = slices.Delete(g.order, at, at+1)
	o.count--
	o.sweep()
}

// find is the place of h in its group's order.
func (g *heldGroup) find(h *Held) (at int, found bool) {
	return slices.BinarySearchFunc(g.order, h, func(a, b *Held) int {
		switch {
		case a == b:
			return 0
		case a.before(b):
			return -1
		}
		return 1
	})
}

// pass asks of each request in order whether it goes, and takes out those that
// do, until no account that any of the rest could go to is free. What is not
// free must not become it meanwhile.
func (o *heldOrder) pass(free func(*account) bool, goes func(*Held) bool) {
	for _, g := range o.groups {
		g.asked, g.gone = 0, 0
	}
	for g := o.next(free); g != nil; g = o.next(free) {
		if goes(g.order[g.asked]) {
			g.order[g.asked] = nil
			g.gone++
		}
		g.asked++
	}
	for _, g := range o.groups {
		g.compact()
		o.count -= g.gone
	}
	o.sweep()
}

// next is the group whose turn it is in a pass; nil: the pass is over.
func (o *heldOrder) next(free func(*account) bool) *heldGroup {
	var first *heldGroup
	for _, g := range o.groups {
		if g.asked == len(g.order) || first != nil && first.order[first.asked].before(g.order[g.asked]) {
			continue
		}
		if slices.ContainsFunc(g.accounts, free) {
			first = g
		}
	}
	return first
}

// compact closes the gaps among those that were asked: they are few, so they are
// moved towards the others.
func (g *heldGroup) compact() {
	if g.gone == 0 {
		return
	}
	to := g.asked
	for from := g.asked - 1; from >= 0; from-- {
		if h := g.order[from]; h != nil {
			to--
			g.order[to] = h
		}
	}
	clear(g.order[:to])
	g.order = g.order[to:]
}

// sweep drops the groups that are empty.
func (o *heldOrder) sweep() {
	o.groups = slices.DeleteFunc(o.groups, func(g *heldGroup) bool { return len(g.order) == 0 })
}
