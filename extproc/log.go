package extproc

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// sampler lets at most limit events of each second through. Safe for
// concurrent use; where two seconds meet, a few more may pass.
type sampler struct {
	limit  int64
	second atomic.Int64 // the second that is counted
	taken  atomic.Int64
}

func (s *sampler) take(now time.Time) bool {
	if s.limit == 0 {
		return false
	}
	if second := now.Unix(); s.second.Swap(second) != second {
		s.taken.Store(0)
	}
	return s.taken.Add(1) <= s.limit
}

// maxLogged bounds how many candidates one line names, best first.
const maxLogged = 8

// logDecision writes the numbers that were weighed. Nothing of the prompt's
// text or tokens is in them.
func logDecision(ctx context.Context, log *slog.Logger, d *scoring.Decision) {
	candidates := make([]candidateLog, 0, min(len(d.Candidates), maxLogged))
	for i := range d.Candidates[:cap(candidates)] {
		c := &d.Candidates[i]
		candidates = append(candidates, candidateLog{
			Endpoint: c.Endpoint.Name, Cached: c.Cached, Optimistic: c.Optimistic, Area: c.Area, QueuedArea: c.QueuedArea,
			Work: c.Work, Backlog: c.Backlog, KVWait: c.KVWait,
			Waiting: c.Waiting, Decoding: c.Decoding, Estimate: c.Estimate.Seconds(),
		})
	}
	if d.Arm != "" {
		log = log.With("arm", d.Arm)
	}
	log.LogAttrs(ctx, slog.LevelInfo, "decision",
		slog.String("id", d.ID),
		slog.String("model", d.Model),
		slog.String("policy", d.Policy),
		slog.Bool("shadow", d.Shadow != nil),
		slog.String("endpoint", d.Endpoint().Name),
		slog.String("reason", string(d.Reason)),
		slog.Float64("estimate_seconds", d.Estimate().Seconds()),
		slog.String("tokens_from", string(d.Prompt.Source)),
		slog.Int("tokens", int(d.Prompt.Length())),
		slog.Any("candidates", candidates),
	)
}

// candidateLog is one candidate in a log line.
type candidateLog struct {
	Endpoint   string         `json:"endpoint"`
	Cached     scoring.Tokens `json:"cached_tokens"`
	Optimistic scoring.Tokens `json:"optimistic_tokens"`
	Area       scoring.Work   `json:"work"`
	QueuedArea scoring.Work   `json:"queued_work"`
	Work       float64        `json:"work_seconds"`
	Backlog    float64        `json:"backlog_seconds"`
	KVWait     float64        `json:"kv_wait_seconds"`
	Waiting    int            `json:"waiting"`
	Decoding   int            `json:"decoding"`
	Estimate   float64        `json:"estimate_seconds"`
}
