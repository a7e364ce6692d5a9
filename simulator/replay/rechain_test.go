package replay

import "testing"

// TestRechain: names of a trace are small numbers that follow each other; the
// parts of one block are told from those of every other.
func TestRechain(t *testing.T) {
	seen := make(map[uint64]bool)
	for k := range uint64(1000) {
		for _, name := range append(rechain([]uint64{k}, 512), rechain([]uint64{k << 32}, 128)...) {
			if k > 0 && seen[name] {
				t.Fatalf("a part of block %d has the name of another", k)
			}
			seen[name] = true
		}
	}
	if n := len(rechain([]uint64{1, 2, 3, 4, 5}, 16)); n != 1 {
		t.Errorf("5 blocks of 16 tokens are %d of 64, want 1", n)
	}
}
