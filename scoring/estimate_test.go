package scoring

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestEstimateFollowsTheMedian: first tokens come later than work says, by the
// engine's steps and the network; whatever that comes to, half of them are
// predicted too late and half too soon, under every policy, and a few that take
// for ever do not matter.
func TestEstimateFollowsTheMedian(t *testing.T) {
	for _, policy := range PolicyIDs() {
		for _, rest := range []time.Duration{time.Millisecond, 14 * time.Millisecond, 90 * time.Millisecond} {
			t.Run(fmt.Sprint(policy, " ", rest), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(1, 1))
				now := time.Unix(0, 0)
				cfg := DefaultConfig()
				cfg.Policy = policy
				p, err := NewPicker(cfg, func() time.Time { return now }, rand.New(rand.NewPCG(1, 2)), fakeIndex{"a:1": 2990})
				if err != nil {
					t.Fatal(err)
				}
				p.SetEndpoints([]Endpoint{{ID: 1, Address: "a:1", Ready: true}})
				late, n := 0, 0
				for i := range 1000 {
					now = now.Add(time.Second)
					d, err := p.Pick(fmt.Sprint(i), textPrompt(3000, true))
					if err != nil {
						t.Fatal(err)
					}
					took := exact(d.Candidates[0].Work) + time.Duration(2*rng.Float64()*float64(rest))
					if rng.IntN(100) == 0 {
						took = time.Minute
					}
					if i > 200 {
						if n++; took > d.Estimate() {
							late++
						}
					}
					now = now.Add(took)
					d.Reservation.FirstToken()
					d.Reservation.End()
				}
				if share := float64(late) / float64(n); share < 0.4 || share > 0.6 {
					t.Errorf("%.2f of the first tokens came after the estimate", share)
				}
			})
		}
	}
}
