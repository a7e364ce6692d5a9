package experiments

import (
	"bytes"
	"encoding/csv"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/bench"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

// runs are three runs of each policy, with these means.
func runs(means map[string][3]float64) []result {
	var results []result
	for experiment := 1; experiment <= 2; experiment++ {
		for _, name := range Policies() {
			if _, ok := means[name]; !ok {
				continue
			}
			for i, mean := range means[name] {
				results = append(results, result{
					experiment: experiment, policy: name, run: i + 1, requests: 2, seconds: 10, ttft: bench.Distribution{Mean: mean, P50: mean}, estimateError: 0.2,
					moments: []moment{{ttft: mean / 2}, {sent: 1, ttft: 3 * mean / 2}},
				})
			}
		}
	}
	return results
}

func TestTargets(t *testing.T) {
	for _, c := range []struct {
		name   string
		means  map[string][3]float64
		judged int
		missed []string
	}{
		{"all hold, though one run was bad", map[string][3]float64{"ttft": {9, 1, 1}, "trapezoid": {1, 1, 1}, "kvaware": {3, 3, 3}}, 6, nil},
		{"equal to a bound that must not be reached", map[string][3]float64{"ttft": {0.5, 0.5, 0.5}, "trapezoid": {1, 1, 1}, "kvaware": {1, 1, 1}}, 6, []string{"experiment 2: mean TTFT of ttft, below 0.5 of that of kvaware: 0.500"}},
		{"slower than the seed", map[string][3]float64{"ttft": {1.1, 1.1, 1.1}, "trapezoid": {1, 1, 1}}, 4, []string{"experiment 1: mean TTFT of ttft, at most 1.05 of that of trapezoid: 1.100", "experiment 2: mean TTFT of ttft, at most 1.05 of that of trapezoid: 1.100"}},
		{"ours was not run", map[string][3]float64{"trapezoid": {1, 1, 1}}, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPage(Options{Runs: 3, Scale: 1}, runs(c.means))
			if len(p.verdicts) != c.judged || strings.Join(p.missed(), "; ") != strings.Join(c.missed, "; ") {
				t.Errorf("%d verdicts, missed %q; want %d, %q", len(p.verdicts), p.missed(), c.judged, c.missed)
			}
		})
	}
	bad := runs(map[string][3]float64{"ttft": {1, 1, 1}})
	for i := range bad {
		bad[i].estimateError = 0.26
	}
	if missed := newPage(Options{}, bad).missed(); len(missed) != 2 || !strings.Contains(missed[0], "estimate's median error with ttft, at most 0.25 of the TTFT: 0.260") {
		t.Errorf("missed %q", missed)
	}
}

func TestPage(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "docs", "experiments")
	p := newPage(Options{Runs: 3, Scale: 0.5, Command: "make experiments"}, runs(map[string][3]float64{"ttft": {1, 2, 4}, "trapezoid": {2, 2, 2}, "kvaware": {5, 5, 5}}))
	if err := p.write(folder); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, name := range []string{"envoy.md", "envoy.csv", "envoy-1.svg", "envoy-2.svg"} {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	for _, text := range []string{
		"0.5 seconds for one", "run 3 times", "(envoy-1.svg)", "(envoy-2.svg)", "| ttft | 2.000 s | 1.000 s to 4.000 s |  |", // the median, the best and the worst run
		"| trapezoid | 2.000 s | 2.000 s to 2.000 s | 0.397 s |", "| kvaware | 5.000 s | 5.000 s to 5.000 s | 5.314 s |",
		"| experiment 1: mean TTFT of ttft, below 0.85 of that of kvaware | 0.400 | yes |",
	} {
		if !strings.Contains(files["envoy.md"], text) {
			t.Errorf("the page lacks %q:\n%s", text, files["envoy.md"])
		}
	}
	rows, err := csv.NewReader(strings.NewReader(files["envoy.csv"])).ReadAll()
	if err != nil || len(rows) != 1+2*3*3 || rows[2][0] != "1" || rows[2][1] != "ttft" || rows[2][2] != "2" || rows[2][5] != "2.0000" {
		t.Errorf("%v, %q", err, rows)
	}
	for _, name := range []string{"envoy-1.svg", "envoy-2.svg"} {
		if !strings.Contains(files[name], "kvaware") || !strings.HasSuffix(strings.TrimSpace(files[name]), "</svg>") {
			t.Errorf("%s is no plot of all policies", name)
		}
	}
}

