package scoring

import (
	"fmt"
	"math"
	"testing"
)

// fleetOf are so many candidates, by address.
func fleetOf(n int) []Candidate {
	candidates := make([]Candidate, n)
	for i := range candidates {
		candidates[i].Endpoint = Endpoint{ID: EndpointID(i + 1), Address: fmt.Sprintf("10.0.%d.%d:8000", i/250, i%250)}
	}
	return candidates
}

// home is the address of a session's endpoint.
func home(t *testing.T, id string, candidates []Candidate) string {
	t.Helper()
	session{}.Rank(&Prompt{Session: id}, Pool{}, candidates)
	best, equals := 0, 1
	for i := 1; i < len(candidates); i++ {
		switch {
		case candidates[i].Cost < candidates[best].Cost:
			best, equals = i, 1
		case candidates[i].Cost == candidates[best].Cost:
			equals++
		}
	}
	if equals > 1 {
		t.Fatalf("%d endpoints are equal for %q", equals, id)
	}
	return candidates[best].Endpoint.Address
}

// Sessions spread evenly: the count at each endpoint is binomial, so that of all
// the largest deviation stays below five of its standard deviations.
func TestSessionsSpread(t *testing.T) {
	const sessions = 20_000
	for _, n := range []int{2, 3, 7, 16, 64, 300} {
		for name, id := range map[string]func(int) string{
			"numbers": func(i int) string { return fmt.Sprint(i) },
			"mails":   func(i int) string { return fmt.Sprintf("user-%d@example.org", i) },
		} {
			candidates, counts := fleetOf(n), make(map[string]int)
			for i := range sessions {
				counts[home(t, id(i), candidates)]++
			}
			share := 1 / float64(n)
			most := 5 * math.Sqrt(sessions*share*(1-share))
			for _, c := range candidates {
				if off := math.Abs(float64(counts[c.Endpoint.Address]) - sessions*share); off > most {
					t.Errorf("%d endpoints, %s: %s has %d of %d sessions", n, name, c.Endpoint.Address, counts[c.Endpoint.Address], sessions)
				}
			}
		}
	}
}

// An endpoint that goes moves its own sessions and no other, to several of those
// that are left; back again, it has them all back. One that comes takes its share
// and moves nothing between the others. The order of the list does not matter.
func TestSessionsMove(t *testing.T) {
	const sessions = 3000
	for _, n := range []int{2, 3, 10, 100} {
		all := fleetOf(n + 1)
		before, newcomer := all[:n], all[n].Endpoint.Address
		gone := before[n/2].Endpoint.Address
		without := append(append([]Candidate(nil), before[:n/2]...), before[n/2+1:]...)
		reversed := make([]Candidate, n)
		for i := range before {
			reversed[n-1-i] = before[i]
		}
		taken, heirs := 0, make(map[string]bool)
		for i := range sessions {
			id := fmt.Sprint("s", i)
			was := home(t, id, before)
			if now := home(t, id, reversed); now != was {
				t.Fatalf("%d endpoints: %s is at %s, in another order at %s", n, id, was, now)
			}
			switch now := home(t, id, without); {
			case was != gone && now != was:
				t.Fatalf("%d endpoints: %s moved from %s to %s, though %s went", n, id, was, now, gone)
			case was == gone:
				heirs[now] = true
			}
			switch now := home(t, id, all); {
			case now == newcomer:
				taken++
			case now != was:
				t.Fatalf("%d endpoints: %s moved from %s to %s, though %s came", n, id, was, now, newcomer)
			}
		}
		if n > 2 && len(heirs) < min(n-1, 5) {
			t.Errorf("%d endpoints: the sessions of one that went are all at %v", n, heirs)
		}
		if share := float64(taken) / sessions * float64(n+1); share < .5 || share > 1.7 {
			t.Errorf("%d endpoints: a newcomer took %d of %d sessions", n, taken, sessions)
		}
	}
}
