package replay_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
	"github.com/firsttoken/firsttoken/simulator/replay"
	"github.com/firsttoken/firsttoken/simulator/trace"
	"github.com/firsttoken/firsttoken/test/shared"
)

// BenchmarkTrace replays 40 minutes of conversations over 8 engines, once per
// turn, and tells how many requests a minute that is.
func BenchmarkTrace(b *testing.B) {
	name := shared.File(b, "traces", "conversation_0_2400s.jsonl")
	text, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	t, err := trace.Read(trace.Options{}, trace.Source{Name: name, Content: bytes.NewReader(text)})
	if err != nil {
		b.Fatal(err)
	}
	requests := trace.Spread(t.Requests, 1)
	for i := range requests {
		requests[i].At = requests[i].At * 1000 / 2486
	}
	p, err := simulator.ProfileByName("h100-8b-cpu")
	if err != nil {
		b.Fatal(err)
	}
	for _, policy := range []string{"ttft", "trapezoid", "roundrobin", "oracle"} {
		b.Run(policy, func(b *testing.B) {
			s := replay.Setup{Policy: policy, Scoring: scoring.DefaultConfig(), EventDelay: replay.DefaultEventDelay, Seed: 1}
			for range 8 {
				s.Endpoints = append(s.Endpoints, replay.Endpoint{Profile: p})
			}
			for b.Loop() {
				if _, err := replay.Run(context.Background(), s, replay.Open(requests)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*len(requests))/b.Elapsed().Minutes(), "requests/min")
			b.ReportMetric(0, "ns/op")
		})
	}
}
