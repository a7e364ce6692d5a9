package scoring

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

// An engine that does a part of requests is no candidate, whatever is said of
// it; its model is known all the same.
func TestRolesAreNoCandidates(t *testing.T) {
	picker, err := NewPicker(DefaultConfig(), time.Now, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	pool := []Endpoint{
		{ID: 1, Name: "p", Address: "10.0.0.1:1", Models: []string{"m", "prefilled"}, Ready: true, Role: RolePrefill},
		{ID: 2, Name: "d", Address: "10.0.0.2:1", Models: []string{"m"}, Ready: true, Role: RoleDecode},
		{ID: 3, Name: "b", Address: "10.0.0.3:1", Models: []string{"m"}, Ready: true},
	}
	picker.SetEndpoints(pool)
	prompt := func(model string, only ...string) *Prompt {
		return &Prompt{Model: model, Source: TokensEstimated, Sequences: []Sequence{{Length: 10, Copies: 1}}, Only: only}
	}
	for range 20 {
		d, err := picker.Pick(newID(), prompt("m"))
		if err != nil || d.Endpoint().Name != "b" || len(d.Candidates) != 1 {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	for _, tt := range []struct {
		prompt *Prompt
		want   error
	}{
		{prompt("prefilled"), ErrNoEndpoint},
		{prompt("nothing"), ErrUnknownModel},
		{prompt("m", "10.0.0.1:1"), ErrNoEndpoint},
	} {
		if _, err := picker.Pick(newID(), tt.prompt); !errors.Is(err, tt.want) {
			t.Errorf("%q, %q: %v, want %v", tt.prompt.Model, tt.prompt.Only, err, tt.want)
		}
	}
	// Room in KV memory is looked at without them: they tell theirs to nobody.
	picker.SetEngine(3, Engine{CapacityTokens: 1000})
	if s := picker.Stats(); !s.Pools["m"].KVRoom {
		t.Errorf("no KV room: capacity missing of %q", s.Pools["m"].NoCapacity)
	}
}

var ids int

// newID is unique.
func newID() string {
	ids++
	return strconv.Itoa(ids)
}
