package simulate

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/simulator/replay"
	"github.com/firsttoken/firsttoken/simulator/report"
)

const (
	// saturated is the mean time to first token by which a fleet is called
	// saturated: far above what anybody wants, far below what a hopeless backlog
	// gives.
	saturated = 10.0 // seconds
	// saturationPrecision and capacityPrecision are how near the two ends of a
	// bracket come. Below a hundredth, one arrival more or less decides.
	saturationPrecision = .002
	capacityPrecision   = .01
)

// saturation finds the speed at which the seed's policy has a mean time to first
// token of ten seconds, with the first seed's arrivals.
func (s *study) saturation(ctx context.Context) (float64, error) {
	s.progress.begin("looking for saturation", 0, 0)
	defer s.progress.end()
	b, err := crossing(saturated, saturationPrecision, func(speed float64) (float64, error) {
		r, err := s.run(ctx, seedPolicy, s.o.Seed, speed)
		if err != nil {
			return 0, err
		}
		return report.Figures(seedPolicy, []*replay.Report{r}).Mean, nil
	})
	switch {
	case err != nil:
		return 0, err
	case b.within == 0 || math.IsInf(b.above, 1):
		return 0, fmt.Errorf("--sat: between speeds %.4g and %.4g the seed's mean time to first token never passes %g s; set --speed", leastSpeed, mostSpeed, saturated)
	}
	return math.Sqrt(b.within * b.above), nil
}

// tried is one run of a search for capacity.
type tried struct{ rate, mean float64 }

// search is one policy's search with one seed.
type search struct {
	bracket
	least, most tried // at the ends of the bracket; zero where there is none
	all         []tried
}

// capacities finds how many requests a second each policy carries.
func (s *study) capacities(ctx context.Context) error {
	policies, seeds := s.o.policies(), s.o.seeds()
	if !slices.Contains(policies, seedPolicy) {
		policies = append(policies, seedPolicy)
	}
	searches := make([]search, len(policies)*len(seeds))
	s.progress.begin("looking for capacities", 0, 0)
	err := each(ctx, len(searches), func(ctx context.Context, i int) (err error) {
		searches[i], err = s.search(ctx, policies[i/len(seeds)], seeds[i%len(seeds)])
		return err
	})
	s.progress.end()
	if err != nil {
		return err
	}
	rows := make([]report.Capacity, len(policies))
	for i, id := range policies {
		rows[i] = capacityOf(id, searches[i*len(seeds):(i+1)*len(seeds)])
	}
	seed := rows[slices.Index(policies, seedPolicy)].RequestsPerSecond
	for i := range rows {
		if seed > 0 {
			rows[i].RatioToSeed = rows[i].RequestsPerSecond / seed
		}
	}
	rows = rows[:len(s.o.policies())]
	switch s.o.Output {
	case outputJSON:
		err = report.CapacityJSON(s.o.Out, rows)
	case outputCSV:
		err = report.CapacityCSV(s.o.Out, rows)
	default:
		err = report.CapacityTable(s.o.Out, rows)
	}
	if err != nil || s.o.Plot == "" {
		return err
	}
	return s.plotCapacity(policies[:len(rows)], searches)
}

// search finds where a policy's mean time to first token passes the limit.
func (s *study) search(ctx context.Context, policy string, seed uint64) (found search, err error) {
	limit := time.Duration(s.o.SLO).Seconds()
	found.bracket, err = crossing(limit, capacityPrecision, func(speed float64) (float64, error) {
		r, err := s.run(ctx, policy, seed, speed)
		if err != nil {
			return 0, err
		}
		row := report.Figures(policy, []*replay.Report{r})
		if row.Requests == 0 {
			return math.Inf(1), nil // who serves nobody carries no load
		}
		at := tried{row.Rate, row.Mean}
		found.all = append(found.all, at)
		if row.Mean <= limit {
			if at.rate > found.least.rate {
				found.least = at
			}
		} else if found.most.rate == 0 || at.rate < found.most.rate {
			found.most = at
		}
		return row.Mean, nil
	})
	return found, err
}

// capacityOf is the mean over the seeds.
func capacityOf(policy string, searches []search) report.Capacity {
	row := report.Capacity{Policy: policy, Runs: len(searches)}
	n := float64(len(searches))
	for i, found := range searches {
		rate := found.least.rate
		row.RequestsPerSecond += rate / n
		row.Exceeded += found.most.rate / n
		row.Speed += found.within / n
		row.Mean += found.least.mean / n
		if i == 0 || rate < row.LeastRequestsPerSecond {
			row.LeastRequestsPerSecond = rate
		}
		row.MostRequestsPerSecond = max(row.MostRequestsPerSecond, rate)
	}
	return row
}

// plotCapacity draws the mean time to first token over the rate, from all runs
// that the search needed.
func (s *study) plotCapacity(policies []string, searches []search) error {
	limit := time.Duration(s.o.SLO).Seconds()
	panel := report.Panel{
		Title: fmt.Sprintf("%s, %d endpoints", s.name, len(s.setup.Endpoints)),
		X:     "requests per second", Y: "mean seconds to first token",
	}
	var widest float64
	for i, id := range policies {
		c := report.Curve{Name: id}
		for _, at := range searches[i*s.o.Seeds].all { // the first seed's
			if at.mean <= 3*limit { // beyond, the rest would be a line along the bottom
				c.Points = append(c.Points, report.Point{X: at.rate, Y: at.mean})
				widest = max(widest, at.rate)
			}
		}
		slices.SortFunc(c.Points, func(a, b report.Point) int { return cmp.Compare(a.X, b.X) })
		panel.Curves = append(panel.Curves, c)
	}
	panel.Curves = append(panel.Curves, report.Curve{Name: "limit", Points: []report.Point{{X: 0, Y: limit}, {X: widest, Y: limit}}})
	return s.draw(panel)
}
