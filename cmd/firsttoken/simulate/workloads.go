package simulate

import (
	"time"

	"github.com/firsttoken/firsttoken/simulator/replay"
)

// made is a workload that is made up, not read.
type made struct {
	name string
	// about says what it is, for help.
	about string
	// block is the size of its blocks; requests is about how many it has.
	block, requests int
	// warm is when its clients begin; what comes before makes the engines ready.
	warm time.Duration
	// paced: its requests come whether others are answered or not, so that it has
	// a speed.
	paced bool
	begin func(seed uint64, speed float64) replay.Workload
}

// workloads are those that --workload knows.
func workloads() []made {
	multi, shared, agents := replay.Experiment1(), replay.Experiment2(), replay.AgentFanOut()
	return []made{
		{
			name: "multi-round", about: "15 users ask 10 questions each, with all that was said before",
			block: multi.BlockTokens, requests: multi.Users * multi.Rounds,
			begin: func(seed uint64, _ float64) replay.Workload {
				w := multi
				w.Seed = seed
				return w.Workload()
			},
		},
		{
			name: "shared-prefix", about: "5 clients send 20 long prompts each that begin alike",
			block: shared.BlockTokens, requests: shared.Clients * shared.Requests, warm: shared.Begin,
			begin: func(uint64, float64) replay.Workload { return shared.Workload() },
		},
		{
			name: "fan-out", about: "600 groups of 8 prompts that come almost at once and share a fresh prefix",
			block: agents.BlockTokens, requests: agents.Groups * agents.Size, paced: true,
			begin: func(seed uint64, speed float64) replay.Workload {
				w := agents
				w.Seed, w.Gap = seed, time.Duration(float64(w.Gap)/speed)
				return w.Workload()
			},
		},
	}
}

func workloadByName(name string) (made, bool) {
	for _, w := range workloads() {
		if w.name == name {
			return w, true
		}
	}
	return made{}, false
}

// Workloads are the names that --workload knows, each with what it is.
func Workloads() (names, about []string) {
	for _, w := range workloads() {
		names, about = append(names, w.name), append(about, w.about)
	}
	return names, about
}
