package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/encoding/protojson"

	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator/trace"
)

// journalWithFile is a journal of few records whose file is in a folder of the
// test's.
func journalWithFile(t *testing.T, change func(*decisionsConfig)) *journal {
	t.Helper()
	cfg := defaultDecisionsConfig()
	cfg.File = filepath.Join(t.TempDir(), "decisions.jsonl")
	change(&cfg)
	j := newJournal(4, 1)
	f, err := newDecisionFile(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), j)
	if err != nil {
		t.Fatal(err)
	}
	j.file = f
	return j
}

// written runs the file's goroutine to its end and reads what it wrote.
func written(t *testing.T, j *journal) []*firsttokenv1.Decision {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.file.run(ended); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(j.file.file.Filename)
	if err != nil {
		t.Fatal(err)
	}
	var records []*firsttokenv1.Decision
	for line := range bytes.Lines(text) {
		r := new(firsttokenv1.Decision)
		if err := protojson.Unmarshal(line, r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		records = append(records, r)
	}
	return records
}

// Each record is written once, when its request has ended, also where /decisions
// has forgotten it by then; those still open are written at the end.
func TestDecisionFileHasEveryRequest(t *testing.T) {
	j := journalWithFile(t, func(*decisionsConfig) {})
	const n = 20
	for i := range n {
		j.Decided(decision(fmt.Sprint(i)))
	}
	for i := range n - 1 {
		d := decision(fmt.Sprint(i))
		j.FirstToken(d, time.Second)
		j.Ended(d, scoring.OutcomeComplete, "10.0.0.2:1")
	}
	if len(j.byID) != 4 {
		t.Errorf("%d records are kept, want those of /decisions", len(j.byID))
	}
	records := written(t, j)
	if len(records) != n {
		t.Fatalf("%d records for %d requests", len(records), n)
	}
	for i, r := range records {
		open := i == n-1
		if r.GetId() != fmt.Sprint(i) || (r.GetEnded() == nil) != open || r.GetServedEndpoint() != map[bool]string{true: "", false: "b"}[open] {
			t.Errorf("record %d: %v", i, r)
		}
		if !open && (r.GetServedEstimateSeconds() != 4 || r.GetServedCachedTokens() != 2 || r.GetExpectedGainSeconds() != 3) {
			t.Errorf("of the endpoint that served: %v", r)
		}
	}
	if got := testutil.ToFloat64(j.file.records.WithLabelValues("written")); got != n {
		t.Errorf("%v written, want %d", got, n)
	}
}

// A disk that does not keep up costs records, never a request.
func TestDecisionFileDropsWhatItCannotTake(t *testing.T) {
	j := journalWithFile(t, func(*decisionsConfig) {})
	const more = 10
	for i := range decisionQueue + more { // nobody writes
		d := decision(fmt.Sprint(i))
		j.Decided(d)
		j.Ended(d, scoring.OutcomeComplete, "")
	}
	if got := testutil.ToFloat64(j.file.records.WithLabelValues("dropped")); got != more {
		t.Errorf("%v dropped, want %d", got, more)
	}
	if got := len(written(t, j)); got != decisionQueue {
		t.Errorf("%d written, want %d", got, decisionQueue)
	}
}

// The blocks of a prompt are named by the file's own goroutine: while a request's
// end is taken in, no other can be.
func TestDecisionFileNamesBlocksItself(t *testing.T) {
	j := journalWithFile(t, func(c *decisionsConfig) { c.Blocks = true })
	for i := range 2 { // the second does not end
		d := decision(fmt.Sprint(i))
		d.Prompt = &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: make([]uint32, 200), Length: 200, Usable: 200, Copies: 1}}}
		d.Prompt.FillChain()
		j.Decided(d)
		if i == 0 {
			j.Ended(d, scoring.OutcomeComplete, "")
		}
	}
	e := <-j.file.queue
	if names := e.record.GetPrefixBlocks(); len(names) > 0 {
		t.Errorf("%d blocks are named before the record is written", len(names))
	}
	j.file.queue <- e
	for _, r := range written(t, j) {
		if got := len(r.GetPrefixBlocks()); got != 3 {
			t.Errorf("%d blocks of record %s have names, want 3", got, r.GetId())
		}
	}
}

