package decisions

import (
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/simulator/report"
)

// points is how many points a line over time has.
const points = 60

// curvesOfEndpoints is how many endpoints have a line each; of more nobody could
// tell the lines apart.
const curvesOfEndpoints = 12

// Panels are the plots over time, and the distribution of times.
func (r *Records) Panels(f Figures) []report.Panel {
	span := max(f.To.Sub(f.From), time.Second)
	unit, width := "hours", span/points
	per := time.Hour
	if span < 2*time.Hour {
		unit, per = "minutes", time.Minute
	}
	at := func(i int) float64 { return (float64(i) + .5) * float64(width) / float64(per) }
	type bucket struct {
		ttft, estimate           []float64
		compared, choice, served float64
		by                       map[int32]int
	}
	buckets := make([]bucket, points+1)
	var measured, estimated []float64
	for i := range r.rows {
		w := &r.rows[i]
		b := &buckets[min(int(w.at.Sub(f.From)/max(width, 1)), points)]
		if w.served >= 0 {
			if b.by == nil {
				b.by = make(map[int32]int)
			}
			b.by[w.served]++
		}
		if w.compared {
			b.compared += float64(w.prompt)
			b.choice += float64(w.choiceCached)
			b.served += float64(w.servedCached)
		}
		if w.ttft > 0 {
			b.ttft = append(b.ttft, w.ttft)
			measured = append(measured, w.ttft)
			if w.estimate > 0 {
				b.estimate = append(b.estimate, w.estimate)
				estimated = append(estimated, w.estimate)
			}
		}
	}
	served := report.Panel{Title: "Requests served, by endpoint", X: unit, Y: "requests a minute"}
	names := slices.Sorted(slices.Values(r.places.values))
	for _, name := range names[:min(len(names), curvesOfEndpoints)] {
		c := report.Curve{Name: name}
		for i := range buckets {
			c.Points = append(c.Points, report.Point{X: at(i), Y: float64(buckets[i].by[r.places.number[name]]) / width.Minutes()})
		}
		served.Curves = append(served.Curves, c)
	}
	hits := report.Panel{Title: "Prompt tokens in caches or on their way there", X: unit, Y: "share", Curves: []report.Curve{{Name: "at the choice"}, {Name: "where served"}}}
	times := report.Panel{Title: "Time to first token", X: unit, Y: "seconds", Curves: []report.Curve{{Name: "measured p50"}, {Name: "measured p95"}, {Name: "estimated p50"}}}
	for i := range buckets {
		b := &buckets[i]
		if b.compared > 0 {
			hits.Curves[0].Points = append(hits.Curves[0].Points, report.Point{X: at(i), Y: b.choice / b.compared})
			hits.Curves[1].Points = append(hits.Curves[1].Points, report.Point{X: at(i), Y: b.served / b.compared})
		}
		slices.Sort(b.ttft)
		slices.Sort(b.estimate)
		if len(b.ttft) > 0 {
			times.Curves[0].Points = append(times.Curves[0].Points, report.Point{X: at(i), Y: report.Quantile(b.ttft, .5)})
			times.Curves[1].Points = append(times.Curves[1].Points, report.Point{X: at(i), Y: report.Quantile(b.ttft, .95)})
		}
		if len(b.estimate) > 0 {
			times.Curves[2].Points = append(times.Curves[2].Points, report.Point{X: at(i), Y: report.Quantile(b.estimate, .5)})
		}
	}
	distribution := report.Distribution("Distribution of times to first token",
		map[string][]float64{"measured": measured, "estimated": estimated}, []string{"measured", "estimated"})
	return []report.Panel{served, hits, times, distribution}
}
