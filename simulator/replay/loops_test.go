package replay_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
	"github.com/firsttoken/firsttoken/simulator/replay"
	"github.com/firsttoken/firsttoken/simulator/trace"
	"github.com/firsttoken/firsttoken/test/shared"
)

// fleet is n engines of a known kind as the published experiments have them.
func fleet(t *testing.T, profile string, n int, policy string) replay.Setup {
	t.Helper()
	p, err := simulator.ProfileByName(profile)
	if err != nil {
		t.Fatal(err)
	}
	s := replay.Setup{Policy: policy, Scoring: scoring.DefaultConfig(), EventDelay: replay.DefaultEventDelay, Seed: 1}
	s.Scoring.BatchTokens, s.Scoring.KVAwareThreshold = scoring.Tokens(p.BatchTokens), 0
	for range n {
		s.Endpoints = append(s.Endpoints, replay.Endpoint{Profile: p})
	}
	return s
}

// mean is the mean time to first token, in seconds.
func mean(r *replay.Report) float64 {
	var sum time.Duration
	for _, q := range r.Requests {
		sum += q.TTFT
	}
	return sum.Seconds() / float64(len(r.Requests))
}

// within checks a figure against a published one.
func within(t *testing.T, what string, got, least, most float64) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s: %.3f, want %.3f to %.3f", what, got, least, most)
	}
}

// TestExperiment1 follows each user's rounds, and compares the mean with the
// published 0.52 s, which is of one draw of histories: the prefills of 15 of them
// by two engines are most of it.
func TestExperiment1(t *testing.T) {
	of := func(policy string) float64 {
		var sum float64
		for seed := range uint64(8) {
			s := fleet(t, "3090-7b", 2, policy)
			s.BlockTokens, s.Seed = 16, seed
			m := replay.Experiment1()
			m.Seed = seed
			r := run(t, s, m.Workload())
			if len(r.Requests) != 150 {
				t.Fatalf("%d requests of 15 users in 10 rounds", len(r.Requests))
			}
			// What was said before grows by question and answer, which are found.
			rounds := map[int][]replay.Request{}
			for _, q := range r.Requests {
				rounds[q.Prompt%144] = append(rounds[q.Prompt%144], q)
			}
			for _, of := range rounds {
				for i, q := range of[1:] {
					if before := of[i]; q.Prompt == before.Prompt+144 {
						if gap := q.At - before.At; gap < 4500*ms {
							t.Errorf("a user asks again after %s", gap)
						}
						if q.Endpoint == before.Endpoint && q.Cached < before.Prompt+96-32 {
							t.Errorf("%+v finds less than %+v left", q, before)
						}
					}
				}
			}
			sum += mean(r)
		}
		return sum / 8
	}
	seed := of("trapezoid")
	within(t, "trapezoid", seed, .52/1.15, .52*1.15)
	within(t, "ttft by trapezoid", of("ttft")/seed, .95, 1.05)
}

// TestExperiment2 reproduces the published figures: 3.53 s, the longest match
// 2.2 times that, since one engine has the beginning and gets all; ttft as much.
func TestExperiment2(t *testing.T) {
	of := func(policy string) float64 {
		s := fleet(t, "3090-7b", 2, policy)
		s.BlockTokens, s.Warm = 16, time.Second
		w := replay.Experiment2()
		r := run(t, s, w.Workload())
		if len(r.Requests) != 100 {
			t.Fatalf("%d requests of 5 clients of 20 each", len(r.Requests))
		}
		for _, sample := range r.Queue {
			if sample.Waiting+sample.Running > 5 {
				t.Fatalf("%+v with 5 clients", sample)
			}
		}
		return mean(r)
	}
	seed := of("trapezoid")
	within(t, "trapezoid", seed, 3.53*.95, 3.53*1.05)
	within(t, "longest match by trapezoid", of("kvaware")/seed, 2.2*.95, 2.2*1.05)
	within(t, "ttft by trapezoid", of("ttft")/seed, .95, 1.05)
}

// TestFanOut: where groups come at twice the pace, only who counts on what is
// under way keeps up; at the published pace it saves a sixth.
func TestFanOut(t *testing.T) {
	of := func(policy string, gap time.Duration) float64 {
		f := replay.AgentFanOut()
		f.Gap = gap
		return mean(run(t, fleet(t, "h100-8b-cpu", 4, policy), f.Workload()))
	}
	within(t, "ttft by trapezoid", of("ttft", 730*ms)/of("trapezoid", 730*ms), .84*.95, .84*1.05)
	within(t, "ttft at half the gap", of("ttft", 365*ms), .37*.9, .37*1.1)
	within(t, "trapezoid at half the gap", of("trapezoid", 365*ms), 1, 100)
}

// TestConversations replays the conversations that the policy was planned with,
// on four engines at 0.85 of what they carry: the step model gives trapezoid the
// seconds of the planning simulator, and ttft its ratio.
func TestConversations(t *testing.T) {
	name := shared.File(t, "traces", "conversation_0_2400s.jsonl")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	conversations, err := trace.Read(trace.Options{}, trace.Source{Name: name, Content: bytes.NewReader(text)})
	if err != nil {
		t.Fatal(err)
	}
	const speed = 1.216
	requests := trace.Spread(conversations.Requests, 1)
	for i := range requests {
		requests[i].At = time.Duration(float64(requests[i].At) / speed)
	}
	of := func(policy string) float64 {
		s := fleet(t, "h100-8b-cpu", 4, policy)
		s.Warm = 300 * time.Second * 1000 / 1216
		return mean(run(t, s, replay.Open(requests)))
	}
	seed := of("trapezoid")
	within(t, "trapezoid", seed, .81*.95, .87*1.05)
	within(t, "ttft by trapezoid", of("ttft")/seed, .86*.95, .89*1.05)
}
