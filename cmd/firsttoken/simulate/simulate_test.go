package simulate

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/simulator"
)

func TestTimesAndTokensOfTheCommandLine(t *testing.T) {
	for text, want := range map[string]time.Duration{"300": 5 * time.Minute, "0.5": 500 * time.Millisecond, "5m": 5 * time.Minute, "0": 0, "1e3": 1000 * time.Second} {
		var s Seconds
		if err := s.Set(text); err != nil || time.Duration(s) != want {
			t.Errorf("%q is %s, %v; want %s", text, time.Duration(s), err, want)
		}
	}
	for _, text := range []string{"", "-1", "-5m", "soon", "NaN", "Inf", "1e300"} {
		var s Seconds
		if err := s.Set(text); err == nil {
			t.Errorf("%q is %s, want an error", text, time.Duration(s))
		}
	}
	for text, want := range map[string]int{"160000": 160000, "160k": 160000, "0.16M": 160000, "0": 0} {
		var n Tokens
		if err := n.Set(text); err != nil || int(n) != want {
			t.Errorf("%q is %d, %v; want %d", text, int(n), err, want)
		}
	}
	for _, text := range []string{"", "k", "-1", "1.5", "many", "1e15", "NaN"} {
		var n Tokens
		if err := n.Set(text); err == nil {
			t.Errorf("%q is %d, want an error", text, int(n))
		}
	}
}

func TestFleets(t *testing.T) {
	profile, err := simulator.ProfileByName("h100-8b-cpu")
	if err != nil {
		t.Fatal(err)
	}
	same := func(p simulator.Profile) simulator.Profile { return p }
	got, err := fleet("2,1@0.5/160k,1x3090-7b", profile, same)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		kind, profile string
		token         float64
		kv            int
	}{
		{"h100-8b-cpu", "h100-8b-cpu", 3.3e-5, 400_000},
		{"h100-8b-cpu", "h100-8b-cpu", 3.3e-5, 400_000},
		{"h100-8b-cpu@0.5/160k", "h100-8b-cpu", 6.6e-5, 160_000},
		{"3090-7b", "3090-7b", 3.2e-4, 80_000},
	} {
		e := got[i]
		if e.Kind != want.kind || e.Profile.Name != want.profile || math.Abs(e.Profile.Token-want.token) > 1e-12 || e.Profile.KVTokens != want.kv {
			t.Errorf("endpoint %d is %+v, want %+v", i, e, want)
		}
	}
	if alike, err := fleet("3", profile, same); err != nil || len(alike) != 3 || alike[0].Kind != "" {
		t.Errorf("%+v, %v; want three without a kind", alike, err)
	}
	small, err := fleet("1,1/9k", profile, func(p simulator.Profile) simulator.Profile { p.KVTokens = 7000; return p })
	if err != nil || small[0].Profile.KVTokens != 7000 || small[1].Profile.KVTokens != 9000 {
		t.Errorf("%+v, %v; want sizes for all but the group that has its own", small, err)
	}
	for text, want := range map[string]string{
		"":         `endpoints "": "" is no number of engines; write COUNT[xPROFILE]`,
		"0":        `"0" is no number of engines`,
		"many":     `"many" is no number of engines`,
		"2xabacus": `profile "abacus" is unknown; write one of demo,`,
		"2@0":      `"0" is no speed between`,
		"2@fast":   `"fast" is no speed between`,
		"2/none":   `"none" is no number of tokens`,
		"2/0":      "no KV tokens, no engine",
		"99999":    "are more than 4096",
	} {
		if _, err := fleet(text, profile, same); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

func TestFailures(t *testing.T) {
	got, err := failures([]string{"2,600,15m"})
	if err != nil || len(got) != 1 || got[0].Endpoint != 2 || got[0].From != 10*time.Minute || got[0].To != 15*time.Minute {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "2,600", "x,1,2", "1,x,2", "1,2,x"} {
		if _, err := failures([]string{text}); err == nil || !strings.Contains(err.Error(), "--fail") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

func TestCrossingIsBracketed(t *testing.T) {
	for _, limit := range []float64{1e-2, .3, 1, 7, 300} {
		runs := 0
		b, err := crossing(limit, .01, func(speed float64) (float64, error) { runs++; return speed, nil })
		if err != nil || b.within > limit || b.above <= limit || b.above > b.within*1.011 {
			t.Errorf("limit %g: %+v, %v", limit, b, err)
		}
		if runs > 30 {
			t.Errorf("limit %g took %d runs", limit, runs)
		}
	}
	if b, _ := crossing(1, .01, func(float64) (float64, error) { return 2, nil }); b.within != 0 {
		t.Errorf("nothing holds the limit, yet %+v", b)
	}
	if b, _ := crossing(1, .01, func(float64) (float64, error) { return 0, nil }); !math.IsInf(b.above, 1) || math.Abs(b.within/mostSpeed-1) > 1e-9 {
		t.Errorf("everything holds the limit, yet %+v", b)
	}
	broken := errors.New("broken")
	if _, err := crossing(1, .01, func(float64) (float64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}
