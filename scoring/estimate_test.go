package scoring

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// A first token comes with the end of an engine's step, however little of it the
// prefill takes: a short prompt is expected after a whole step, a long one after
// what it computes, and no policy tells otherwise.
func TestEstimateCoversAWholeStep(t *testing.T) {
	const token, step = 1e-4, 0.01 // the priors
	for _, policy := range PolicyIDs() {
		for _, c := range []struct {
			tokens Tokens
			want   float64
		}{
			{10, token*(10+55/30000.) + step},
			{4096, token*(4096+4096*4097/2/30000.) + step},
			{3 * 8192, token*(24576+24576*24577/2/30000.) + 3*step},
		} {
			t.Run(fmt.Sprint(policy, " ", c.tokens), func(t *testing.T) {
				cfg := DefaultConfig()
				cfg.Policy = policy
				p, err := NewPicker(cfg, func() time.Time { return time.Unix(0, 0) }, rand.New(rand.NewPCG(1, 2)))
				if err != nil {
					t.Fatal(err)
				}
				p.SetEndpoints([]Endpoint{{ID: 1, Address: "a:1", Ready: true}})
				d, err := p.Pick("1", &Prompt{Sequences: []Sequence{{Length: c.tokens, Copies: 1}}, Streamed: true})
				if err != nil {
					t.Fatal(err)
				}
				if got := d.Estimate().Seconds(); got < c.want-1e-6 || got > c.want+1e-6 {
					t.Errorf("estimate %gs, want %gs", got, c.want)
				}
			})
		}
	}
}
