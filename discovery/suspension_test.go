package discovery

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

const (
	oneReady = "1 " + one + " " + one + " ready [m]\n"
	oneDown  = "1 " + one + " " + one + " down [m]\n"
	twoReady = "2 " + two + " " + two + " ready [m]\n"
	twoDown  = "2 " + two + " " + two + " down [m]\n"
)

// stuckFleet is two engines of which the first one answers probes and computes
// nothing.
func stuckFleet(t *testing.T) (*world, *fleet) {
	t.Helper()
	w := &world{engines: map[string]*fakeEngine{one: {serves: []string{"m"}, stuck: true}, two: {serves: []string{"m"}}}}
	return w, run(t, w, Entry{Address: one}, Entry{Address: two})
}

// An engine that hangs stays away for as long as it hangs, however good its
// health is: it is tried less and less often, and comes back at the first trial
// that it answers.
func TestSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := stuckFleet(t)
		expect(t, f, oneReady+twoReady)
		began := time.Now()
		f.Missed(one, true)
		f.Missed(one, true) // of the same wave; counts once
		expect(t, f, oneDown+twoReady)
		time.Sleep(10 * time.Minute)
		expect(t, f, oneDown+twoReady)
		var last time.Duration
		w.change(func() {
			trials := w.engines[one].trials
			if len(trials) < 5 || len(trials) > 8 {
				t.Fatalf("%d trials in ten minutes, want them to become rare: %v", len(trials), trials)
			}
			before := began
			for i, trial := range trials {
				gap := trial.at.Sub(before)
				if before = trial.at; gap < last || gap < firstSuspension || trial.model != "m" {
					t.Errorf("trial %d of %q came %s after the one before, which took %s", i, trial.model, gap, last)
				}
				last = gap
			}
			w.engines[one].stuck = false
		})
		time.Sleep(maxSuspension + 10*time.Second)
		expect(t, f, oneReady+twoReady)
		if got := testutil.ToFloat64(f.metrics.misses.WithLabelValues(one, "silent")); got != 2 {
			t.Errorf("%v misses counted, want 2", got)
		}
	})
}

// One that goes well in trials and hangs on requests is left alone for longer each
// time; after it went well for long it begins anew.
func TestSuspendedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := stuckFleet(t)
		w.change(func() { w.engines[one].stuck = false })
		away := func() time.Duration {
			began := time.Now()
			f.Missed(one, true)
			expect(t, f, oneDown+twoReady)
			for f.last() == oneDown+twoReady {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			return time.Since(began)
		}
		first := away()
		if second := away(); second < 2*first-2*time.Second {
			t.Errorf("suspended for %s, then for %s; want twice as long", first, second)
		}
		time.Sleep(suspensionMemory + time.Second)
		if third := away(); third > first+2*time.Second {
			t.Errorf("suspended for %s long after, want %s", third, first)
		}
	})
}

// A first token shows at once that it computes.
func TestAliveLiftsSuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := stuckFleet(t)
		f.Missed(one, true)
		expect(t, f, oneDown+twoReady)
		f.Alive(one)
		expect(t, f, oneReady+twoReady)
		f.Alive(one)
		f.Alive("192.0.2.1:1")
		f.Missed("192.0.2.1:1", true)
		expect(t, f, oneReady+twoReady)
	})
}

// An engine that is late, not silent, goes on: taking it out would send its work
// to the others, which are late next.
func TestLateIsNotSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := stuckFleet(t)
		f.Missed(one, false)
		expect(t, f, oneReady+twoReady)
	})
}

// Where nobody can stand in, an engine that may hang is better than none.
func TestSuspensionSparesTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := stuckFleet(t)
		w.change(func() { w.engines[two].stuck = true })
		f.Missed(one, true)
		expect(t, f, oneDown+twoReady)
		f.Missed(two, true)
		expect(t, f, oneReady+twoReady)
		f.Alive(two)
		expect(t, f, oneDown+twoReady)
		w.change(func() { w.engines[two].down = true })
		time.Sleep(3 * DefaultConfig().ProbeInterval)
		expect(t, f, oneReady+twoDown)
	})
}

// An engine that only prefills or only decodes stands in for nobody: it takes no
// requests.
func TestSuspensionSparesTheLastWhole(t *testing.T) {
	for _, role := range []string{"prefill", "decode"} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{engines: map[string]*fakeEngine{one: {serves: []string{"m"}, stuck: true}, two: {serves: []string{"m"}}}}
			f := run(t, w, Entry{Address: one}, Entry{Address: two, Role: role})
			before := f.last()
			f.Missed(one, true)
			expect(t, f, before)
		})
	}
}

// An engine that was started again is tried at once.
func TestRestartIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := stuckFleet(t)
		f.Missed(one, true)
		time.Sleep(2 * time.Minute) // the next trial is far
		w.change(func() { w.engines[one].down = true })
		time.Sleep(3 * DefaultConfig().ProbeInterval)
		w.change(func() { w.engines[one].down, w.engines[one].stuck = false, false })
		time.Sleep(2 * DefaultConfig().ProbeInterval)
		expect(t, f, oneReady+twoReady)
	})
}

// What a trial asks of a real server, and what its answers mean.
func TestTrial(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		ok     bool
	}{
		{http.StatusOK, `{"choices":[{"text":"b"}]}`, true},
		{http.StatusUnauthorized, `{"error":"Unauthorized"}`, false},
		{http.StatusInternalServerError, "", false},
	} {
		var asked string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			asked = r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + " " + r.Header.Get("Authorization") + " " + string(body)
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		}))
		err := client(t, server, "127.0.0.1", TLSConfig{}, "key").try(t.Context(), "m")
		server.Close()
		if (err == nil) != c.ok {
			t.Errorf("status %d: %v", c.status, err)
		}
		if want := `POST /v1/completions application/json Bearer key {"model":"m","prompt":"a","max_tokens":1}`; asked != want {
			t.Errorf("asked %q, want %q", asked, want)
		}
	}
}

// An engine that takes no trial is let back when its time has come: only the next
// request can tell.
func TestTrialRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := stuckFleet(t)
		w.change(func() { w.engines[one].refuses = http.StatusUnauthorized })
		f.Missed(one, true)
		expect(t, f, oneDown+twoReady)
		time.Sleep(firstSuspension + 2*DefaultConfig().ProbeInterval)
		expect(t, f, oneReady+twoReady)
	})
}
