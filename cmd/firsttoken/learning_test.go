package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
)

// learning is a configuration by the policy ttft for engines that tell nothing
// but their counters.
func learning(engines ...*engine.Server) config {
	cfg := defaultConfig()
	cfg.Scoring.Policy = scoring.PolicyTTFT
	cfg.LMCache.Enabled = false
	cfg.Counters.Interval = 100 * time.Millisecond
	for _, e := range engines {
		cfg.Endpoints = append(cfg.Endpoints, discovery.Entry{Address: e.Address(), Models: []string{"m"}})
	}
	return cfg
}

// stoppable runs a service until stop is called or the test ends.
func stoppable(t *testing.T, cfg config, log *slog.Logger) (b bound, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Server.Listen, cfg.Admin.Listen, cfg.Server.DrainDelay = "127.0.0.1:0", "127.0.0.1:0", 0
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	s, err := newService(ctx, cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	b = s.bound()
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, new(bytes.Buffer)) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return b, stop
}

// sample is the value of one series of /metrics, 0 where it is not there.
func sample(t *testing.T, b bound, series string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(get(t, b, "/metrics", nil))
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// What was learnt of the engines' speed is there after a restart, and is what
// the first choice counts with. A file that is torn costs that and no more.
func TestFitsOutliveARestart(t *testing.T) {
	e := plainEngine(t, nil)
	cfg := learning(e)
	cfg.State.Directory = filepath.Join(t.TempDir(), "state")
	b, stop := stoppable(t, cfg, slog.New(slog.DiscardHandler))
	g := newGateway(t, b, true)
	prior := awaitStatus(t, b, func(s status) bool { return s.Pools["m"].SecondsPerToken > 0 }).Pools["m"]
	for i := range 10 {
		g.ask(t.Context(), 5000*i, 2000, 2, true).forward()
	}
	learnt := awaitStatus(t, b, func(s status) bool { return s.Pools["m"].Groups >= 9 && s.OpenBookings == 0 }).Pools["m"]
	if learnt.Restored || learnt.SecondsPerToken >= prior.SecondsPerToken {
		t.Fatalf("an engine a hundred times as fast as its profile taught %+v, from %+v", learnt, prior)
	}
	stop()

	b, stop = stoppable(t, cfg, slog.New(slog.DiscardHandler))
	g = newGateway(t, b, true)
	again := awaitStatus(t, b, func(s status) bool { return s.Pools["m"].Groups > 0 }).Pools["m"]
	if !again.Restored || again.Groups < learnt.Groups || again.SecondsPerToken > 1.2*learnt.SecondsPerToken {
		t.Errorf("restored %+v, want about %+v", again, learnt)
	}
	if got := sample(t, b, "firsttoken_state_restored_models"); got != 1 {
		t.Errorf("%v models restored, says /metrics", got)
	}
	r := g.ask(t.Context(), 900_000, 2000, 2, true)
	var record struct {
		SecondsPerToken float64 `json:"seconds_per_token"`
	}
	get(t, b, "/decisions?id="+r.id, &record)
	if record.SecondsPerToken != again.SecondsPerToken {
		t.Errorf("the first choice counted with %v s a token, want %v", record.SecondsPerToken, again.SecondsPerToken)
	}
	r.forward()
	stop()

	file := filepath.Join(cfg.State.Directory, "fits.json")
	if err := os.Truncate(file, 40); err != nil {
		t.Fatal(err)
	}
	var log lockedLog
	b, _ = stoppable(t, cfg, slog.New(slog.NewTextHandler(&log, nil)))
	anew := awaitStatus(t, b, func(s status) bool { return s.Pools["m"].SecondsPerToken > 0 }).Pools["m"]
	if anew.Restored || anew.SecondsPerToken != prior.SecondsPerToken || !strings.Contains(log.String(), file) {
		t.Errorf("with a torn file: %+v; log\n%s", anew, log.String())
	}
}

// A service without a place to keep anything serves all the same, and says so.
func TestStateThatCannotBeKept(t *testing.T) {
	cfg := learning(plainEngine(t, nil))
	cfg.State.Directory = filepath.Join(t.TempDir(), "file", "below it")
	if err := os.WriteFile(filepath.Dir(cfg.State.Directory), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var log lockedLog
	b, _ := stoppable(t, cfg, slog.New(slog.NewTextHandler(&log, nil)))
	newGateway(t, b, true).ask(t.Context(), 0, 100, 2, true).forward()
	awaitStatus(t, b, func(status) bool { return sample(t, b, `firsttoken_state_writes_total{result="error"}`) > 0 })
	if !strings.Contains(log.String(), "state.directory") {
		t.Errorf("the log does not say which key: %s", log.String())
	}
}

// What an engine says of its memory turns KV room on; until then /status names
// the engine that keeps it off. A full engine is left for one with room.
func TestCapacitiesTurnKVRoomOn(t *testing.T) {
	small := plainEngine(t, func(p *simulator.Profile) { p.KVTokens = 4096 })
	large := plainEngine(t, nil)
	cfg := learning(small, large)
	cfg.Counters.Path = "/nothing-here"
	b, stop := stoppable(t, cfg, slog.New(slog.DiscardHandler))
	view := awaitStatus(t, b, func(s status) bool { return len(s.Fleet) == 2 && s.Pools["m"].KVRoomOff != "" }).Pools["m"]
	if view.KVRoom || !strings.Contains(view.KVRoomOff, small.Address()) || !strings.Contains(view.KVRoomOff, large.Address()) {
		t.Errorf("/status where no capacity is told: %+v", view)
	}
	stop()

	cfg.Counters.Path = "/metrics"
	b, _ = stoppable(t, cfg, slog.New(slog.DiscardHandler))
	s := awaitStatus(t, b, func(s status) bool { return s.Pools["m"].KVRoom })
	if s.Pools["m"].KVRoomOff != "" || s.of(small.Address()).KVCapacity != 4096 || s.of(large.Address()).KVCapacity != 64_000 {
		t.Errorf("/status where all are told: %+v; %d and %d tokens", s.Pools["m"], s.of(small.Address()).KVCapacity, s.of(large.Address()).KVCapacity)
	}
	if sample(t, b, `firsttoken_pool_kv_room{model="m"}`) != 1 {
		t.Error("/metrics says that KV room is off")
	}
	g := newGateway(t, b, true)
	// Once an end was told, it is bookings that say what is held. This one is too
	// short for a block.
	g.ask(t.Context(), 500_000, 60, 2, true).forward()
	awaitStatus(t, b, func(s status) bool { return s.OpenBookings == 0 })
	// 3,900 tokens are more than 95 % of the small one: whatever its backlog, a
	// request waits there, and both are idle.
	r := g.ask(t.Context(), 0, 3900, 2, true)
	var record struct {
		Candidates []struct {
			Address string  `json:"address"`
			KVWait  float64 `json:"kv_wait_seconds"`
			Held    int     `json:"held_tokens"`
		} `json:"candidates"`
	}
	get(t, b, "/decisions?id="+r.id, &record)
	if r.address != large.Address() || len(record.Candidates) != 2 || record.Candidates[1].KVWait <= 0 || record.Candidates[0].KVWait != 0 {
		t.Errorf("sent to %s, want %s: %+v", r.address, large.Address(), record)
	}
	if held := awaitStatus(t, b, func(s status) bool { return s.of(large.Address()).KVTokens > 0 }).of(large.Address()); held.KVTokens != 3900 || held.OptimisticBlocks != 3900/64 {
		t.Errorf("/status of where it is: %+v", held)
	}
	r.forward()
	awaitStatus(t, b, func(s status) bool { return s.OpenBookings == 0 && s.of(large.Address()).KVTokens == 0 })
}

// The measured first token is compared with what was expected of it, by model;
// an answer that is not streamed has none.
func TestEstimatesAreMeasured(t *testing.T) {
	b, _ := stoppable(t, learning(plainEngine(t, nil)), slog.New(slog.DiscardHandler))
	g := newGateway(t, b, true)
	const shares = `firsttoken_ttft_estimate_error_ratio_count{model="m"}`
	g.ask(t.Context(), 0, 500, 3, false).forward()
	awaitStatus(t, b, func(s status) bool { return s.OpenBookings == 0 })
	if got := sample(t, b, shares); got != 0 || sample(t, b, "firsttoken_ttft_seconds_count") != 0 {
		t.Errorf("an answer that is not streamed was measured %v times", got)
	}
	g.ask(t.Context(), 10_000, 500, 3, true).forward()
	awaitStatus(t, b, func(s status) bool { return s.OpenBookings == 0 })
	if sample(t, b, shares) != 1 || sample(t, b, `firsttoken_ttft_estimate_error_seconds_count{model="m"}`) != 1 || sample(t, b, "firsttoken_ttft_seconds_count") != 1 {
		t.Errorf("/metrics after one streamed answer:\n%s", get(t, b, "/metrics", nil))
	}
}

// A client that leaves before the first token leaves nothing on the books, of
// the endpoint it was sent to or anywhere.
func TestCancelledRequestsLeaveNothing(t *testing.T) {
	e := plainEngine(t, nil)
	cfg := learning(e)
	cfg.Counters.Enabled = false // They would tell that the engine never got it.
	b, _ := stoppable(t, cfg, slog.New(slog.DiscardHandler))
	g := newGateway(t, b, true)
	for _, streamed := range []bool{true, false} {
		ctx, leave := context.WithCancel(t.Context())
		g.ask(ctx, 0, 4000, 3, streamed)
		if s := awaitStatus(t, b, func(s status) bool { return s.OpenBookings == 1 }); s.of(e.Address()).KVTokens != 4000 {
			t.Errorf("while it is sent: %+v", s.of(e.Address()))
		}
		leave()
		s := awaitStatus(t, b, func(s status) bool { return s.OpenBookings == 0 })
		if at := s.of(e.Address()); at.Waiting != 0 || at.Decoding != 0 || at.KVTokens != 0 || at.QueuedSeconds != 0 || at.QueuedWork != 0 {
			t.Errorf("streamed %v: left behind %+v", streamed, at)
		}
	}
}

// Where the number of requests past their first token comes from: the ends that
// the access log tells, else the engine's counters, else what is predicted.
func TestWhereDecodingComesFrom(t *testing.T) {
	for _, c := range []struct {
		name                string
		accessLog, counters bool
		want                scoring.DecodingSource
	}{
		{"access log", true, true, scoring.DecodingFromEnds},
		{"access log alone", true, false, scoring.DecodingFromEnds},
		{"counters", false, true, scoring.DecodingFromEngine},
		{"neither", false, false, scoring.DecodingPredicted},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := plainEngine(t, nil)
			cfg := learning(e)
			cfg.Counters.Enabled = c.counters
			b, _ := stoppable(t, cfg, slog.New(slog.DiscardHandler))
			g := newGateway(t, b, c.accessLog)
			for i := range 3 {
				g.ask(t.Context(), 5000*i, 300, 3, true).forward()
			}
			// All are answered, so the engine has none, whoever tells.
			s := awaitStatus(t, b, func(s status) bool {
				at := s.of(e.Address())
				return at.DecodingFrom == c.want && (c.want == scoring.DecodingPredicted || at.Decoding == 0)
			})
			if left := s.OpenBookings; (left == 0) != c.accessLog {
				t.Errorf("%d bookings are left", left)
			}
		})
	}
}
