package scoring

import (
	"math/rand/v2"
	"testing"
	"time"
)

// An endpoint is heard of by first chunks and by what it tells of prompts, and by
// nothing else.
func TestHeard(t *testing.T) {
	now := time.Unix(1000, 0)
	cfg := DefaultConfig()
	cfg.Policy = PolicyRoundRobin
	p, err := NewPicker(cfg, func() time.Time { return now }, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	p.SetEndpoints([]Endpoint{
		{ID: 1, Name: "a", Address: "10.0.0.1:1", Ready: true}, {ID: 2, Name: "b", Address: "10.0.0.2:1", Ready: true},
	})
	pick := func(id string, streamed bool) *Reservation {
		t.Helper()
		d, err := p.Pick(id, &Prompt{Streamed: streamed, Sequences: []Sequence{{Length: 100, Copies: 1}}})
		if err != nil {
			t.Fatal(err)
		}
		return d.Reservation
	}
	address := func(r *Reservation) string { e, _ := r.Endpoint(); return e.Address }
	first, second := pick("1", true), pick("2", false)
	for i, tell := range []struct {
		by   *Reservation
		news func(r *Reservation, at EndpointID)
	}{
		{first, func(r *Reservation, at EndpointID) { r.Computed(at, 0, 10) }},
		{first, func(r *Reservation, at EndpointID) { r.Prefilled(at) }},
		{first, func(r *Reservation, _ EndpointID) { r.FirstToken() }},
		{second, func(r *Reservation, _ EndpointID) { r.FirstToken() }}, // also of an answer that is whole
	} {
		now = now.Add(time.Second)
		at, _ := tell.by.Endpoint()
		tell.news(tell.by, at.ID)
		if got := p.Heard(at.Address); !got.Equal(now) {
			t.Errorf("%d: heard of %s at %s, want %s", i, at.Address, got, now)
		}
	}
	before := p.Heard(address(first))
	now = now.Add(time.Minute)
	first.FirstToken() // again
	first.End()
	pick("3", true)
	p.Expire()
	if got := p.Heard("10.0.0.1:1"); got.After(before) && got.Equal(now) {
		t.Errorf("heard at %s of an endpoint that said nothing", got)
	}
	if got := p.Heard("192.0.2.1:1"); !got.IsZero() {
		t.Errorf("heard of no endpoint at %s", got)
	}
}

// A booking whose first token is waited for is not given up before.
func TestAwait(t *testing.T) {
	now := time.Unix(1000, 0)
	p, err := NewPicker(DefaultConfig(), func() time.Time { return now }, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	p.SetEndpoints([]Endpoint{{ID: 1, Name: "a", Address: "10.0.0.1:1", Ready: true}})
	for _, c := range []struct {
		wait, want time.Duration // want: when it is given up
	}{{0, minQueuedAge}, {time.Second, minQueuedAge}, {3 * time.Minute, 3 * time.Minute}} {
		d, err := p.Pick(c.wait.String(), &Prompt{Streamed: true, Sequences: []Sequence{{Length: 100, Copies: 1}}})
		if err != nil {
			t.Fatal(err)
		}
		d.Reservation.Await(c.wait)
		now = now.Add(c.want - time.Second)
		if n := len(p.Expire()); n != 0 {
			t.Errorf("given up before %s, though waited for %s", c.want, c.wait)
		}
		now = now.Add(2 * time.Second)
		if n := len(p.Expire()); n != 1 {
			t.Errorf("not given up after %s, waited for %s", c.want, c.wait)
		}
		d.Reservation.Await(time.Hour) // after the fact
		if open := p.Stats().Open; open != 0 {
			t.Errorf("%d open", open)
		}
	}
}
