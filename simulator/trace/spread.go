package trace

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Spread gives each request of a batch a moment of its own, drawn uniformly
// between its batch's time and the next one's, for a seed the same ones always.
// Published traces hold arrivals in batches, about 3 s apart; replayed as they
// are, each batch is a burst that never was. A trace is taken to be in batches
// where at least half of its requests have the timestamp of another one; any
// other is returned as it is. The argument is not changed; Blocks are shared.
func Spread(requests []Request, seed uint64) []Request {
	period := Period(requests)
	if period == 0 {
		return slices.Clone(requests)
	}
	return SpreadOver(requests, period, seed)
}

// SpreadOver moves each request by up to a period later, whether the trace is
// in batches or not; in a batch that has another one sooner than that, up to the
// other one.
func SpreadOver(requests []Request, period time.Duration, seed uint64) []Request {
	spread := slices.Clone(requests)
	rng := rand.New(rand.NewPCG(seed, 0x7370726561640000)) // #nosec G404 -- reproducible is the point; the second word only tells this use of the seed from others
	batched := Period(requests) > 0
	for i := 0; i < len(spread); {
		at, end := spread[i].At, i+1
		for end < len(spread) && requests[end].At == at {
			end++
		}
		width := period
		if batched && end < len(requests) {
			width = min(width, requests[end].At-at)
		}
		for ; i < end; i++ {
			spread[i].At = at + time.Duration(rng.Float64()*float64(width))
		}
	}
	inOrder(spread)
	return spread
}

// Period is the median time between batches, 0 where the requests are not in
// batches. The requests are in order of arrival.
func Period(requests []Request) time.Duration {
	var gaps []time.Duration
	together := 0
	for i := range requests {
		same := i > 0 && requests[i-1].At == requests[i].At
		if same || i+1 < len(requests) && requests[i+1].At == requests[i].At {
			together++
		}
		if i > 0 && !same {
			gaps = append(gaps, requests[i].At-requests[i-1].At)
		}
	}
	if len(gaps) == 0 || 2*together < len(requests) {
		return 0
	}
	slices.Sort(gaps)
	return gaps[len(gaps)/2]
}
