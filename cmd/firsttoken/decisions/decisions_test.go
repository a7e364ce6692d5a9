package decisions_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firsttoken/firsttoken/cmd/firsttoken/decisions"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// record is one of n requests a second apart: the choice is a, of whose estimate of
// 1 s the first token comes at 2 s; change makes it another.
func record(i int, change func(*firsttokenv1.Decision)) string {
	d := &firsttokenv1.Decision{
		Id: fmt.Sprint(i), Time: timestamppb.New(time.Date(2026, 3, 1, 0, 0, i, 0, time.UTC)), Model: "m", Policy: "ttft", Reason: "cached",
		PromptTokens: 1000, TokenSource: "native", TtftSeconds: new(2.0), Outcome: new("complete"),
		Ended: timestamppb.New(time.Date(2026, 3, 1, 0, 1, i, 0, time.UTC)), ServedAddress: new("10.0.0.1:1"), ServedEndpoint: new("a"),
		Candidates: []*firsttokenv1.Candidate{
			{Endpoint: "a", Address: "10.0.0.1:1", CachedTokens: new(uint32(600)), EstimateSeconds: 1},
			{Endpoint: "b", Address: "10.0.0.2:1", CachedTokens: new(uint32(80)), OptimisticTokens: 20, EstimateSeconds: 4},
		},
	}
	change(d)
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(d)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func asItIs(*firsttokenv1.Decision) {}

// elsewhere is a shadow's, served by b.
func elsewhere(d *firsttokenv1.Decision) {
	d.Shadow, d.ServedAddress, d.ServedEndpoint = true, new("10.0.0.2:1"), new("b")
}

// unsized is a shadow's without a prompt.
func unsized(d *firsttokenv1.Decision) {
	elsewhere(d)
	d.TokenSource, d.PromptTokens, d.TtftSeconds = "none", 0, nil
	for _, c := range d.GetCandidates() {
		c.CachedTokens, c.OptimisticTokens = nil, 0
	}
}

// day is a made-up file of everything that occurs.
func day() string {
	var lines []string
	for i := range 6 {
		lines = append(lines, record(i, func(d *firsttokenv1.Decision) {
			d.Shadow = true
			if i%3 == 0 {
				elsewhere(d)
			}
		}))
	}
	return strings.Join(append(lines,
		record(6, func(d *firsttokenv1.Decision) { // a retry: nothing was estimated for what it took
			d.ServedAddress, d.ServedEndpoint, d.Rescue = new("10.0.0.2:1"), new("b"), new("answered")
		}),
		record(7, func(d *firsttokenv1.Decision) { d.Ended = nil }),
		record(8, func(d *firsttokenv1.Decision) { d.ServedAddress, d.ServedEndpoint, d.Arm = nil, nil, "new" }),
		record(9, func(d *firsttokenv1.Decision) { d.TtftSeconds, d.Candidates[0].CachedTokens = nil, nil }),
		record(9, asItIs),
		record(14, unsized),
		"", "{broken", `{"id":"x"}`, "\x00\xff",
		record(10, func(d *firsttokenv1.Decision) { d.TtftSeconds = new(math.NaN()) }),
		record(11, func(d *firsttokenv1.Decision) { d.Candidates[1].EstimateSeconds = math.Inf(1) }),
		record(12, func(d *firsttokenv1.Decision) { d.Candidates[1].CachedTokens = new(uint32(1001)) }),
		`{"decisions": [`+record(0, asItIs)+","+record(13, func(d *firsttokenv1.Decision) { d.Model = "<script>|" })+`]}`,
	), "\n")
}

func read(tb testing.TB, files ...string) *decisions.Records {
	tb.Helper()
	var r decisions.Records
	for i, text := range files {
		if err := r.Add(fmt.Sprintf("%d.jsonl", i), strings.NewReader(text)); err != nil {
			tb.Fatal(err)
		}
	}
	return &r
}

// The page is kept, so that a change of it is read by a person.
func TestPage(t *testing.T) {
	r := read(t, day())
	var got bytes.Buffer
	if err := r.Markdown(&got, r.Figures(), "day.svg"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "day.md")
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("run with -update and read the difference (-want +got):\n%s", diff)
	}
}