func TestResult(t *testing.T) {
	start := time.Unix(100, 0)
	record := func(id, endpoint string, sent, ttft time.Duration) bench.Record {
		return bench.Record{Answer: bench.Answer{ID: id, Endpoint: endpoint, Sent: start.Add(sent), FirstToken: ttft, Usage: bench.Usage{Prompt: 10, Cached: 5, CachedKnown: true}}}
	}
	decision := func(id string, estimate, ttft float64) *firsttokenv1.Decision {
		return &firsttokenv1.Decision{Id: id, TtftSeconds: new(ttft), Candidates: []*firsttokenv1.Candidate{{EstimateSeconds: estimate}, {EstimateSeconds: 99}}}
	}
	records := []bench.Record{record("b", "e:2", time.Second, 2*time.Second), record("a", "e:1", 0, time.Second), record("c", "e:1", 2*time.Second, time.Second)}
	decisions := []*firsttokenv1.Decision{decision("a", 0.9, 1), decision("b", 3, 2), decision("c", 1, 1), decision("warm-up", 9, 1)}
	s := bench.Summarize(records)
	s.Seconds = 3
	got, err := newResult(1, "ttft", 2, 0.5, &s, records, decisions)
	if err != nil {
		t.Fatal(err)
	}
	if got.seconds != 6 || got.ttft.P50 != 2 || got.ttft.Max != 4 || got.hitShare != 0.5 || got.busiest != 2.0/3 {
		t.Errorf("%+v", got)
	}
	// Of the errors 0.1, 0.5 and 0.
	if e := got.estimateError; e < 0.0999 || e > 0.1001 {
		t.Errorf("estimate error %g, want 0.1", e)
	}
	if len(got.moments) != 3 || got.moments[1] != (moment{sent: 2, ttft: 4, measured: 4, estimate: 6, prompt: 10, cached: 5, engine: "e:2"}) {
		t.Errorf("moments %+v", got.moments)
	}
	if _, err := newResult(1, "ttft", 1, 1, &s, records, decisions[1:]); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("error %v for a request that the service does not know", err)
	}
}

// An error of estimates that nobody could measure must not pass for a small one.
func TestResultNeedsFirstTokens(t *testing.T) {
	records := []bench.Record{{Answer: bench.Answer{ID: "a", FirstToken: time.Second}}}
	s := bench.Summarize(records)
	_, err := newResult(1, "ttft", 1, 1, &s, records, []*firsttokenv1.Decision{{Id: "a", Candidates: []*firsttokenv1.Candidate{{EstimateSeconds: 1}}}})
	if err == nil || !strings.Contains(err.Error(), "no first token") {
		t.Errorf("error %v", err)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 2}, 2}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %g, want %g", c.values, got, c.want)
		}
	}
}

// What is missing is named before anything is started.
func TestRunNeedsEnvoy(t *testing.T) {
	var out bytes.Buffer
	err := Run(t.Context(), Options{Runs: 1, Scale: 1, Policies: Policies(), Experiments: []int{1, 2}, Envoy: "nowhere/envoy", Out: &out})
	if err == nil || !strings.Contains(err.Error(), "make .tools/envoy fetches it") || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}
}

func TestLoadsAreScaled(t *testing.T) {
	full, quarter := experiments[0].load(1).(bench.MultiRound), experiments[0].load(0.25).(bench.MultiRound)
	if full.RampUp != roundGap || quarter.RampUp != roundGap/4 || quarter.QPS != 4*full.QPS || full.QPS < 3.33 || full.QPS > 3.34 {
		t.Errorf("%+v, %+v", full, quarter)
	}
	for i, e := range experiments {
		if err := e.load(1).Validate(); err != nil {
			t.Error(err)
		}
		if want := []int{150, 100}[i]; e.load(1).Size() != want {
			t.Errorf("experiment %d has %d requests, want %d", i+1, e.load(1).Size(), want)
		}
	}
}
