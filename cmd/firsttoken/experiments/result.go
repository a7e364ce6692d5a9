package experiments

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/firsttoken/firsttoken/bench"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

// result is one run. Times are in seconds of the experiment: what the clock
// showed, divided by the scale.
type result struct {
	experiment int
	policy     string
	run        int
	requests   int
	seconds    float64
	ttft, itl  bench.Distribution
	hitShare   float64
	// busiest is the share of requests that the busiest engine got.
	busiest float64
	// estimateError is the median of the distance between the estimate and the
	// service's measured time to first token, as a part of the latter.
	estimateError float64
	// moments are of all requests, in the order of sending.
	moments []moment
}

// moment is one request.
type moment struct {
	// sent is when, since the first one, and ttft what it waited for its first
	// token. measured is what the service saw of that, and estimate what it had
	// expected; 0 where there is none.
	sent, ttft, measured, estimate float64
	prompt, cached                 int
	// expected is what the service believed to be cached.
	expected         uint32
	engine, reason   string
	waiting, decodes uint32
}

func newResult(number int, policy string, run int, scale float64, s *bench.Summary, records []bench.Record, decisions []*firsttokenv1.Decision) (result, error) {
	r := result{
		experiment: number, policy: policy, run: run, requests: s.Requests, seconds: s.Seconds / scale,
		ttft: scaled(s.TTFT, scale), itl: scaled(s.Between, scale), hitShare: s.HitShare(),
	}
	byID := make(map[string]*firsttokenv1.Decision, len(decisions))
	for _, d := range decisions {
		byID[d.GetId()] = d
	}
	slices.SortFunc(records, func(a, b bench.Record) int { return a.Sent.Compare(b.Sent) })
	perEngine := map[string]int{}
	var distances []float64
	for i := range records {
		record := &records[i]
		perEngine[record.Endpoint]++
		d := byID[record.ID]
		if d == nil {
			return result{}, fmt.Errorf("the service has no record of request %q, which Envoy answered by itself (reason %q)", record.ID, record.Reason)
		}
		if distance, ok := estimateDistance(d); ok {
			distances = append(distances, distance)
		}
		m := moment{
			sent: record.Sent.Sub(records[0].Sent).Seconds() / scale, ttft: record.FirstToken.Seconds() / scale, measured: d.GetTtftSeconds() / scale,
			prompt: record.Usage.Prompt, cached: record.Usage.Cached, engine: record.Endpoint, reason: record.Reason,
		}
		if c := d.GetCandidates(); len(c) > 0 {
			m.estimate, m.expected = c[0].GetEstimateSeconds()/scale, c[0].GetCachedTokens()
			m.waiting, m.decodes = c[0].GetWaiting(), c[0].GetDecoding()
		}
		r.moments = append(r.moments, m)
	}
	for _, n := range perEngine {
		r.busiest = max(r.busiest, float64(n)/float64(len(records)))
	}
	if len(distances) == 0 { // a median of nothing would keep every bound
		return result{}, errors.New("the service measured no first token: nothing tells how good its estimates were")
	}
	r.estimateError = median(distances)
	return r, nil
}

// estimateDistance is how far the estimate for the chosen endpoint was from the
// time measured, as a part of it; false where one of them is missing.
func estimateDistance(d *firsttokenv1.Decision) (float64, bool) {
	if len(d.GetCandidates()) == 0 || d.TtftSeconds == nil || d.GetTtftSeconds() <= 0 {
		return 0, false
	}
	return math.Abs(d.GetCandidates()[0].GetEstimateSeconds()-d.GetTtftSeconds()) / d.GetTtftSeconds(), true
}

func scaled(d bench.Distribution, scale float64) bench.Distribution {
	return bench.Distribution{Mean: d.Mean / scale, P50: d.P50 / scale, P90: d.P90 / scale, P99: d.P99 / scale, Max: d.Max / scale}
}

// median is 0 where there is no value. It sorts a copy.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