// The figures by hand.
func TestFigures(t *testing.T) {
	f := read(t, strings.Join([]string{
		record(0, func(d *firsttokenv1.Decision) { d.Shadow = true }),
		record(1, elsewhere),
		record(2, func(d *firsttokenv1.Decision) { elsewhere(d); d.TtftSeconds = new(8.0) }),
		record(3, func(d *firsttokenv1.Decision) { d.Shadow, d.ServedAddress, d.TtftSeconds = true, nil, nil }),
		record(4, unsized), record(5, unsized),
	}, "\n")).Figures()
	if len(f.Groups) != 1 {
		t.Fatalf("%d groups", len(f.Groups))
	}
	g := f.Groups[0]
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"requests", float64(g.Requests), 6},
		{"without a prompt", float64(f.Unsized), 2},
		{"placed", float64(g.Placed), 3},
		{"agreed", float64(g.Agreed), 1},
		{"hits at the choice", g.ChoiceHits, .6},
		{"hits where served", g.ServedHits, (600. + 100 + 100) / 3000},
		{"measured", float64(g.Measured), 3},
		{"median", g.P50, 2},
		{"error, median", g.ErrorMedian, .5}, // 1 for 2, 4 for 2, 4 for 8
		{"bias", g.Bias, 9./12 - 1},
		{"gain", g.Gain, (0. + 3 + 3) / 3},
		{"requests over mean", f.RequestsOverMean, 4 / 2.5},
	} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("%s: %g, want %g", c.name, c.got, c.want)
		}
	}
}

// What requests under way bring counts as far as there is a prompt.
func TestHitsOfRequestsUnderWay(t *testing.T) {
	for _, c := range []struct {
		cached *uint32
		bring  uint32
		want   float64
	}{{new(uint32(600)), 0, .6}, {new(uint32(600)), 300, .9}, {new(uint32(0)), 300, .3}, {new(uint32(600)), math.MaxUint32, 1}, {nil, 300, 0}} {
		g := read(t, record(0, func(d *firsttokenv1.Decision) {
			d.Candidates[0].CachedTokens, d.Candidates[0].OptimisticTokens = c.cached, c.bring
		})).Figures().Groups[0]
		if math.Abs(g.ChoiceHits-c.want) > 1e-9 || g.ServedHits != g.ChoiceHits {
			t.Errorf("%v cached, %d on their way: %g at the choice, %g where served, want %g", c.cached, c.bring, g.ChoiceHits, g.ServedHits, c.want)
		}
	}
}

// Bad lines are counted and named with their place; the good ones count.
func TestBadLines(t *testing.T) {
	r := read(t, "{broken\n"+record(1, asItIs)+"\n", strings.Repeat("no\n", 100))
	if r.Read != 1 || r.Bad != 101 || len(r.Faults) != 10 {
		t.Errorf("%d read, %d bad, %d named", r.Read, r.Bad, len(r.Faults))
	}
	if got := r.Faults[1].String(); !strings.HasPrefix(got, "1.jsonl:1: is no decision record") {
		t.Errorf("named %q", got)
	}
	broken := errors.New("broken disk")
	if err := new(decisions.Records).Add("x", io.MultiReader(strings.NewReader(record(0, asItIs)), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a reader's error is lost: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// The same files in pieces, overlapping, make the same page.
func TestOverlappingFiles(t *testing.T) {
	a, b := record(0, asItIs)+"\n"+record(1, elsewhere), record(1, elsewhere)+"\n"+record(2, asItIs)
	whole, pieces := read(t, a+"\n"+record(2, asItIs)), read(t, a, b)
	if diff := cmp.Diff(whole.Figures(), pieces.Figures()); diff != "" || pieces.Doubled != 1 {
		t.Errorf("%d doubled; (-whole +pieces):\n%s", pieces.Doubled, diff)
	}
}

// The HTML page holds its plots, and what clients wrote does nothing in it.
func TestHTML(t *testing.T) {
	r := read(t, day())
	var got bytes.Buffer
	if err := r.HTML(&got, r.Figures()); err != nil {
		t.Fatal(err)
	}
	text := got.String()
	if strings.Contains(text, "<script") || strings.Count(text, "<svg") != 1 || strings.Count(text, "<h2>") != 5 {
		t.Errorf("page:\n%s", text[:min(len(text), 4000)])
	}
	svg := text[strings.Index(text, "<svg"):]
	dec := xml.NewDecoder(strings.NewReader(svg[:strings.Index(svg, "</svg>")+len("</svg>")]))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the plots are no SVG: %v", err)
		}
	}
}

// Whatever is read: no panic, every line is accounted for, and no figure is NaN.
func FuzzRecords(f *testing.F) {
	f.Add(day())
	f.Add(record(0, asItIs))
	f.Add(`{"decisions": []}`)
	f.Add(`{"id":"1","time":"2026-03-01T00:00:00Z","ended":"2026-03-01T00:00:00Z","candidates":[{"cachedTokens":0}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		r := read(t, text)
		var page bytes.Buffer
		if err := r.Markdown(&page, r.Figures(), ""); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"NaN", "Inf"} {
			if strings.Contains(page.String(), bad) && !strings.Contains(text, bad) {
				t.Errorf("%s in\n%s", bad, page.String())
			}
		}
		if r.Bad > 0 != (len(r.Faults) > 0) || r.Read < 0 {
			t.Errorf("%d bad, %d named", r.Bad, len(r.Faults))
		}
	})
}
