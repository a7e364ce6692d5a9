package experiments

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/simulator/report"
)

// row is one policy in one experiment: medians of its runs, in seconds.
type row struct {
	experiment          int
	policy              string
	mean, p50, p90, p99 float64
	// least and most are the means of the best and of the worst run.
	least, most             float64
	itl                     float64
	hitShare, busiest       float64
	estimateError, duration float64
}

// page is what is written about all runs.
type page struct {
	options  Options
	results  []result
	rows     []row
	verdicts []verdict
}

func newPage(o Options, results []result) *page {
	p := &page{options: o, results: results}
	for number := range experiments {
		for _, name := range Policies() {
			if r, ok := p.row(number+1, name); ok {
				p.rows = append(p.rows, r)
			}
		}
	}
	p.verdicts = judge(p.rows)
	return p
}

// ran reports whether any of these policies was run.
func (p *page) ran(policies ...string) bool {
	return slices.ContainsFunc(p.rows, func(r row) bool { return slices.Contains(policies, r.policy) })
}

// row is false where the policy was not run.
func (p *page) row(number int, policy string) (row, bool) {
	var runs []result
	for _, r := range p.results {
		if r.experiment == number && r.policy == policy {
			runs = append(runs, r)
		}
	}
	if len(runs) == 0 {
		return row{}, false
	}
	of := func(figure func(*result) float64) []float64 {
		values := make([]float64, len(runs))
		for i := range runs {
			values[i] = figure(&runs[i])
		}
		return values
	}
	means := of(func(r *result) float64 { return r.ttft.Mean })
	return row{
		experiment: number, policy: policy,
		mean: median(means), least: slices.Min(means), most: slices.Max(means),
		p50:           median(of(func(r *result) float64 { return r.ttft.P50 })),
		p90:           median(of(func(r *result) float64 { return r.ttft.P90 })),
		p99:           median(of(func(r *result) float64 { return r.ttft.P99 })),
		itl:           median(of(func(r *result) float64 { return r.itl.Mean })),
		hitShare:      median(of(func(r *result) float64 { return r.hitShare })),
		busiest:       median(of(func(r *result) float64 { return r.busiest })),
		estimateError: median(of(func(r *result) float64 { return r.estimateError })),
		duration:      median(of(func(r *result) float64 { return r.seconds })),
	}, true
}

// missed are the targets that do not hold.
func (p *page) missed() []string {
	var missed []string
	for _, v := range p.verdicts {
		if !v.holds {
			missed = append(missed, fmt.Sprintf("%s: %.3f", &v.target, v.figure))
		}
	}
	return missed
}

// tables are the figures and the targets, in Markdown.
func (p *page) tables() string {
	var b strings.Builder
	for i, e := range experiments {
		rows := slices.DeleteFunc(slices.Clone(p.rows), func(r row) bool { return r.experiment != i+1 })
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n%s.\n\n", e.title, e.about)
		b.WriteString("| policy | mean TTFT | best and worst run | published | p50 | p90 | p99 | between tokens | cached | busiest engine | estimate off by |\n")
		b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
		for _, r := range rows {
			published := ""
			if s, ok := e.published[r.policy]; ok {
				published = seconds(s)
			}
			fmt.Fprintf(&b, "| %s | %s | %s to %s | %s | %s | %s | %s | %.4f s | %.0f %% | %.0f %% | %.0f %% |\n", r.policy, seconds(r.mean),
				seconds(r.least), seconds(r.most), published, seconds(r.p50), seconds(r.p90), seconds(r.p99), r.itl,
				100*r.hitShare, 100*r.busiest, 100*r.estimateError)
		}
		b.WriteByte('\n')
	}
	if len(p.verdicts) > 0 {
		b.WriteString("## Targets\n\n| target | figure | holds |\n|---|---|---|\n")
		for _, v := range p.verdicts {
			fmt.Fprintf(&b, "| %s | %.3f | %s |\n", &v.target, v.figure, map[bool]string{true: "yes", false: "**no**"}[v.holds])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 3, 64) + " s" }

// The files of a page.
const (
	pageFile = "envoy.md"
	dataFile = "envoy.csv"
)

func plotFile(number int) string { return fmt.Sprintf("envoy-%d.svg", number) }

// write writes all files into a folder, which is made where it is missing.
func (p *page) write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // Documents are for everybody.
		return err
	}
	files := map[string][]byte{pageFile: []byte(p.markdown()), dataFile: p.csv()}
	for i, e := range experiments {
		if plot, err := p.plot(i+1, e.title); err != nil {
			return err
		} else if plot != nil {
			files[plotFile(i+1)] = plot
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o644); err != nil { //nolint:gosec // Documents are for everybody.
			return err
		}
	}
	return nil
}

