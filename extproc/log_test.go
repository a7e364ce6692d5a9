package extproc

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A line names every number that was weighed, and nothing of the prompt or the
// client's headers.
func TestDecisionLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		f := newFixture(t, pool(2), func(c *Config, d *Deps) {
			c.DecisionLogs = 2
			d.Log = slog.New(slog.NewJSONHandler(&out, nil))
		})
		ask := func() {
			c := f.open(t, buffered, none)
			c.one(t, completion())
			c.one(t, reqBody("{my private words}", true))
		}
		for range 5 {
			ask()
		}
		if n := strings.Count(out.String(), "\n"); n != 2 {
			t.Errorf("%d lines in one second, want 2", n)
		}
		time.Sleep(time.Second)
		ask()
		if n := strings.Count(out.String(), "\n"); n != 3 {
			t.Errorf("%d lines in two seconds, want 3", n)
		}
		line, _, _ := strings.Cut(out.String(), "\n")
		for _, want := range []string{f.decided[0].ID, `"reason":"turn"`, `"tokens":18`, `"cached_tokens":0`, `"queued_work":0`, `"estimate_seconds":`, "10.0.0.1:8000", "10.0.0.2:8000"} {
			if !strings.Contains(line, want) {
				t.Errorf("no %s in %s", want, line)
			}
		}
		for _, secret := range []string{"private", "secret"} {
			if strings.Contains(out.String(), secret) {
				t.Errorf("%q is logged", secret)
			}
		}
	})
}
