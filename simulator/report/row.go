package report

import (
	"cmp"
	"math"
	"slices"

	"github.com/firsttoken/firsttoken/simulator/replay"
)

// Row has the figures of one policy. Of several runs, as with different
// arrivals, each figure is the mean over the runs.
type Row struct {
	Policy string `json:"policy"`
	// Mean and the percentiles are of the time to first token, in seconds.
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	// TPOT is the mean over requests of the time between two tokens of the
	// answer, in seconds.
	TPOT float64 `json:"tpot"`
	// HitShare is the share of prompt tokens that were not computed, BusyShare
	// that of time in which engines computed.
	HitShare  float64 `json:"hit_share"`
	BusyShare float64 `json:"busy_share"`
	// Preemptions are requests that had to give up their memory, of all requests.
	Preemptions float64 `json:"preemptions"`
	// LongestTenthMean is the mean time to first token, in seconds, of the tenth
	// of the requests that have the longest prompts.
	LongestTenthMean float64 `json:"longest_tenth_mean"`
	// RatioToSeed is Mean over that of the seed's policy, trapezoid, in the same
	// runs; the two after it are the same for P99 and LongestTenthMean.
	RatioToSeed             float64 `json:"ratio_to_seed"`
	P99RatioToSeed          float64 `json:"p99_ratio_to_seed"`
	LongestTenthRatioToSeed float64 `json:"longest_tenth_ratio_to_seed"`
	// RatioToReference is Mean over that of the reference, the first row.
	RatioToReference float64 `json:"ratio_to_reference"`
	// LeastRatioToSeed and MostRatioToSeed are the extremes of RatioToSeed over
	// single runs.
	LeastRatioToSeed float64 `json:"least_ratio_to_seed"`
	MostRatioToSeed  float64 `json:"most_ratio_to_seed"`
	// EstimateError is the median of how far the router's estimate of the time to
	// first token was off, as a share of the true one; 0 where it made none.
	EstimateError float64 `json:"estimate_error"`
	// Requests are those counted, Unserved those that no endpoint could take.
	Requests float64 `json:"requests"`
	Unserved float64 `json:"unserved"`
	// Rate is requests counted per second of simulated time.
	Rate float64 `json:"requests_per_second"`
	// Runs is how many runs the figures are of.
	Runs int `json:"runs"`
}

// figures are the columns that are means over runs.
func (r *Row) figures() []*float64 {
	return []*float64{
		&r.Mean, &r.P50, &r.P90, &r.P99, &r.TPOT, &r.HitShare, &r.BusyShare, &r.Preemptions,
		&r.LongestTenthMean, &r.EstimateError, &r.Requests, &r.Unserved, &r.Rate,
	}
}

// Figures makes one row of the runs of one policy, without ratios. There is at
// least one run.
func Figures(policy string, runs []*replay.Report) Row {
	sum := Row{Policy: policy, Runs: len(runs)}
	for _, run := range runs {
		one := figures(run)
		for i, f := range sum.figures() {
			*f += *one.figures()[i] / float64(len(runs))
		}
	}
	return sum
}

func figures(run *replay.Report) Row {
	row := Row{
		BusyShare: run.BusyShare, Preemptions: float64(run.Preemptions),
		Requests: float64(len(run.Requests)), Unserved: float64(run.Unserved),
	}
	if run.Span > 0 {
		row.Rate = row.Requests / run.Span.Seconds()
	}
	if len(run.Requests) == 0 {
		return row
	}
	ttft := make([]float64, len(run.Requests))
	var errs []float64
	var prompt, cached, answers int
	for i := range run.Requests {
		r := &run.Requests[i]
		ttft[i] = r.TTFT.Seconds()
		prompt += r.Prompt
		cached += r.Cached
		if r.Output > 1 {
			row.TPOT += r.TPOT.Seconds()
			answers++
		}
		if r.Estimate > 0 && r.TTFT > 0 {
			errs = append(errs, math.Abs(r.Estimate.Seconds()-ttft[i])/ttft[i])
		}
	}
	row.TPOT /= float64(max(1, answers))
	row.HitShare = float64(cached) / float64(max(1, prompt))
	row.Mean = mean(ttft)
	row.LongestTenthMean = mean(longestTenth(run.Requests))
	slices.Sort(ttft)
	row.P50, row.P90, row.P99 = Quantile(ttft, .5), Quantile(ttft, .9), Quantile(ttft, .99)
	slices.Sort(errs)
	row.EstimateError = Quantile(errs, .5)
	return row
}

// longestTenth are the times to first token of a tenth of the requests, at
// least one: those with the longest prompts, of equal ones the first.
func longestTenth(requests []replay.Request) []float64 {
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(requests[b].Prompt, requests[a].Prompt) })
	order = order[:(len(order)+9)/10]
	ttft := make([]float64, len(order))
	for i, n := range order {
		ttft[i] = requests[n].TTFT.Seconds()
	}
	return ttft
}

func mean(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return sum / float64(max(1, len(x)))
}

// Quantile is the value below which a share q of the sorted values is, drawn
// straight between neighbours as NumPy's percentile does by default; 0 of none.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// Run is what one policy did on the same workloads as the others: one report
// for each.
type Run struct {
	Policy  string
	Reports []*replay.Report
}

// Rows makes a row of each policy with the ratios to seed, whose runs are of
// the same workloads, and to the first of the list.
func Rows(runs []Run, seed []*replay.Report) []Row {
	base := Figures("", seed)
	rows := make([]Row, len(runs))
	for i, run := range runs {
		row := Figures(run.Policy, run.Reports)
		row.RatioToSeed = ratio(row.Mean, base.Mean)
		row.P99RatioToSeed = ratio(row.P99, base.P99)
		row.LongestTenthRatioToSeed = ratio(row.LongestTenthMean, base.LongestTenthMean)
		for k, one := range run.Reports {
			r := ratio(figures(one).Mean, figures(seed[k]).Mean)
			if k == 0 || r < row.LeastRatioToSeed {
				row.LeastRatioToSeed = r
			}
			row.MostRatioToSeed = max(row.MostRatioToSeed, r)
		}
		rows[i] = row
	}
	for i := range rows {
		rows[i].RatioToReference = ratio(rows[i].Mean, rows[0].Mean)
	}
	return rows
}

// ratio is a over b; of nothing, 0, which JSON can say.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
