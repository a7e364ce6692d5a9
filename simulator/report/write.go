package report

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// column is one figure of a row as table and CSV show it.
type column[R any] struct {
	key    string // of JSON and CSV
	title  string
	format string // of the table
	value  func(*R) float64
}

// columns are what the table shows, in its order.
var columns = []column[Row]{
	{"mean", "mean s", "%.3f", func(r *Row) float64 { return r.Mean }},
	{"p50", "p50 s", "%.3f", func(r *Row) float64 { return r.P50 }},
	{"p90", "p90 s", "%.3f", func(r *Row) float64 { return r.P90 }},
	{"p99", "p99 s", "%.3f", func(r *Row) float64 { return r.P99 }},
	{"tpot", "tpot s", "%.4f", func(r *Row) float64 { return r.TPOT }},
	{"hit_share", "hits", "%.3f", func(r *Row) float64 { return r.HitShare }},
	{"busy_share", "busy", "%.3f", func(r *Row) float64 { return r.BusyShare }},
	{"preemptions", "preempted", "%.4g", func(r *Row) float64 { return r.Preemptions }},
	{"longest_tenth_mean", "longest tenth s", "%.3f", func(r *Row) float64 { return r.LongestTenthMean }},
	{"ratio_to_seed", "mean / seed", "%.3f", func(r *Row) float64 { return r.RatioToSeed }},
	{"p99_ratio_to_seed", "p99 / seed", "%.3f", func(r *Row) float64 { return r.P99RatioToSeed }},
	{"longest_tenth_ratio_to_seed", "longest / seed", "%.3f", func(r *Row) float64 { return r.LongestTenthRatioToSeed }},
}

// more are what CSV has besides.
var more = []column[Row]{
	{"ratio_to_reference", "", "", func(r *Row) float64 { return r.RatioToReference }},
	{"least_ratio_to_seed", "", "", func(r *Row) float64 { return r.LeastRatioToSeed }},
	{"most_ratio_to_seed", "", "", func(r *Row) float64 { return r.MostRatioToSeed }},
	{"estimate_error", "", "", func(r *Row) float64 { return r.EstimateError }},
	{"requests", "", "", func(r *Row) float64 { return r.Requests }},
	{"unserved", "", "", func(r *Row) float64 { return r.Unserved }},
	{"requests_per_second", "", "", func(r *Row) float64 { return r.Rate }},
	{"runs", "", "", func(r *Row) float64 { return float64(r.Runs) }},
}

// Table writes rows for people. Where figures are of several runs, a last
// column shows how far apart the ratios of single runs were.
func Table(w io.Writer, rows []Row) error {
	ranged := len(rows) > 0 && rows[0].Runs > 1
	cells := []string{"policy"}
	for _, c := range columns {
		cells = append(cells, c.title)
	}
	if ranged {
		cells = append(cells, "of single runs")
	}
	table := [][]string{cells}
	for i := range rows {
		cells := []string{rows[i].Policy}
		for _, c := range columns {
			cells = append(cells, fmt.Sprintf(c.format, c.value(&rows[i])))
		}
		if ranged {
			cells = append(cells, fmt.Sprintf("%.3f-%.3f", rows[i].LeastRatioToSeed, rows[i].MostRatioToSeed))
		}
		table = append(table, cells)
	}
	return Columns(w, table)
}

// Columns writes cells in columns, the first to the left, the others to the
// right. The first line is the head; every line has as many cells.
func Columns(w io.Writer, lines [][]string) error {
	if len(lines) == 0 {
		return nil
	}
	// text/tabwriter cannot align one column to the left and others to the right.
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var text strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&text, "%-*s", widths[0], line[0])
		for i, cell := range line[1:] {
			fmt.Fprintf(&text, "  %*s", widths[i+1], cell)
		}
		text.WriteByte('\n')
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// JSON writes a list with an object for each row.
func JSON(w io.Writer, rows []Row) error { return asJSON(w, rows) }

func asJSON[R any](w io.Writer, rows []R) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if rows == nil {
		rows = []R{}
	}
	return e.Encode(rows)
}

// CSV writes a header with JSON's names and a line for each row.
func CSV(w io.Writer, rows []Row) error {
	return asCSV(w, append(slices.Clip(columns), more...), rows, func(r *Row) string { return r.Policy })
}

func asCSV[R any](w io.Writer, columns []column[R], rows []R, policy func(*R) string) error {
	c := csv.NewWriter(w)
	line := []string{"policy"}
	for _, column := range columns {
		line = append(line, column.key)
	}
	_ = c.Write(line) // Error tells of it
	for i := range rows {
		line = append(line[:0], policy(&rows[i]))
		for _, column := range columns {
			line = append(line, strconv.FormatFloat(column.value(&rows[i]), 'g', 6, 64))
		}
		_ = c.Write(line)
	}
	c.Flush()
	return c.Error()
}
