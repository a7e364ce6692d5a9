package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// endings is an observer of ends alone.
type endings struct {
	extproc.Observer
	at chan time.Time
}

// Ended notes when it was told.
func (e endings) Ended(*scoring.Decision, scoring.Outcome, string) { e.at <- time.Now() }

// What ends by age is told of in time, however often the time changes at which
// something that is held may go.
func TestEndsByAgeAreToldInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := scoring.DefaultConfig()
		cfg.Policy, cfg.Hold.Enabled = scoring.PolicyTTFT, true
		picker, err := scoring.NewPicker(cfg, time.Now, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		picker.SetEndpoints([]scoring.Endpoint{
			{ID: 1, Name: "a", Models: []string{"lost"}, Ready: true}, {ID: 2, Name: "b", Models: []string{"busy"}, Ready: true},
		})
		ends := endings{at: make(chan time.Time, 1)}
		s := &service{picker: picker, observe: observers{ends}}
		ctx, cancel := context.WithCancel(t.Context())
		expired := make(chan error, 1)
		go func() { expired <- s.expire(ctx) }()

		pick := func(id, model string, n scoring.Tokens) *scoring.Reservation {
			d, err := picker.Pick(id, estimatedPrompt(model, n))
			if err != nil {
				t.Fatal(err)
			}
			return d.Reservation
		}
		pick("lost", "lost", 100)
		const age = time.Minute // of a short prompt of which nothing is heard
		dropped := time.Now()
		busy := pick("busy", "busy", 20_000)
		for n := range 1300 {
			if n%20 == 0 { // each second, long before it is done
				busy.End()
				busy = pick(fmt.Sprint("busy ", n), "busy", 20_000)
			}
			_, held, err := picker.Offer(fmt.Sprint(n), estimatedPrompt("busy", 100), func(*scoring.Decision, error) { t.Error("released") })
			if err != nil || held == nil {
				t.Fatalf("not held while the only endpoint is busy: %v", err)
			}
			time.Sleep(expireInterval / 2)
			held.Cancel()
		}
		busy.End()
		cancel()
		if err := <-expired; err != nil {
			t.Error(err)
		}
		select {
		case at := <-ends.at:
			if late := at.Sub(dropped) - age; late < 0 || late > expireInterval {
				t.Errorf("told %s after the age of what was lost", late)
			}
		default:
			t.Error("not told of what was lost")
		}
	})
}

func estimatedPrompt(model string, n scoring.Tokens) *scoring.Prompt {
	return &scoring.Prompt{Model: model, Streamed: true, Source: scoring.TokensEstimated, Sequences: []scoring.Sequence{{Length: n, Copies: 1}}}
}
