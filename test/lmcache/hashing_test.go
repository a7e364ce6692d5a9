//go:build cgo && !nozmq

package lmcache_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// The settings of a real worker are learnt from what it reports: it has no vLLM
// beside it, which the defaults take for granted. (Those of 0.3.11 are not the
// same in any two processes of Python 3.11.)
func TestWorkerSettingsAreLearnt(t *testing.T) {
	const version, instance = "0.5.6", "vllm-learnt"
	s := serve(t, anyPort, lmcache.DefaultKeyGroup(), instance)
	detector := lmcache.NewDetector(s.source, s.index, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	worker, _ := startWorker(t, version, s.Addresses(), instance)
	prompt := tokens(3*256+100, 77)
	if got := s.cached(instance, prompt); got > 0 {
		t.Fatalf("%d tokens cached before anything was", got)
	}
	now := time.Now()
	for seed := range uint32(3) {
		stored := tokens(3*256+100, seed)
		keys := worker.do(map[string]any{"do": "store", "tokens": stored}).Keys
		eventually(t, "the reports", func() bool { return s.index.Records(instance) >= len(keys)*int(seed+1) })
		n := scoring.Tokens(len(stored))
		detector.Computed(1, &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: stored, Length: n, Usable: n}}}, now)
		now = now.Add(time.Second)
		detector.Step(now)
	}
	worker.do(map[string]any{"do": "store", "tokens": prompt})
	eventually(t, "a match by the settings learnt", func() bool { return s.cached(instance, prompt) >= 3*256 })
	if rows := detector.Status(); len(rows) != 1 || rows[0].State != lmcache.HashingDetected {
		t.Errorf("%+v", rows)
	}
}
