package decisions

import (
	"bytes"
	"errors"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/simulator/report"
)

// section is a part of the page: a table and what is said of it.
type section struct {
	Title string
	Text  []string
	Head  []string
	Rows  [][]string
}

// sections are the page's figures, in order.
func (r *Records) sections(f Figures) []section {
	shadow, placed, agreed := 0, 0, 0
	for _, g := range f.Groups {
		if g.Shadow {
			shadow, placed, agreed = shadow+g.Requests, placed+g.Placed, agreed+g.Agreed
		}
	}
	read := section{Title: "What was read", Head: []string{"", ""}, Rows: [][]string{
		{"files", strings.Join(r.Files, ", ")},
		{"from", f.From.UTC().Format("2006-01-02 15:04:05")},
		{"to", f.To.UTC().Format("2006-01-02 15:04:05")},
		{"requests", strconv.Itoa(r.Read)},
		{"of them shadow (somebody else chose)", strconv.Itoa(shadow)},
		{"of them without a prompt (in no share of hits or agreement, nor in gains)", strconv.Itoa(f.Unsized)},
		{"left out: read before", strconv.Itoa(r.Doubled)},
		{"left out: not ended", strconv.Itoa(r.Open)},
		{"left out: bad lines", strconv.Itoa(r.Bad)},
	}}
	for _, fault := range r.Faults {
		read.Text = append(read.Text, "Bad line: "+fault.String())
	}
	if placed > 0 {
		read.Text = append(read.Text, fmt.Sprintf("Of %d shadow requests with a prompt of which it is known who served them, %s went where they would have been sent.",
			placed, percent(float64(agreed)/float64(placed))))
	}
	caches := section{
		Title: "Caches, by model, policy and arm",
		Text: []string{"Hits are prompt tokens in caches, or on their way there by requests under way, as a share of the prompts of which both are known: at the policy's choice, and at the endpoint that served. " +
			"Where they differ, the choice is one step ahead of a past that others made: routed by it throughout, caches would hold other things."},
		Head: []string{"model", "policy", "arm", "chosen by", "requests", "prompt tokens", "hits at the choice", "hits where served", "served by the choice"},
	}
	times := section{
		Title: "Time to first token, by model, policy and arm",
		Text: []string{
			"Measured on streamed answers, from the moment the request was on its way to the engine. The error is that of the estimate for the endpoint that served, " +
				"as a share of the measured time; the bias is the sum of these estimates over that of measured times, less one.",
			"The gain is an estimate against an estimate, for one request at a time: how much sooner its first token was estimated to come at the choice than where it was served. " +
				"Nobody has measured it, and the best of several estimates is more often too good than too bad.",
		},
		Head: []string{"model", "policy", "arm", "measured", "p50 s", "p95 s", "p99 s", "estimated", "error p50", "error p90", "bias", "estimated gain, mean s"},
	}
	for _, g := range f.Groups {
		by := "the policy"
		if g.Shadow {
			by = "somebody else (shadow)"
		}
		of := []string{cell(g.Model), cell(g.Policy), cell(g.Arm)}
		caches.Rows = append(caches.Rows, append(of[:3:3], by, strconv.Itoa(g.Requests), fmt.Sprintf("%.0f", g.Tokens),
			share(g.Compared > 0, g.ChoiceHits), share(g.Compared > 0, g.ServedHits), share(g.Placed > 0, float64(g.Agreed)/float64(g.Placed))))
		m, e := g.Measured > 0, g.Estimated > 0
		times.Rows = append(times.Rows, append(of[:3:3], strconv.Itoa(g.Measured), figure(m, g.P50), figure(m, g.P95), figure(m, g.P99),
			strconv.Itoa(g.Estimated), share(e, g.ErrorMedian), share(e, g.ErrorP90), signed(e, g.Bias), figure(g.Shadow && g.Placed > 0, g.Gain)))
	}
	balance := section{
		Title: "Endpoints",
		Text: []string{fmt.Sprintf("The busiest served %.2f times the mean of the requests, and %.2f times that of the prompt tokens.",
			f.RequestsOverMean, f.TokensOverMean)},
		Head: []string{"endpoint", "served", "share", "prompt tokens", "of them not cached", "was the choice for"},
	}
	for _, e := range f.Endpoints {
		balance.Rows = append(balance.Rows, []string{
			cell(e.Name), strconv.Itoa(e.Served), percent(e.Share), fmt.Sprintf("%.0f", e.Tokens), fmt.Sprintf("%.0f", e.Computed), strconv.Itoa(e.Chosen),
		})
	}
	counts := section{Title: "Reasons and outcomes", Head: []string{"", "", "requests"}}
	for _, c := range f.Counts {
		counts.Rows = append(counts.Rows, []string{c.Of, cell(c.Value), strconv.Itoa(c.Requests)})
	}
	return []section{read, caches, times, balance, counts}
}

// ErrNothing says that there is nothing to report.
var ErrNothing = errors.New("no record of a request that has ended")

// Markdown writes the page; plots is where its plots are, empty: nowhere.
func (r *Records) Markdown(w io.Writer, f Figures, plots string) error {
	var b bytes.Buffer
	b.WriteString("# Decisions\n")
	for _, s := range r.sections(f) {
		fmt.Fprintf(&b, "\n## %s\n", s.Title)
		for _, text := range s.Text {
			fmt.Fprintf(&b, "\n%s\n", text)
		}
		fmt.Fprintf(&b, "\n| %s |\n|%s\n", strings.Join(s.Head, " | "), strings.Repeat(" --- |", len(s.Head)))
		for _, row := range s.Rows {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		}
	}
	if plots != "" {
		fmt.Fprintf(&b, "\n![Over time](%s)\n", plots)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Plots writes the plots as SVG.
func (r *Records) Plots(w io.Writer, f Figures) error {
	return report.Plot(w, "svg", r.Panels(f)...)
}

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Decisions</title><style>
body{font-family:sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;line-height:1.4}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ccc;padding:.25rem .75rem;text-align:left}
svg{max-width:100%;height:auto}
</style></head><body><h1>Decisions</h1>
{{range .Sections}}<h2>{{.Title}}</h2>
{{range .Text}}<p>{{.}}</p>
{{end}}<table><tr>{{range .Head}}<th>{{.}}</th>{{end}}</tr>
{{range .Rows}}<tr>{{range .}}<td>{{.}}</td>{{end}}</tr>
{{end}}</table>
{{end}}{{.Plots}}
</body></html>
`))

// HTML writes the page with its plots in it.
func (r *Records) HTML(w io.Writer, f Figures) error {
	var plots bytes.Buffer
	if err := r.Plots(&plots, f); err != nil {
		return err
	}
	svg := plots.String()
	if at := strings.Index(svg, "<svg"); at > 0 {
		svg = svg[at:] // what stands before is for a file of its own
	}
	return page.Execute(w, struct {
		Sections []section
		Plots    template.HTML
	}{r.sections(f), template.HTML(svg)}) //nolint:gosec // drawn by the library, which escapes names
}

// cell is a name in a table. Names of models are the clients'.
func cell(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(c rune) rune {
		if c == '|' || c == '`' || c == '<' || c == '\\' || c < ' ' {
			return '_'
		}
		return c
	}, s)
}

func figure(known bool, x float64) string {
	if !known {
		return "-"
	}
	return fmt.Sprintf("%.3f", x)
}

func share(known bool, x float64) string {
	if !known {
		return "-"
	}
	return percent(x)
}

func signed(known bool, x float64) string {
	if !known {
		return "-"
	}
	return fmt.Sprintf("%+.1f %%", 100*x)
}

func percent(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) }
