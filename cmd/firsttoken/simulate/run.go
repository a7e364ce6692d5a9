package simulate

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/firsttoken/firsttoken/simulator/replay"
	"github.com/firsttoken/firsttoken/simulator/report"
)

// Run does what the options say and writes its figures to Out, what a reader has
// to know besides to Notes. It ends early, with the context's error, when ctx
// does.
func Run(ctx context.Context, o Options) error {
	if err := o.validate(); err != nil {
		return err
	}
	s, err := newStudy(&o)
	if err != nil {
		return err
	}
	if o.FindCapacity {
		err = s.capacities(ctx)
	} else {
		err = s.compare(ctx)
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}
	return err
}

// speed is the one to replay at; it finds that of saturation if asked for.
func (s *study) speed(ctx context.Context) (float64, error) {
	switch s.o.Sat {
	case "":
		return s.o.Speed, nil
	case FindSaturation:
		sat, err := s.saturation(ctx)
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(s.o.Notes, "saturated at speed %.4g, where the seed's mean time to first token is %g s; replaying at %.4g\n", sat, saturated, sat*s.o.Load)
		return sat * s.o.Load, nil
	default:
		sat, err := strconv.ParseFloat(s.o.Sat, 64)
		if err != nil || !(sat > 0) {
			return 0, fmt.Errorf("--sat=%s: write a speed above 0, or nothing to have it found", s.o.Sat)
		}
		return sat * s.o.Load, nil
	}
}

// compare replays with every policy and writes the figures.
func (s *study) compare(ctx context.Context) error {
	speed, err := s.speed(ctx)
	if err != nil {
		return err
	}
	policies := s.o.policies()
	with := policies
	if !slices.Contains(with, seedPolicy) {
		with = append(slices.Clone(with), seedPolicy) // ratios are to it, though it is not shown
	}
	reports, err := s.all(ctx, with, speed)
	if err != nil {
		return err
	}
	runs := make([]report.Run, len(policies))
	for i, id := range policies {
		runs[i] = report.Run{Policy: id, Reports: reports[i]}
	}
	rows := report.Rows(runs, reports[slices.Index(with, seedPolicy)])
	for i := range rows {
		if rows[i].Requests == 0 {
			return fmt.Errorf("policy %s: no request was counted; is --warm too long, or no endpoint able to hold a prompt?", rows[i].Policy)
		}
	}
	switch s.o.Output {
	case outputJSON:
		err = report.JSON(s.o.Out, rows)
	case outputCSV:
		err = report.CSV(s.o.Out, rows)
	default:
		err = report.Table(s.o.Out, rows)
	}
	if err != nil || s.o.Plot == "" {
		return err
	}
	return s.plot(fmt.Sprintf("%s, %d endpoints, speed %.4g", s.name, len(s.setup.Endpoints), speed), runs)
}

// plot draws the distribution over all runs, and the queue of the first one.
func (s *study) plot(title string, runs []report.Run) error {
	seconds := make(map[string][]float64)
	var order []string
	queue := report.Panel{Title: "Queue", X: "seconds of the replay", Y: "requests without a first token"}
	for _, run := range runs {
		order = append(order, run.Policy)
		for _, r := range run.Reports {
			for i := range r.Requests {
				seconds[run.Policy] = append(seconds[run.Policy], r.Requests[i].TTFT.Seconds())
			}
		}
		queue.Curves = append(queue.Curves, report.Curve{Name: run.Policy, Points: waiting(run.Reports[0])})
	}
	return s.draw(report.Distribution(title, seconds, order), queue)
}

func (s *study) draw(panels ...report.Panel) error {
	format, err := report.PlotFormat(s.o.Plot)
	if err != nil {
		return err
	}
	return write(s.o.Plot, func(w io.Writer) error { return report.Plot(w, format, panels...) })
}

// waiting is a run's queue over time.
func waiting(r *replay.Report) []report.Point {
	points := make([]report.Point, len(r.Queue))
	for i, q := range r.Queue {
		points[i] = report.Point{X: q.At.Seconds(), Y: float64(q.Waiting)}
	}
	return points
}