// The files are bounded in size and number.
func TestDecisionFilesAreBounded(t *testing.T) {
	j := journalWithFile(t, func(c *decisionsConfig) { c.MaxMegabytes, c.MaxFiles = 1, 2 })
	big := decision("x")
	big.Model = strings.Repeat("m", 100<<10)
	for range 55 {
		j.Decided(big)
		j.Ended(big, scoring.OutcomeComplete, "")
	}
	written(t, j)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(j.file.file.Filename), "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("%d files, want 3: %v %v", len(files), files, err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Size() > 1<<20 {
			t.Errorf("%s: %v %v", file, info.Size(), err)
		}
	}
}

// What cannot be written is a fault at the start, with the key.
func TestDecisionFileThatCannotBe(t *testing.T) {
	cfg := defaultDecisionsConfig()
	cfg.File = filepath.Join(t.TempDir(), "none", "decisions.jsonl")
	_, err := newDecisionFile(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "decisions.file: ") {
		t.Errorf("%v", err)
	}
	bad := decisionsConfig{}
	for _, want := range []string{"d.max_megabytes: is 0", "d.max_files: is 0"} {
		if err := bad.Validate("d"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

// The file is a trace that simulate reads, with the prefixes that prompts shared.
func TestDecisionFileIsATrace(t *testing.T) {
	j := journalWithFile(t, func(c *decisionsConfig) { c.Blocks = true })
	for i := range 3 {
		d := decision(fmt.Sprint(i))
		d.Time = d.Time.Add(time.Duration(i) * time.Second)
		ids := make([]uint32, 300)
		ids[200] = uint32(i) // two blocks of 64 in common
		d.Prompt = &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: ids, Length: 300, Usable: 300, Copies: 1}}}
		d.Prompt.FillChain()
		j.Decided(d)
		j.Ended(d, scoring.OutcomeComplete, "10.0.0.1:1")
	}
	written(t, j)
	file, err := os.Open(j.file.file.Filename)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got, err := trace.Read(trace.Options{}, trace.Source{Name: "decisions.jsonl", Content: file})
	if err != nil {
		t.Fatal(err)
	}
	if got.Format != trace.Decisions || len(got.Requests) != 3 || got.BlockTokens != 64 || len(got.Requests[2].Blocks) != 4 {
		t.Fatalf("read %+v", got)
	}
	if diff := cmp.Diff(got.Requests[0].Blocks[:3], got.Requests[1].Blocks[:3]); diff != "" || got.Requests[0].Blocks[3] == got.Requests[1].Blocks[3] {
		t.Errorf("prefixes in common: %s", diff)
	}
}

// In a shadow's record what would have been chosen comes first.
func TestRecordOfAShadow(t *testing.T) {
	now := time.Unix(100, 0)
	p, err := scoring.NewPicker(scoring.DefaultConfig(), func() time.Time { return now }, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	p.SetEndpoints([]scoring.Endpoint{{ID: 1, Name: "a", Address: "10.0.0.1:1", Ready: true}, {ID: 2, Name: "b", Address: "10.0.0.2:1", Ready: true}})
	prompt := func() *scoring.Prompt {
		return &scoring.Prompt{Streamed: true, Sequences: []scoring.Sequence{{Length: 1000, Copies: 1}}}
	}
	first, err := p.Shadow("1", prompt(), now)
	if err != nil {
		t.Fatal(err)
	}
	j := newJournal(10, 1)
	choice := first.Endpoint()
	j.Decided(first.Reservation.Place(choice.Address))
	if r := j.find("1"); !r.GetShadow() || r.GetServedAddress() != choice.Address || r.ServedEstimateSeconds != nil || len(r.GetAlternates()) != 0 {
		t.Errorf("served where it would have been sent: %v", r)
	}
	second, err := p.Shadow("2", prompt(), now)
	if err != nil || second.Endpoint().ID == choice.ID {
		t.Fatalf("%v, %v", second, err)
	}
	j.Decided(second.Reservation.Place(choice.Address)) // behind the first one
	r := j.find("2")
	if r.GetCandidates()[0].GetAddress() != second.Endpoint().Address || r.GetServedEndpoint() != choice.Name || !(r.GetExpectedGainSeconds() > 0) ||
		r.GetServedEstimateSeconds() != r.GetCandidates()[1].GetEstimateSeconds() {
		t.Errorf("served elsewhere: %v", r)
	}
}
