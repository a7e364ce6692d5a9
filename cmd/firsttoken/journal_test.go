package main

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firsttoken/firsttoken/extproc"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
	"github.com/firsttoken/firsttoken/scoring"
)

func decision(id string) *scoring.Decision {
	return &scoring.Decision{
		ID: id, Time: time.Unix(100, 0), Model: "m", Policy: "trapezoid", Reason: scoring.ReasonSpread,
		Prompt: &scoring.Prompt{
			Source:    scoring.TokensNative,
			Sequences: []scoring.Sequence{{TokenIDs: []uint32{1, 2, 3}, Length: 3, Usable: 3, Copies: 1}},
		},
		Candidates: []scoring.Candidate{
			{Endpoint: scoring.Endpoint{Name: "a", Address: "10.0.0.1:1"}, Known: true, Area: 6, Estimate: time.Second},
			{Endpoint: scoring.Endpoint{Name: "b", Address: "10.0.0.2:1"}, Known: true, Cached: 2, Area: 3, QueuedArea: 40, Waiting: 2, Decoding: 1, Estimate: 4 * time.Second},
			{Endpoint: scoring.Endpoint{Name: "c", Address: "10.0.0.3:1"}, Area: 6, QueuedArea: 90, Waiting: 3, Estimate: 9 * time.Second},
		},
	}
}

// Of several prompts the sources' words are added up, each source by itself.
func TestJournalRecordsWhoSaidWhat(t *testing.T) {
	j := newJournal(10, 1)
	d := decision("x")
	d.Candidates[1].Matches = []scoring.Match{
		{Cached: 2, Source: "lmcache", Claims: []scoring.Claim{{Source: "events", Cached: 50}, {Source: "lmcache", Cached: 2, Used: true}}},
		{Cached: 9, Source: "routed", Claims: []scoring.Claim{{Source: "events", Cached: 1}, {Source: "routed", Cached: 9, Used: true}}},
	}
	j.Decided(d)
	got := j.find("x").GetCandidates()[1]
	want := &firsttokenv1.Candidate{Source: "routed", Claims: []*firsttokenv1.Claim{
		{Source: "events", CachedTokens: 51}, {Source: "lmcache", CachedTokens: 2, Used: true}, {Source: "routed", CachedTokens: 9, Used: true},
	}}
	if diff := cmp.Diff(want, &firsttokenv1.Candidate{Source: got.GetSource(), Claims: got.GetClaims()}, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestJournalRecordsWhatWasWeighedAndWhatBecame(t *testing.T) {
	j := newJournal(10, 1)
	d := decision("x")
	j.Decided(d)
	want := &firsttokenv1.Decision{
		Id: "x", Time: timestamppb.New(time.Unix(100, 0)), Model: "m", Policy: "trapezoid", Reason: "spread",
		PromptTokens: 3, TokenSource: "native", Alternates: []string{"10.0.0.2:1"},
		Candidates: []*firsttokenv1.Candidate{
			{Endpoint: "a", Address: "10.0.0.1:1", CachedTokens: new(uint32(0)), Work: 6, EstimateSeconds: 1},
			{Endpoint: "b", Address: "10.0.0.2:1", CachedTokens: new(uint32(2)), Work: 3, QueuedWork: 40, Waiting: 2, Decoding: 1, EstimateSeconds: 4},
			{Endpoint: "c", Address: "10.0.0.3:1", Work: 6, QueuedWork: 90, Waiting: 3, EstimateSeconds: 9},
		},
	}
	if diff := cmp.Diff(want, j.find("x"), protocmp.Transform()); diff != "" {
		t.Errorf("decided (-want +got)\n%s", diff)
	}

	j.FirstToken(d, 1500*time.Millisecond)
	j.Ended(d, scoring.OutcomeComplete, "10.0.0.2:1")
	got := j.find("x")
	if got.GetEnded() == nil {
		t.Error("the end has no time")
	}
	got.Ended = nil
	want.TtftSeconds = new(1.5)
	want.Outcome = new("complete")
	want.ServedAddress, want.ServedEndpoint = new("10.0.0.2:1"), new("b")
	want.ServedEstimateSeconds, want.ServedCachedTokens, want.ExpectedGainSeconds = new(4.0), new(uint32(2)), new(3.0)
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("ended (-want +got)\n%s", diff)
	}

	// Served by an address that was no candidate.
	stranger := decision("y")
	j.Decided(stranger)
	j.Ended(stranger, scoring.OutcomeError, "192.0.2.1:1")
	if got := j.find("y"); got.ServedEndpoint != nil || got.GetServedAddress() != "192.0.2.1:1" {
		t.Errorf("served by a stranger: %v", got)
	}
}

func TestJournalKeepsTheLast(t *testing.T) {
	const size = 4
	for decided := range 11 {
		j := newJournal(size, 2)
		var want []string
		for i := range decided {
			j.Decided(decision(fmt.Sprint(i)))
			want = append([]string{fmt.Sprint(i)}, want...)
		}
		want = want[:min(len(want), size)]
		var got []string
		for _, record := range j.last(false) {
			got = append(got, record.GetId())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after %d decisions (-want +got)\n%s", decided, diff)
		}
		if len(j.byID) != len(want) {
			t.Errorf("after %d decisions %d ids are found, want %d", decided, len(j.byID), len(want))
		}
		if decided > size {
			old := decision("0")
			j.FirstToken(old, time.Second)
			j.Ended(old, scoring.OutcomeComplete, "")
			if j.find("0") != nil {
				t.Error("a record came back that was forgotten")
			}
		}
	}
}

// What a reader got is not changed by what happens meanwhile.
func TestJournalReadersHaveCopies(t *testing.T) {
	j := newJournal(8, 2)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 200 {
				d := decision(fmt.Sprintf("%d-%d", w, i))
				j.Decided(d)
				j.FirstToken(d, time.Second)
				j.Ended(d, scoring.OutcomeComplete, "10.0.0.1:1")
			}
		})
	}
	for range 100 {
		for _, record := range j.last(false) {
			if _, err := asJSON(record); err != nil {
				t.Fatal(err)
			}
		}
	}
	writers.Wait()
}

// What became of a request's tries completes its record, in the last words that
// were said of it.
func TestJournalRecordsRescue(t *testing.T) {
	j := newJournal(10, 1)
	j.Decided(decision("x"))
	j.Rescued("unknown", extproc.Rescue{Deadline: time.Second})
	j.Rescued("x", extproc.Rescue{Deadline: 4 * time.Second, Tries: 1})
	if got := j.find("x"); got.GetDeadlineSeconds() != 4 || got.GetTries() != 1 || got.Rescue != nil {
		t.Errorf("at first: %v", got)
	}
	j.Rescued("x", extproc.Rescue{Deadline: 4 * time.Second, Tries: 2, Missed: []string{"a"}, Outcome: "answered"})
	if got := j.find("x"); got.GetTries() != 2 || len(got.GetMissedEndpoints()) != 1 || got.GetRescue() != "answered" {
		t.Errorf("at last: %v", got)
	}
}
