package fidelity

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/scoring"
)

// TestEnginesCountsAreCompared: what the engine counts tells of faults that no
// source shows.
func TestEnginesCountsAreCompared(t *testing.T) {
	for _, tt := range []struct {
		name       string
		set        func(f *fleet)
		beside     func(f *fleet) // what happens besides our traffic, every turn
		fault, fix string
	}{
		{name: "all is well"},
		{name: "all is well, by source", set: func(f *fleet) { f.bySource = true }},
		{
			name: "prefix caching is off, as the engine says",
			set: func(f *fleet) {
				for _, e := range f.engines {
					e.reading.PrefixCaching = counters.SwitchOff
				}
			},
			fault: "looks up no prefix", fix: "--enable-prefix-caching",
		},
		{
			name: "nothing is looked up", set: func(f *fleet) { f.blind = true },
			fault: "looks up no prefix", fix: "--enable-prefix-caching",
		},
		{
			name: "other clients",
			beside: func(f *fleet) {
				for _, e := range f.list {
					f.compute(e.ID, promptOf(1000+f.next, 3000))
				}
			},
			fault: "did not come by us", fix: "send all traffic",
		},
		{
			name: "the engine's prompts are longer",
			set: func(f *fleet) {
				f.skew = func(ids []uint32) []uint32 { return append(slices.Clip(ids), ids[:len(ids)/10]...) }
			},
			fault: "not as long as ours", fix: "chat_template",
		},
		{
			name:  "the engine's prompts are shorter",
			set:   func(f *fleet) { f.skew = func(ids []uint32) []uint32 { return ids[:len(ids)*9/10] } },
			fault: "not as long as ours", fix: "chat_template",
		},
		{
			name:  "the engine holds less than we believe",
			set:   func(f *fleet) { f.room(10); f.mute() },
			fault: "finds far less", fix: "memory.capacity_tokens",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t, 2, func(*fleet) []Source { return nil })
			if tt.set != nil {
				tt.set(f)
			}
			for range 100 {
				f.serve(promptOf(f.next%3, 600+f.next/3*100))
				if tt.beside != nil {
					tt.beside(f)
				}
				f.pass(100 * time.Millisecond)
			}
			for _, e := range f.list {
				text, fix := "", ""
				for _, found := range f.checker.Status(e.ID).Findings {
					text, fix = text+found.Fault, fix+found.Fix
				}
				if !strings.Contains(text, tt.fault) || (text == "") != (tt.fault == "") {
					t.Errorf("endpoint %s: fault %q, want %q", e.Name, text, tt.fault)
				}
				if !strings.Contains(fix, tt.fix) {
					t.Errorf("endpoint %s: fix %q, want %q", e.Name, fix, tt.fix)
				}
				row := f.row(e.ID, "routed")
				if row.Predicted == nil || row.Counted == nil {
					t.Fatalf("endpoint %s: no window was compared", e.Name)
				}
				if off := max(*row.Predicted-*row.Counted, *row.Counted-*row.Predicted); tt.fault == "" && (off > *row.Counted/10 || *row.Counted == 0) {
					t.Errorf("endpoint %s: predicted %d, counted %d", e.Name, *row.Predicted, *row.Counted)
				}
			}
			if n := strings.Count(f.logs.String(), "own counts are not"); (n > 0) != (tt.fault != "") || n > len(f.list) {
				t.Errorf("%d lines of the log tell of it:\n%s", n, f.logs.String())
			}
		})
	}
}

// TestOthersAreExpected: while requests that nobody books go to the engines, what
// these count beyond ours is no fault; afterwards it is.
func TestOthersAreExpected(t *testing.T) {
	for _, others := range []int{30, 3000} { // as if ids were longer, and as other clients
		f := newFleet(t, 1, func(*fleet) []Source { return nil })
		f.shared = true
		for i := range 200 {
			if i == 100 {
				if found := f.checker.Status(f.list[0].ID).Findings; len(found) > 0 || f.logs.Len() > 0 {
					t.Errorf("%d tokens of others: found %+v\n%s", others, found, f.logs.String())
				}
				f.shared = false
			}
			f.serve(promptOf(f.next, 600))
			f.compute(f.list[0].ID, promptOf(1000+f.next, others))
			f.pass(100 * time.Millisecond)
		}
		if found := f.checker.Status(f.list[0].ID).Findings; len(found) != 1 {
			t.Errorf("%d tokens of others that are not expected: found %+v", others, found)
		}
	}
}

// TestWindowsWaitForWhatIsUnderWay: while most prompts are on their way, it is
// not known which of them the engine has counted.
func TestWindowsWaitForWhatIsUnderWay(t *testing.T) {
	f := newFleet(t, 1, func(*fleet) []Source { return nil })
	var flying []*scoring.Decision
	for i := range 40 {
		d, err := f.picker.Pick("flying"+string(rune('0'+i)), promptOf(i, 5000))
		if err != nil {
			t.Fatal(err)
		}
		f.checker.Decided(d)
		flying = append(flying, d)
	}
	for i := range 20 {
		f.serve(promptOf(100+i, 1000))
		f.pass(100 * time.Millisecond)
	}
	if row := f.row(1, "routed"); row.Predicted != nil {
		t.Error("a window was compared with most prompts on their way")
	}
	for _, d := range flying {
		d.Reservation.End()
		f.checker.Ended(d, scoring.OutcomeCancelled, "")
	}
	if n := len(f.checker.of(1).hits.flying); n != 0 {
		t.Errorf("%d ended requests are still on their way", n)
	}
}

// TestRestartBeginsAWindow: counts of two lives of an engine are not compared.
func TestRestartBeginsAWindow(t *testing.T) {
	f := newFleet(t, 1, func(*fleet) []Source { return nil })
	for range 10 {
		for range windowRequests - 1 {
			f.serve(promptOf(f.next, 1000))
		}
		f.engines[1].reading = counters.Reading{Counted: true, At: f.clock}
		f.checker.Counted(1, f.engines[1].reading, true)
	}
	if row := f.row(1, "routed"); row.Predicted != nil {
		t.Errorf("compared over a restart: %+v", row)
	}
}

// TestNothingCountedIsNotCompared: an engine that does not tell what it found,
// or only by now, has found no less than was predicted.
func TestNothingCountedIsNotCompared(t *testing.T) {
	f := newFleet(t, 1, func(*fleet) []Source { return nil })
	for i := range 10 {
		for range windowRequests {
			f.serve(promptOf(f.next, 1000))
		}
		f.engines[1].reading = counters.Reading{At: f.clock}
		if i == 9 {
			f.engines[1].reading.Counted, f.engines[1].reading.PrefixHits = true, 1_000_000
		}
		f.checker.Counted(1, f.engines[1].reading, false)
	}
	if row := f.row(1, "routed"); row.Predicted != nil {
		t.Errorf("compared with nothing: %+v", row)
	}
}