func (p *page) markdown() string {
	var b strings.Builder
	time := "in real time"
	if p.options.Scale != 1 {
		time = fmt.Sprintf("with %g seconds for one of the experiment's (the figures are divided by that: noise of this machine counts for more)", p.options.Scale)
	}
	times := "once"
	if p.options.Runs > 1 {
		times = fmt.Sprintf("%d times", p.options.Runs)
	}
	others := ""
	if p.ran("loadaware", "prefixaware", "session", "random") {
		others = "- `loadaware`, `prefixaware` and `random` are the policies of these names; `session` keeps each user of experiment 1 on one engine (`x-user-id`).\n"
	}
	fmt.Fprintf(&b, `# Two experiments on real Envoy

Written by `+"`%s`"+`; each run is in [%s](%s).

The proposal of TTFT routing for vLLM's production stack was shown by two experiments on two RTX 3090. Here they are repeated as far as
their descriptions go, %s: real Envoy, the service, and two simulated engines of the profile `+"`%s`"+`, which computes, caches and evicts as
such a GPU with a model of 7B parameters does. Each policy was run %s, in turn with the others, in fresh processes, with the same
requests; figures are medians of the runs, measured by the client (`+"`firsttoken bench`"+`). The published figures come from other hardware and
another load generator: compare the policies of one column, not a figure with its neighbour.

What the engines hold is known from their KV events: they tell of the very blocks of 16 tokens that the simulated GPU caches and evicts.
LMCache would add a tier of host memory that these engines, like the profile, do not have.

- `+"`ttft`"+` is ours, `+"`ttft-hold`"+` (where it was run) the same with holding, `+"`trapezoid`"+` the policy of the proposal (published as TTFT), with exact bookings.
- `+"`kvaware`"+` follows the longest match, and of equals always the same, as published; `+"`kvaware-2000`"+` only where at most 2000 tokens are left to compute, else it is `+"`qps`"+`.
- `+"`qps`"+` takes the engine with the fewest requests per second, `+"`roundrobin`"+` takes turns.
%s
*Estimate off by* is the median of the distance between the time to first token that the service told when it chose and what it then
measured, as a part of the latter. Every policy's choice comes with the same estimate.

In experiment 1 the mean is made by the first rounds, in which all histories are computed at once; nine of ten requests find all but a question
cached and wait for a step or two of the engine. How `+"`kvaware`"+` fares there is decided by few choices: which engine is first to hold what all
share, and how soon the other does. In experiment 2 all policies that spread the load are alike; it shows what following a match costs.

`, p.options.Command, dataFile, dataFile, time, profile, times, others)
	text := p.tables()
	for i, e := range experiments {
		heading := "## " + e.title + "\n\n"
		text = strings.Replace(text, heading, heading+fmt.Sprintf("![Times to first token](%s)\n\n", plotFile(i+1)), 1)
	}
	b.WriteString(text)
	return strings.TrimSpace(b.String()) + "\n"
}

// csv has a line for each run.
func (p *page) csv() []byte {
	var b bytes.Buffer
	out := csv.NewWriter(&b)
	_ = out.Write([]string{
		"experiment", "policy", "run", "requests", "seconds", "ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99", "ttft_max", "itl_mean", "itl_p99",
		"hit_share", "busiest_share", "estimate_error",
	}) // a buffer takes everything
	for i := range p.results {
		r := &p.results[i]
		fields := []string{strconv.Itoa(r.experiment), r.policy, strconv.Itoa(r.run), strconv.Itoa(r.requests)}
		for _, f := range []float64{
			r.seconds, r.ttft.Mean, r.ttft.P50, r.ttft.P90, r.ttft.P99, r.ttft.Max, r.itl.Mean, r.itl.P99, r.hitShare, r.busiest, r.estimateError,
		} {
			fields = append(fields, strconv.FormatFloat(f, 'f', 4, 64))
		}
		_ = out.Write(fields)
	}
	out.Flush()
	return b.Bytes()
}

// requests has a line for each request of each run.
func (p *page) requests() []byte {
	var b bytes.Buffer
	b.WriteString("experiment,policy,run,sent,ttft,ttft_service,estimate,prompt_tokens,cached_tokens,expected_cached_tokens,waiting,decoding,engine,reason\n")
	for i := range p.results {
		r := &p.results[i]
		for _, m := range r.moments {
			fmt.Fprintf(&b, "%d,%s,%d,%.4f,%.4f,%.4f,%.4f,%d,%d,%d,%d,%d,%s,%s\n", r.experiment, r.policy, r.run,
				m.sent, m.ttft, m.measured, m.estimate, m.prompt, m.cached, m.expected, m.waiting, m.decodes, m.engine, m.reason)
		}
	}
	return b.Bytes()
}

// plot is an experiment's plot of all runs together: which share of requests had
// its first token by when, and what those had to wait who asked at a time. Nil
// where it was not run.
func (p *page) plot(number int, title string) ([]byte, error) {
	waits := map[string][]float64{}
	var order []string
	over := report.Panel{Title: "first run", X: "seconds since the start", Y: "seconds to first token"}
	for i := range p.results {
		r := &p.results[i]
		if r.experiment != number {
			continue
		}
		if !slices.Contains(order, r.policy) {
			order = append(order, r.policy)
		}
		curve := report.Curve{Name: r.policy}
		for _, m := range r.moments {
			waits[r.policy] = append(waits[r.policy], m.ttft)
			curve.Points = append(curve.Points, report.Point{X: m.sent, Y: m.ttft})
		}
		if r.run == 1 {
			over.Curves = append(over.Curves, curve)
		}
	}
	if len(order) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	if err := report.Plot(&b, "svg", report.Distribution(title, waits, order), over); err != nil {
		return nil, fmt.Errorf("plot of experiment %d: %w", number, err)
	}
	return b.Bytes(), nil
}
