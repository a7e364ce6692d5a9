package experiments

import "fmt"

// target is a bound that a figure of a row must keep.
type target struct {
	experiment int
	policy     string
	// against is the row that the mean is compared with; empty: the bound is for
	// the error of the estimate.
	against string
	most    float64
	// below: the bound itself is too much.
	below bool
}

// The targets, for the medians of the runs.
var targets = []target{
	{1, "ttft", "kvaware", 0.85, true},
	{1, "ttft", "trapezoid", 1.05, false},
	{1, "ttft", "", 0.25, false},
	{2, "ttft", "kvaware", 0.5, true},
	{2, "ttft", "trapezoid", 1.05, false},
	{2, "ttft", "", 0.25, false},
}

func (t *target) String() string {
	bound := fmt.Sprintf("at most %g", t.most)
	if t.below {
		bound = fmt.Sprintf("below %g", t.most)
	}
	if t.against == "" {
		return fmt.Sprintf("experiment %d: the estimate's median error with %s, %s of the TTFT", t.experiment, t.policy, bound)
	}
	return fmt.Sprintf("experiment %d: mean TTFT of %s, %s of that of %s", t.experiment, t.policy, bound, t.against)
}

// verdict is what became of a target.
type verdict struct {
	target target
	figure float64
	holds  bool
}

// judge compares the rows with the targets. Targets of rows that were not run
// are left out.
func judge(rows []row) []verdict {
	find := func(experiment int, policy string) *row {
		for i := range rows {
			if rows[i].experiment == experiment && rows[i].policy == policy {
				return &rows[i]
			}
		}
		return nil
	}
	var verdicts []verdict
	for _, t := range targets {
		ours := find(t.experiment, t.policy)
		if ours == nil {
			continue
		}
		figure := ours.estimateError
		if t.against != "" {
			other := find(t.experiment, t.against)
			if other == nil {
				continue
			}
			figure = ours.mean / other.mean
		}
		verdicts = append(verdicts, verdict{t, figure, figure < t.most || !t.below && figure == t.most})
	}
	return verdicts
}
