package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// garbageRoom is how much garbage may gather before the collector runs, where
// Go's own rule, as much as there is live, would be less. A decision leaves 30
// to 200 KB behind, and what is live is often some 20 MB: by that rule the
// collector would run ten times a second, for a tenth of the CPU time.
const garbageRoom = 128 << 20

// collectorInterval is how often what is live is looked at: it grows over
// minutes, with what is remembered of prompts.
const collectorInterval = 5 * time.Second

// tuneCollector keeps the collector's pace to garbageRoom until ctx ends. A
// GOGC in the environment is obeyed instead; GOMEMLIMIT bounds either.
func tuneCollector(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	ticker := time.NewTicker(collectorInterval)
	defer ticker.Stop()
	set := 0
	for {
		metrics.Read(live)
		// Setting it stops the world for a moment.
		if percent := collectorPercent(live[0].Value.Uint64()); percent < set*3/4 || percent > set*5/4 {
			debug.SetGCPercent(percent)
			set = percent
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// collectorPercent is GOGC for so many live bytes: garbageRoom of garbage, or as
// much as is live where that is more.
func collectorPercent(live uint64) int {
	const usual, most = 100, 1600 // 1600: before anything was collected, live is 0
	return int(min(max(garbageRoom*100/max(live, 1), usual), most))
}
