package report_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"image/png"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsttoken/firsttoken/simulator/replay"
	"github.com/firsttoken/firsttoken/simulator/report"
)

// hundred has times to first token of 1 to 100 s in a mixed order, the longer
// the prompt the longer.
func hundred(scale float64) *replay.Report {
	r := &replay.Report{BusyShare: .5, Preemptions: 4, Unserved: 1, Span: 50 * time.Second}
	for i := range 100 {
		n := i*37%100 + 1
		q := replay.Request{
			TTFT: time.Duration(float64(n) * scale * float64(time.Second)), Estimate: time.Duration(float64(n) * scale * 1.25 * float64(time.Second)),
			Prompt: n * 10, Cached: n, Output: 1,
		}
		if n > 50 {
			q.Output, q.TPOT = 3, 20*time.Millisecond
		}
		r.Requests = append(r.Requests, q)
	}
	return r
}

func TestFiguresOfAHundredRequests(t *testing.T) {
	seed := []*replay.Report{hundred(1), hundred(1)}
	rows := report.Rows([]report.Run{
		{Policy: "trapezoid", Reports: seed},
		{Policy: "ttft", Reports: []*replay.Report{hundred(.5), hundred(.7)}},
	}, seed)
	want := []report.Row{
		{
			Policy: "trapezoid", Mean: 50.5, P50: 50.5, P90: 90.1, P99: 99.01, TPOT: .02, HitShare: .1, BusyShare: .5, Preemptions: 4,
			LongestTenthMean: 95.5, RatioToSeed: 1, P99RatioToSeed: 1, LongestTenthRatioToSeed: 1, RatioToReference: 1,
			LeastRatioToSeed: 1, MostRatioToSeed: 1, EstimateError: .25, Requests: 100, Unserved: 1, Rate: 2, Runs: 2,
		},
		{
			Policy: "ttft", Mean: 30.3, P50: 30.3, P90: 54.06, P99: 59.406, TPOT: .02, HitShare: .1, BusyShare: .5, Preemptions: 4,
			LongestTenthMean: 57.3, RatioToSeed: .6, P99RatioToSeed: .6, LongestTenthRatioToSeed: .6, RatioToReference: .6,
			LeastRatioToSeed: .5, MostRatioToSeed: .7, EstimateError: .25, Requests: 100, Unserved: 1, Rate: 2, Runs: 2,
		},
	}
	if diff := cmp.Diff(want, rows, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestQuantiles(t *testing.T) {
	for _, c := range []struct {
		sorted  []float64
		q, want float64
	}{
		{nil, .5, 0},
		{[]float64{3}, .99, 3},
		{[]float64{1, 2}, .5, 1.5},
		{[]float64{1, 2, 4}, .75, 3},
		{[]float64{1, 2, 4}, 1, 4},
		{[]float64{1, 2, 4}, 0, 1},
	} {
		if got := report.Quantile(c.sorted, c.q); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("quantile %g of %v is %g, want %g", c.q, c.sorted, got, c.want)
		}
	}
}

// The names are an interface: scripts read them.
func TestJSONHasItsKeysAndNoRowIsAList(t *testing.T) {
	var b bytes.Buffer
	runs := []report.Run{{Policy: "trapezoid", Reports: []*replay.Report{{}}}} // nothing was served: no figure is NaN
	if err := report.JSON(&b, report.Rows(runs, runs[0].Reports)); err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(b.Bytes(), &rows); err != nil || len(rows) != 1 {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	rest := b.String()
	for key := range strings.FieldsSeq("policy mean p50 p90 p99 tpot hit_share busy_share preemptions longest_tenth_mean ratio_to_seed") {
		if _, ok := rows[0][key]; !ok {
			t.Errorf("no key %q in %v", key, rows[0])
		}
		_, after, found := strings.Cut(rest, `"`+key+`": `)
		if !found {
			t.Errorf("key %q comes before one that it is to follow:\n%s", key, b.String())
		}
		rest = after
	}
	b.Reset()
	if err := report.JSON(&b, nil); err != nil || b.String() != "[]\n" {
		t.Errorf("%q, %v; want an empty list", b.String(), err)
	}
}

func TestTableAndCSV(t *testing.T) {
	rows := report.Rows([]report.Run{{Policy: "trapezoid", Reports: []*replay.Report{hundred(1)}}, {Policy: "llmd-affinity", Reports: []*replay.Report{hundred(2)}}}, []*replay.Report{hundred(1)})
	var table, csv bytes.Buffer
	if err := errors.Join(report.Table(&table, rows), report.CSV(&csv, rows)); err != nil {
		t.Fatal(err)
	}
	const wantTable = `
policy           mean s   p50 s    p90 s    p99 s  tpot s   hits   busy  preempted  longest tenth s  mean / seed  p99 / seed  longest / seed
trapezoid        50.500  50.500   90.100   99.010  0.0200  0.100  0.500          4           95.500        1.000       1.000           1.000
llmd-affinity   101.000 101.000  180.200  198.020  0.0200  0.100  0.500          4          191.000        2.000       2.000           2.000
`
	squeeze := func(s string) string {
		var lines []string
		for line := range strings.Lines(s) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.TrimSpace(strings.Join(lines, "\n"))
	}
	if diff := cmp.Diff(squeeze(wantTable), squeeze(table.String())); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	for i, line := range strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n") {
		if len(line) != strings.IndexByte(table.String(), '\n') {
			t.Errorf("line %d is not as wide as the head:\n%s", i, table.String())
		}
	}
	lines := strings.Split(strings.TrimSpace(csv.String()), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "policy,mean,p50,p90,p99,tpot,hit_share,busy_share,preemptions,longest_tenth_mean,ratio_to_seed,") ||
		!strings.HasPrefix(lines[2], "llmd-affinity,101,101,180.2,198.02,0.02,0.1,0.5,4,191,2,") {
		t.Errorf("CSV:\n%s", csv.String())
	}
}

func panels(curves int) []report.Panel {
	seconds := map[string][]float64{"nobody": nil}
	order := []string{"nobody"}
	queue := report.Panel{Title: "queue", X: "seconds", Y: "requests waiting"}
	for i := range curves {
		name := fmt.Sprintf("policy %d", i)
		order = append(order, name)
		c := report.Curve{Name: name}
		for k := range 2000 {
			seconds[name] = append(seconds[name], float64((k*7919)%2000)*.01*float64(i+1)) // 0 once, which a logarithm cannot show
			c.Points = append(c.Points, report.Point{X: float64(k), Y: 10 + 5*math.Sin(float64(k)/100) + float64(i)})
		}
		queue.Curves = append(queue.Curves, c)
	}
	return []report.Panel{report.Distribution("time to first token", seconds, order), queue}
}

func TestPlotsAreWellFormedAndReproducible(t *testing.T) {
	for _, format := range []string{"svg", "png"} {
		var a, b bytes.Buffer
		if err := errors.Join(report.Plot(&a, format, panels(9)...), report.Plot(&b, format, panels(9)...)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("%s: two plots of the same panels differ", format)
		}
		if format == "png" {
			if _, err := png.Decode(&a); err != nil {
				t.Error(err)
			}
			continue
		}
		if a.Len() > 300_000 {
			t.Errorf("%d bytes of SVG for 18 curves", a.Len())
		}
		for _, want := range []string{"policy 0", "policy 8", "seconds to first token", "requests waiting"} {
			if !strings.Contains(b.String(), ">"+want+"<") {
				t.Errorf("no text %q", want)
			}
		}
		if strings.Contains(b.String(), "nobody") || strings.Contains(b.String(), "NaN") {
			t.Error("something is drawn of a policy that served nobody")
		}
		d := xml.NewDecoder(&a)
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// An empty report must not end a long run.
func TestPlotsOfLittle(t *testing.T) {
	for name, ps := range map[string][]report.Panel{
		"no curve":  {{Title: "x", LogX: true}},
		"one point": {{LogX: true, Curves: []report.Curve{{Name: "a", Points: []report.Point{{X: 1, Y: 1}}}}}},
		"zero":      {report.Distribution("d", map[string][]float64{"a": {0, 0}}, []string{"a"})},
		"infinite":  {{Curves: []report.Curve{{Name: "a", Points: []report.Point{{X: math.Inf(1), Y: 1}, {X: 1, Y: math.NaN()}}}}}},
	} {
		if err := report.Plot(io.Discard, "svg", ps...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := report.Plot(io.Discard, "svg"); err == nil {
		t.Error("nothing was plotted without an error")
	}
	if err := report.Plot(io.Discard, "gif", panels(1)...); err == nil || !strings.Contains(err.Error(), "write svg or png") {
		t.Errorf("error %v", err)
	}
}

func TestPlotFormatIsTheFilesEnd(t *testing.T) {
	for file, want := range map[string]string{"a.svg": "svg", "b/c.PNG": "png", "a.gif": "", "svg": ""} {
		got, err := report.PlotFormat(file)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestCapacities(t *testing.T) {
	rows := []report.Capacity{
		{Policy: "trapezoid", RequestsPerSecond: 2, Exceeded: 2.02, Speed: .5, Mean: .95, RatioToSeed: 1, LeastRequestsPerSecond: 1.9, MostRequestsPerSecond: 2.1, Runs: 2},
		{Policy: "ttft", RequestsPerSecond: 3, Exceeded: 3.03, Speed: .75, Mean: .99, RatioToSeed: 1.5, LeastRequestsPerSecond: 2.5, MostRequestsPerSecond: 3.5, Runs: 2},
	}
	var table, csv, text bytes.Buffer
	if err := errors.Join(report.CapacityTable(&table, rows), report.CapacityCSV(&csv, rows), report.CapacityJSON(&text, rows)); err != nil {
		t.Fatal(err)
	}
	const want = `policy     requests/s  exceeded at  speed  mean s  of seed's  least   most  runs
trapezoid       2.000        2.020    0.5   0.950      1.000  1.900  2.100     2
ttft            3.000        3.030   0.75   0.990      1.500  2.500  3.500     2
`
	if diff := cmp.Diff(want, table.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if want := "\nttft,3,3.03,0.75,0.99,1.5,2.5,3.5,2\n"; !strings.HasSuffix(csv.String(), want) {
		t.Errorf("CSV:\n%s\nwant its end to be %q", csv.String(), want)
	}
	var back []report.Capacity
	if err := json.Unmarshal(text.Bytes(), &back); err != nil || !cmp.Equal(rows, back) {
		t.Errorf("JSON gives %+v, %v; want %+v", back, err, rows)
	}
	rows[0].Runs, rows[1].Runs = 1, 1
	table.Reset()
	if err := report.CapacityTable(&table, rows); err != nil || strings.Contains(table.String(), "least") {
		t.Errorf("table of one run each, %v:\n%s", err, table.String())
	}
}
