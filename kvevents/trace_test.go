package kvevents

import (
	"compress/gzip"
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/test/shared"
)

// trace is what a real vLLM 0.32.0 was asked, answered and published, in blocks
// of 32.
type trace struct {
	Requests []struct {
		Name   string
		Path   string
		SentAt float64 `json:"t_send"`
		Body   struct {
			Prompt json.RawMessage
			Salt   string `json:"cache_salt"`
		}
		Chunks [][2]any
	}
	KVEvents []struct {
		Seq     uint64
		Payload string `json:"payload_b64"`
	} `json:"kv_events"`
}

var (
	cachedTokens = regexp.MustCompile(`"cached_tokens":(\d+)`)
	// The engine tells the ids where they were asked for.
	promptIDs = regexp.MustCompile(`"prompt_token_ids":(\[[\d,]+\])`)
)

// What the events told until each request was sent must predict what the
// engine found cached for it, to the token.
func TestTracePredictsCachedTokens(t *testing.T) {
	file, err := os.Open(shared.File(t, "golden", "vllm-engine-trace.json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var tr trace
	if err := json.NewDecoder(unzipped).Decode(&tr); err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, scoring.TierCapacity{})
	e.v.settle()
	published := tr.KVEvents
	// until applies what the engine published before that time.
	until := func(at float64) {
		for len(published) > 0 {
			payload := fromBase64(t, published[0].Payload)
			if sent, ok := timestamp(payload); !ok || sent > at {
				return
			}
			var b batch
			if err := b.decode(payload); err != nil {
				t.Fatalf("event %d: %v", published[0].Seq, err)
			}
			e.v.apply(&b, now, true)
			checkView(t, e.v)
			published = published[1:]
		}
	}
	compared, hits := 0, 0
	var salted *scoring.Prompt
	for _, r := range tr.Requests {
		until(r.SentAt)
		if salted != nil {
			// What it stored is there for its salt.
			if got := e.ix.match(salted, []scoring.Endpoint{{ID: 1}})[0][0].Cached; got != 96 {
				t.Errorf("%d tokens of the salted prompt, want 96", got)
			}
			salted = nil
		}
		said := -1
		var told []byte
		for _, chunk := range r.Chunks {
			if text, ok := chunk[1].(string); ok {
				if m := cachedTokens.FindStringSubmatch(text); m != nil {
					said, _ = strconv.Atoi(m[1])
				}
				if m := promptIDs.FindStringSubmatch(text); m != nil && told == nil {
					told = []byte(m[1])
				}
			}
		}
		if said < 0 {
			continue // Cancelled before its usage was told.
		}
		var prompts [][]uint32
		if json.Unmarshal(r.Body.Prompt, &prompts) != nil {
			prompts = make([][]uint32, 1)
			if json.Unmarshal(r.Body.Prompt, &prompts[0]) != nil && json.Unmarshal(told, &prompts[0]) != nil {
				continue // Text of less than a block, of which no ids are known.
			}
		}
		p := &scoring.Prompt{Salt: r.Body.Salt}
		for _, ids := range prompts {
			n := scoring.Tokens(len(ids))
			p.Sequences = append(p.Sequences, scoring.Sequence{TokenIDs: ids, Length: n, Usable: n, Copies: 1})
		}
		predicted := 0
		for _, m := range e.ix.match(p, []scoring.Endpoint{{ID: 1}})[0] {
			predicted += int(m.Cached)
		}
		if predicted != said {
			t.Errorf("%s: predicted %d cached tokens, the engine found %d", r.Name, predicted, said)
		}
		compared++
		if r.Body.Salt != "" {
			salted = p
		}
		if said > 0 {
			hits++
		}
	}
	if compared != 11 || hits != 4 {
		t.Errorf("compared %d requests, %d of them with hits", compared, hits)
	}
	until(1e18)
	// The last event is AllBlocksCleared.
	if n := e.ix.total.Load(); n != 0 {
		t.Errorf("%d blocks left after the reset", n)
	}
	if e.v.account.events[kindCleared] != 1 {
		t.Errorf("events %v", e.v.account.events)
	}
}
