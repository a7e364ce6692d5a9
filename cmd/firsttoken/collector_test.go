package main

import "testing"

func TestCollectorPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 1600},
		{8 << 20, 1600},
		{32 << 20, 400},
		{128 << 20, 100},
		{4 << 30, 100},
	} {
		if got := collectorPercent(c.live); got != c.want {
			t.Errorf("%d MiB live: GOGC %d, want %d", c.live>>20, got, c.want)
		}
	}
}
