package kvevents

import (
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

func TestHeardHeldAndGrain(t *testing.T) {
	e := newEngine(t, scoring.TierCapacity{})
	s := &Subscriber{index: e.ix}
	if !s.Heard(1).IsZero() || s.Held(1) != 0 || s.Grain(1) != 0 || !s.Heard(2).IsZero() {
		t.Error("an engine that told nothing is known")
	}
	ids := prompt(1, 0, 32)
	e.tell(say{}.stored(ids, 0), say{size: 16, medium: "CPU"}.stored(ids, 0))
	if got := s.Heard(1); !got.Equal(now) {
		t.Errorf("heard at %v", got)
	}
	if held, grain := s.Held(1), s.Grain(1); held != 8+2 || grain != 16 {
		t.Errorf("%d blocks of at most %d", held, grain)
	}
}
