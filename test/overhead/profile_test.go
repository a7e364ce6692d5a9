package overhead_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// profiled is what the service itself says of its work under a load.
type profiled struct {
	name           string
	bytes, objects float64 // allocated for one decision, all else it does included
	collector      float64 // share of its CPU time, in percent
}

func (p profiled) String() string {
	return fmt.Sprintf("%s: %.1f KB in %.0f objects a decision, collector %.1f %%", p.name, p.bytes/1000, p.objects, p.collector)
}

// profile puts a load on the service and takes a CPU profile of it meanwhile,
// which is kept in the folder $PROFILES where that is set.
func (b *bench) profile(t *testing.T, l load) profiled {
	t.Helper()
	p := profiled{name: l.name}
	file := filepath.Join(t.TempDir(), "cpu.pprof")
	taken := make(chan error, 1)
	var before, after map[string]float64
	begun := func() {
		before = b.service.metrics(t)
		go func() { // ends when the profile is over, within the window
			seconds := max(1, int(l.window/time.Second)-1)
			text, err := get(t.Context(), fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", b.service.admin, seconds))
			if err == nil {
				err = os.WriteFile(file, text, 0o600)
			}
			taken <- err
		}()
	}
	l.run(t.Context(), b.proxies[oursBuffered].clients, b.text, begun, func() { after = b.service.metrics(t) })
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	grown := func(name string) float64 { return after[name] - before[name] }
	decisions := grown("firsttoken_decisions_total")
	p.bytes, p.objects = grown("go_memstats_alloc_bytes_total")/decisions, grown("go_memstats_mallocs_total")/decisions
	top := b.top(t, file, "-cum", "-nodecount=100000", "-nodefraction=0")
	// Marking in the background, help with it by those who allocate, sweeping.
	for _, name := range []string{`runtime\.gcBgMarkWorker`, `runtime\.gcAssistAlloc`, `runtime\.bgsweep`} {
		p.collector += share(top, name)
	}
	if keep := os.Getenv("PROFILES"); keep != "" {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(keep, strconv.Itoa(l.bytes)+".pprof"), text, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
	return p
}

// top is what `go tool pprof -top` prints of a profile.
func (b *bench) top(t *testing.T, file string, flags ...string) []byte {
	t.Helper()
	args := append([]string{"tool", "pprof", "-top"}, flags...)
	out, err := exec.Command("go", append(args, file)...).Output()
	if err != nil {
		t.Fatalf("go tool pprof: %v", err)
	}
	return out
}

// share is the cumulative share of a function in percent; 0 where it is not in
// the profile.
func share(top []byte, function string) float64 {
	m := regexp.MustCompile(`(?m)([0-9.]+)%\s+` + function + `(\s|$)`).FindSubmatch(top)
	if m == nil {
		return 0
	}
	percent, _ := strconv.ParseFloat(string(m[1]), 64) // the expression takes numbers only
	return percent
}

// metrics are the service's numbers without labels, and those with labels added
// up.
func (s *service) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	text, err := get(t.Context(), s.admin+"/metrics")
	if err != nil {
		t.Error(err)
		return nil
	}
	all := map[string]float64{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+)(?:\{[^\n]*\})? (\S+)$`).FindAllSubmatch(text, -1) {
		value, _ := strconv.ParseFloat(string(m[2]), 64) // NaN and the like count as they are
		name := string(m[1])
		if name == "firsttoken_decisions_total" {
			name = "firsttoken_decisions_total"
		}
		all[name] += value
	}
	return all
}
