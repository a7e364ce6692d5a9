package fidelity

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// TestAllAtOnce: everything that the service calls may be called at any time.
func TestAllAtOnce(t *testing.T) {
	f := newFleet(t, 3, func(f *fleet) []Source {
		return []Source{{
			Name: "a", Index: told{1: 0, 2: 300, 3: 0}, Settle: time.Nanosecond,
			Wanted: func(scoring.Endpoint) bool { return true },
			Grain:  func(scoring.EndpointID) scoring.Tokens { return 16 },
		}}
	})
	registry := prometheus.NewPedanticRegistry()
	NewMetrics(registry, f.checker)
	var group sync.WaitGroup
	for g := range 4 {
		group.Go(func() {
			for i := range 200 {
				p := promptOf(g, 500)
				d, err := f.picker.Pick(fmt.Sprint(g, " ", i), p)
				if err != nil {
					t.Error(err)
					return
				}
				f.checker.Decided(d)
				d.Reservation.FirstToken()
				f.checker.FirstToken(d, 0)
				e := d.Endpoint()
				d.Reservation.End()
				f.checker.Ended(d, scoring.OutcomeComplete, e.Address)
			}
		})
	}
	group.Go(func() {
		for range 100 {
			f.checker.Probe(t.Context())
		}
	})
	group.Go(func() {
		for i := range 100 {
			f.checker.SetEndpoints(f.list[:2+i%2])
			for _, e := range f.list {
				f.checker.Counted(e.ID, f.engines[e.ID].reading, i%10 == 0)
				f.checker.Status(e.ID)
			}
		}
	})
	group.Go(func() {
		for range 50 {
			if _, err := registry.Gather(); err != nil {
				t.Error(err)
			}
		}
	})
	group.Wait()
}

// BenchmarkMatch is what the checker adds to sources that answer at once.
func BenchmarkMatch(b *testing.B) {
	sources := []Source{{Name: "a", Index: told{}}, {Name: "b", Index: told{}}, {Name: "c", Index: told{}}}
	list := make([]scoring.Endpoint, 16)
	for i := range list {
		list[i] = scoring.Endpoint{ID: scoring.EndpointID(i + 1)}
		for s := range sources {
			sources[s].Index.(told)[list[i].ID] = scoring.Tokens(i * s)
		}
	}
	c := New(sources, Source{Name: "memory", Index: told{}}, Options{Now: time.Now})
	c.SetEndpoints(list)
	p := promptOf(1, 100)
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for s := range sources {
				sources[s].Index.Match(p, list)
			}
		}
	})
	b.Run("checked", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Match(p, list)
		}
	})
}
