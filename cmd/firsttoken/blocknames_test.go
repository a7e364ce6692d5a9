package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator/trace"
)

// promptOf is one of n blocks and a bit, which begins with the ids from first on.
func promptOf(first uint32, blocks int) *scoring.Prompt {
	ids := make([]uint32, blocks*64+1)
	for i := range ids {
		ids[i] = first + uint32(i)
	}
	p := &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: ids, Length: scoring.Tokens(len(ids)), Usable: scoring.Tokens(len(ids)), Copies: 1}}}
	p.FillChain()
	return p
}

func TestNamesOfBlocksTellEqualPrefixesAndNothingElse(t *testing.T) {
	n := newBlockNamer()
	long, short := n.names(blocksOf(promptOf(1, 3), "m")), n.names(blocksOf(promptOf(1, 2), "m"))
	if len(long) != 3 || !slices.Equal(long[:2], short) {
		t.Errorf("names %x and %x: want two alike and a third", long, short)
	}
	salted := promptOf(1, 2)
	salted.Salt = "s"
	for what, other := range map[string][]uint64{
		"another prompt":               n.names(blocksOf(promptOf(2, 2), "m")),
		"another model":                n.names(blocksOf(promptOf(1, 2), "n")),
		"another cache_salt":           n.names(blocksOf(salted, "m")),
		"another start of the service": newBlockNamer().names(blocksOf(promptOf(1, 2), "m")),
		"the service's own hashes":     promptOf(1, 2).Sequences[0].Chain,
	} {
		for _, name := range other {
			if slices.Contains(short, name) {
				t.Errorf("%s has the name %x too", what, name)
			}
		}
	}
	if got := n.names(blocksOf(&scoring.Prompt{}, "m")); len(got) != 0 {
		t.Errorf("no prompt, yet names %x", got)
	}
}

// What /decisions answers can be replayed: lengths, times and shared prefixes.
func TestRecordsCanBeReplayed(t *testing.T) {
	j := newJournal(10, 1)
	for i, p := range []*scoring.Prompt{promptOf(1, 3), promptOf(1, 2), promptOf(500, 2), {}} {
		d := decision(fmt.Sprint(i))
		p.Session = []string{"ann", "bob", "ann", ""}[i]
		d.Prompt, d.Time = p, time.Now().Add(time.Duration(i-10)*time.Second)
		j.Decided(d)
		if i == 1 {
			j.FirstToken(d, 2*time.Second)
			j.Ended(d, scoring.OutcomeComplete, "")
		}
	}
	var body bytes.Buffer
	for range 2 { // as two fetches would overlap
		list := []json.RawMessage{}
		for _, record := range j.last(true) {
			text, err := asJSON(record)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, text)
		}
		if err := json.NewEncoder(&body).Encode(map[string]any{"decisions": list}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := trace.Read(trace.Options{TokenTime: 10 * time.Millisecond}, trace.Source{Name: "decisions", Content: &body})
	if err != nil {
		t.Fatal(err)
	}
	type request struct{ seconds, prompt, blocks int }
	var requests []request
	for _, r := range got.Requests {
		requests = append(requests, request{int(r.At.Round(time.Second).Seconds()), r.Prompt, len(r.Blocks)})
	}
	if diff := cmp.Diff([]request{{0, 193, 3}, {1, 129, 2}, {2, 129, 2}}, requests, cmp.AllowUnexported(request{})); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	r := got.Requests
	if got.BlockTokens != 64 || !slices.Equal(r[0].Blocks[:2], r[1].Blocks) || r[1].Blocks[0] == r[2].Blocks[0] {
		t.Errorf("blocks %x of %d tokens: want the first two prompts to share two of 64", r, got.BlockTokens)
	}
	// Decided nine seconds ago, first token two seconds later: seven seconds of
	// answer at ten milliseconds a token.
	if out := r[1].Output; out < 690 || out > 1000 {
		t.Errorf("%d tokens of answer, want about 700", out)
	}
	if r[0].Session == "" || r[0].Session != r[2].Session || r[0].Session == r[1].Session || strings.Contains(r[0].Session, "ann") {
		t.Errorf("sessions %q, %q, %q: want the first and the last equal, and no names", r[0].Session, r[1].Session, r[2].Session)
	}
	for _, record := range j.last(false) {
		if len(record.GetPrefixBlocks()) > 0 || record.GetBlockTokens() > 0 || record.GetSession() != 0 {
			t.Errorf("names that nobody asked for: %v", record)
		}
	}
}
