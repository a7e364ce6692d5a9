package report

import (
	"fmt"
	"io"
)

// Capacity is how many requests a second a policy carries within a limit on the
// mean time to first token. Of several runs it is the mean over the runs.
type Capacity struct {
	Policy string `json:"policy"`
	// RequestsPerSecond is the most that was found to hold the limit, Exceeded the
	// least above it that was found not to; 0 where no rate was found.
	RequestsPerSecond float64 `json:"requests_per_second"`
	Exceeded          float64 `json:"exceeded_at_requests_per_second"`
	// Speed is the trace's speed for RequestsPerSecond, Mean the mean time to
	// first token at it, in seconds.
	Speed float64 `json:"speed"`
	Mean  float64 `json:"mean"`
	// RatioToSeed is RequestsPerSecond over that of the seed's policy.
	RatioToSeed float64 `json:"ratio_to_seed"`
	// LeastRequestsPerSecond and MostRequestsPerSecond are the extremes of
	// RequestsPerSecond over single runs.
	LeastRequestsPerSecond float64 `json:"least_requests_per_second"`
	MostRequestsPerSecond  float64 `json:"most_requests_per_second"`
	Runs                   int     `json:"runs"`
}

// capacityColumns are those of table and CSV.
var capacityColumns = []column[Capacity]{
	{"requests_per_second", "requests/s", "%.3f", func(r *Capacity) float64 { return r.RequestsPerSecond }},
	{"exceeded_at_requests_per_second", "exceeded at", "%.3f", func(r *Capacity) float64 { return r.Exceeded }},
	{"speed", "speed", "%.4g", func(r *Capacity) float64 { return r.Speed }},
	{"mean", "mean s", "%.3f", func(r *Capacity) float64 { return r.Mean }},
	{"ratio_to_seed", "of seed's", "%.3f", func(r *Capacity) float64 { return r.RatioToSeed }},
	{"least_requests_per_second", "least", "%.3f", func(r *Capacity) float64 { return r.LeastRequestsPerSecond }},
	{"most_requests_per_second", "most", "%.3f", func(r *Capacity) float64 { return r.MostRequestsPerSecond }},
	{"runs", "runs", "%.0f", func(r *Capacity) float64 { return float64(r.Runs) }},
}

// capacityExtremes is how many columns at the end are about several runs.
const capacityExtremes = 3

// CapacityTable writes rows for people. Figures of one run have no extremes.
func CapacityTable(w io.Writer, rows []Capacity) error {
	shown := capacityColumns
	if len(rows) > 0 && rows[0].Runs == 1 {
		shown = shown[:len(shown)-capacityExtremes]
	}
	lines := [][]string{{"policy"}}
	for _, c := range shown {
		lines[0] = append(lines[0], c.title)
	}
	for i := range rows {
		cells := []string{rows[i].Policy}
		for _, c := range shown {
			cells = append(cells, fmt.Sprintf(c.format, c.value(&rows[i])))
		}
		lines = append(lines, cells)
	}
	return Columns(w, lines)
}

// CapacityJSON writes a list with an object for each row.
func CapacityJSON(w io.Writer, rows []Capacity) error { return asJSON(w, rows) }

// CapacityCSV writes a header with JSON's names and a line for each row.
func CapacityCSV(w io.Writer, rows []Capacity) error {
	return asCSV(w, capacityColumns, rows, func(r *Capacity) string { return r.Policy })
}
