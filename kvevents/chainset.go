package kvevents

import "math/rand/v2"

// chainSet counts chain hashes. It is a table with open addressing: a prompt is
// looked up block by block in every engine's, and its keys, hashes already and
// side by side, are found in a fifth of the time that a map takes.
//
// Its zero value is empty. The bound is its owner's.
type chainSet struct {
	// keys are 0 where a slot is free; counts belong to them. Their length is a
	// power of two, at most three quarters are in use.
	keys   []uint64
	counts []uint32
	used   int
	// factor scatters the keys in a way that nobody who chooses token ids can
	// foresee; shift leaves the highest bits.
	factor uint64
	shift  uint
}

const leastSlots = 16

// len is how many different hashes there are.
func (c *chainSet) len() int { return c.used }

// keyOf is the hash as it is kept: never 0.
func keyOf(chain uint64) uint64 { return max(1, chain) }

// home is where a key is looked for first.
func (c *chainSet) home(key uint64) int {
	return int((key ^ key>>29) * c.factor >> c.shift) //nolint:gosec // Fewer bits than an int has.
}

// find is the slot that has the key, or the free one where it would be. The
// table is not empty.
func (c *chainSet) find(key uint64) int {
	mask := len(c.keys) - 1
	at := c.home(key)
	for c.keys[at] != 0 && c.keys[at] != key {
		at = (at + 1) & mask
	}
	return at
}

// has reports whether the hash was added more often than removed.
func (c *chainSet) has(chain uint64) bool {
	return c.used > 0 && c.keys[c.find(keyOf(chain))] != 0
}

func (c *chainSet) add(chain uint64) {
	if 4*(c.used+1) > 3*len(c.keys) {
		c.grow()
	}
	key := keyOf(chain)
	at := c.find(key)
	if c.keys[at] == 0 {
		c.keys[at] = key
		c.used++
	}
	c.counts[at]++
}

// remove takes one back that was added.
func (c *chainSet) remove(chain uint64) {
	at := c.find(keyOf(chain))
	if c.counts[at]--; c.counts[at] > 0 {
		return
	}
	c.used--
	c.keys[at] = 0
	// What was put behind this slot because it was taken moves up.
	mask := len(c.keys) - 1
	for next := (at + 1) & mask; c.keys[next] != 0; next = (next + 1) & mask {
		if (next-c.home(c.keys[next]))&mask >= (next-at)&mask {
			c.keys[at], c.counts[at] = c.keys[next], c.counts[next]
			c.keys[next], c.counts[next] = 0, 0
			at = next
		}
	}
}

// grow makes room for twice as many.
func (c *chainSet) grow() {
	keys, counts := c.keys, c.counts
	size := max(leastSlots, 2*len(keys))
	c.keys, c.counts = make([]uint64, size), make([]uint32, size)
	c.shift = 64
	for n := size; n > 1; n /= 2 {
		c.shift--
	}
	if c.factor == 0 {
		c.factor = rand.Uint64() | 1 //nolint:gosec // It cannot be seen from outside.
	}
	for i, key := range keys {
		if key != 0 {
			at := c.find(key)
			c.keys[at], c.counts[at] = key, counts[i]
		}
	}
}
